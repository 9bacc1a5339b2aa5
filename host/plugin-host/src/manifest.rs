//! A plugin's manifest: `plugin.toml`, or `NAME.plugin.toml` where several share a directory.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Characters of a name or a version.
const NAME_BYTES_MAX: usize = 64;
const SUMMARY_BYTES_MAX: usize = 512;

/// What a plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Recognizer,
    Policy,
    Rewrite,
    Hints,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Recognizer => "recognizer",
            Kind::Policy => "policy",
            Kind::Rewrite => "rewrite",
            Kind::Hints => "hints",
        }
    }
}

/// What a plugin may ask for beyond computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Lines in the host's log; every plugin has it.
    Log,
    /// Time since some fixed moment.
    Clock,
}

impl Capability {
    pub fn as_str(self) -> &'static str {
        match self {
            Capability::Log => "log",
            Capability::Clock => "clock",
        }
    }
}

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lower-case letters, digits, `-` and `_`.
    pub name: String,
    pub version: String,
    pub kinds: Vec<Kind>,
    /// Path of the component within the manifest's directory.
    pub component: PathBuf,
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Handed to the plugin's `configure` as JSON.
    #[serde(default)]
    pub config: toml::Table,
}

impl Manifest {
    /// Reads and checks a manifest's text; an error says what to mend.
    pub fn parse(text: &str) -> Result<Manifest, String> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| {
            let place = error.span().map(|span| text[..span.start].lines().count().max(1));
            let place = place.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("the manifest is wrong: {place}{}", error.message())
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if !is_name(&self.name) {
            return Err(format!(
                "the name {:?} must be 1 to {NAME_BYTES_MAX} lower-case letters, digits, - or _",
                self.name
            ));
        }
        let is_printable = |text: &str| !text.chars().any(char::is_control);
        if self.version.is_empty()
            || self.version.len() > NAME_BYTES_MAX
            || !is_printable(&self.version)
        {
            return Err("`version` must be a short text such as \"1.0.0\"".into());
        }
        if self.summary.len() > SUMMARY_BYTES_MAX || !is_printable(&self.summary) {
            return Err(format!("`summary` must be one line of up to {SUMMARY_BYTES_MAX} bytes"));
        }
        if self.kinds.is_empty() {
            return Err("`kinds` is empty; name what the plugin is, such as \"recognizer\"".into());
        }
        let parts: Vec<Component> = self.component.components().collect();
        if parts.is_empty() || !parts.iter().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!(
                "the component {} must be a path inside the plugin's directory",
                self.component.display()
            ));
        }
        Ok(())
    }

    pub fn is(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    pub fn asks_for(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// The `[config]` table as JSON.
    pub fn config_json(&self) -> String {
        serde_json::to_string(&self.config).expect("a table has string keys")
    }
}

/// Whether a file of this name is a manifest.
pub(crate) fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name == "plugin.toml" || name.ends_with(".plugin.toml")
}

fn is_name(name: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"llm\"\nversion = \"1\"\nkinds = [\"recognizer\"]\n\
                        component = \"llm.wasm\"\n";

    #[test]
    fn a_manifest_is_read() {
        let manifest = Manifest::parse(&format!("{GOOD}[config]\ndepth = 3\n")).unwrap();
        assert!(manifest.is(Kind::Recognizer) && !manifest.is(Kind::Policy));
        assert_eq!(manifest.config_json(), "{\"depth\":3}");
        assert!(!manifest.asks_for(Capability::Clock));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("name = \"llm\"", "name = \"../x\"", "lower-case"),
            ("kinds = [\"recognizer\"]", "kinds = []", "`kinds` is empty"),
            ("kinds = [\"recognizer\"]", "kinds = [\"oracle\"]", "line 3"),
            ("component = \"llm.wasm\"", "component = \"../llm.wasm\"", "inside"),
            ("component = \"llm.wasm\"", "component = \"/llm.wasm\"", "inside"),
            ("version = \"1\"", "version = \"\"", "version"),
            ("version = \"1\"", "version = \"1\"\nnetwork = true", "network"),
            ("version = \"1\"", "version = \"1\"\ncapabilities = [\"files\"]", "files"),
        ];
        for (from, to, expected) in cases {
            let error = Manifest::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
