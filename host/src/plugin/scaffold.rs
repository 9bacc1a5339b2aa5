//! `genie-host plugin new`: a crate that builds, tests and loads at once.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

/// Characters of a name.
const NAME_BYTES_MAX: usize = 64;
/// The SDK of the checkout that this program was built from.
const SDK_OF_CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugin-sdk");
/// Names that cargo or rustc refuse or that would hide another crate.
const RESERVED: [&str; 46] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "genie_plugin",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "test",
    "trait",
    "true",
    "type",
    "unsafe",
    "use",
];

const CARGO_TOML: &str = include_str!("../../../plugin-sdk/template/Cargo.toml.in");
const PLUGIN_TOML: &str = include_str!("../../../plugin-sdk/template/plugin.toml.in");
const CARGO_CONFIG: &str = include_str!("../../../plugin-sdk/template/cargo-config.toml");
const README: &str = include_str!("../../../plugin-sdk/template/README.md.in");
const GITIGNORE: &str = include_str!("../../../plugin-sdk/template/gitignore");

#[derive(Args)]
pub struct NewArgs {
    /// Lower-case letters, digits, `-` and `_`, beginning with a letter.
    #[arg(value_parser = name)]
    name: String,
    /// What the plugin does.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Where the new directory goes.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The directory of the crate genie-plugin; otherwise that of the checkout genie-host was
    /// built from, or the published crate.
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Says what a program is doing.
    Recognizer,
    /// Says where it should run.
    Policy,
    /// Proposes edits that change no answer.
    Rewrite,
    /// Adapts hints to what was measured.
    Hints,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Recognizer => "recognizer",
            Kind::Policy => "policy",
            Kind::Rewrite => "rewrite",
            Kind::Hints => "hints",
        }
    }

    fn summary(self) -> &'static str {
        match self {
            Kind::Recognizer => "Recognizes two products of weights with an activation between",
            Kind::Policy => "Runs everything where the most memory is free",
            Kind::Rewrite => "Merges operators that compute the same",
            Kind::Hints => "Sends pieces as large as one round trip carries",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Kind::Recognizer => include_str!("../../../plugin-sdk/template/recognizer.rs.in"),
            Kind::Policy => include_str!("../../../plugin-sdk/template/policy.rs.in"),
            Kind::Rewrite => include_str!("../../../plugin-sdk/template/rewrite.rs.in"),
            Kind::Hints => include_str!("../../../plugin-sdk/template/hints.rs.in"),
        }
    }
}

pub fn run(args: NewArgs) -> anyhow::Result<()> {
    let root = args.dir.join(&args.name);
    let sdk = match &args.sdk {
        Some(path) => Sdk::at(path)?,
        None => Sdk::at(Path::new(SDK_OF_CHECKOUT)).unwrap_or(Sdk::Published),
    };
    write(&root, &files(&args.name, args.kind, &sdk))?;
    let shown = root.display();
    println!("{shown} is a {} plugin. Next:\n", args.kind.word());
    println!("  cd {shown}");
    println!("  cargo test                    # natively, no accelerator needed");
    println!("  cargo plugin                  # the WASM component");
    println!("  genie-host plugin inspect .   # what the host makes of it\n");
    println!("The code is src/lib.rs; `genie-host --plugins {}` loads it.", args.dir.display());
    Ok(())
}

/// Where the SDK comes from.
#[derive(Debug, PartialEq)]
enum Sdk {
    Path(PathBuf),
    Published,
}

impl Sdk {
    fn at(path: &Path) -> anyhow::Result<Sdk> {
        let shown = path.display();
        let real = path.canonicalize().with_context(|| {
            format!("cannot find the SDK at {shown}; --sdk takes the directory plugin-sdk")
        })?;
        if !real.join("Cargo.toml").is_file() {
            bail!("{shown} holds no Cargo.toml; --sdk takes the directory plugin-sdk");
        }
        if real.to_str().is_none() {
            bail!("the path {shown} is not UTF-8, cargo cannot name it; copy the SDK elsewhere");
        }
        Ok(Sdk::Path(real))
    }

    /// The dependency as a value of TOML.
    fn dependency(&self, features: &str) -> String {
        let from = match self {
            Sdk::Path(path) => format!("path = {}", quoted(&path.to_string_lossy())),
            Sdk::Published => format!("version = {}", quoted(env!("CARGO_PKG_VERSION"))),
        };
        format!("{{ {from}{features} }}")
    }
}

/// A string of TOML (a basic string escapes as JSON does).
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn files(name: &str, kind: Kind, sdk: &Sdk) -> Vec<(&'static str, String)> {
    let words = [
        ("{{name}}", name.to_owned()),
        ("{{crate}}", name.replace('-', "_")),
        ("{{type}}", type_name(name)),
        ("{{kind}}", kind.word().to_owned()),
        ("{{summary}}", kind.summary().to_owned()),
        ("{{sdk}}", sdk.dependency("")),
        ("{{sdk_harness}}", sdk.dependency(", features = [\"harness\"]")),
    ];
    let fill = |template: &str| {
        words.iter().fold(template.to_owned(), |text, (word, with)| text.replace(word, with))
    };
    vec![
        ("Cargo.toml", fill(CARGO_TOML)),
        ("plugin.toml", fill(PLUGIN_TOML)),
        ("README.md", fill(README)),
        (".gitignore", GITIGNORE.to_owned()),
        (".cargo/config.toml", CARGO_CONFIG.to_owned()),
        ("src/lib.rs", fill(kind.code())),
    ]
}

/// `SqueezeExcite` of `squeeze-excite`.
fn type_name(name: &str) -> String {
    let parts = name.split(['-', '_']);
    parts
        .flat_map(|part| {
            let mut letters = part.chars();
            letters.next().into_iter().flat_map(char::to_uppercase).chain(letters)
        })
        .collect()
}

fn name(text: &str) -> Result<String, String> {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || !text.bytes().all(is_word) || text.len() > NAME_BYTES_MAX {
        return Err(format!(
            "a name is 1 to {NAME_BYTES_MAX} lower-case letters, digits, - or _ and begins with \
             a letter"
        ));
    }
    match RESERVED.contains(&text.replace('-', "_").as_str()) {
        true => Err("Rust keeps this word for itself; add something to it".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Writes a new directory; an existing one is left as it is.
fn write(root: &Path, files: &[(&str, String)]) -> anyhow::Result<()> {
    let shown = root.display();
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    if let Err(error) = std::fs::create_dir(root) {
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                bail!("{shown} exists already; choose another name or --dir")
            }
            _ => return Err(error).with_context(|| format!("cannot create {shown}")),
        }
    }
    for (path, text) in files {
        let path = root.join(path);
        let parent = path.parent().unwrap_or(root);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_cargo_and_the_host_take() {
        for (text, good) in [
            ("squeeze-excite", true),
            ("a1_b", true),
            ("", false),
            ("1a", false),
            ("-a", false),
            ("A", false),
            ("a b", false),
            ("../a", false),
            ("fn", false),
            ("genie-plugin", false),
            (&"a".repeat(65), false),
        ] {
            assert_eq!(name(text).is_ok(), good, "{text}");
        }
        assert!(RESERVED.is_sorted());
        assert_eq!(type_name("squeeze-excite_2d"), "SqueezeExcite2d");
    }

    #[test]
    fn nothing_is_left_to_fill_in_and_the_manifest_is_one() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::Recognizer, Kind::Policy, Kind::Rewrite, Kind::Hints] {
            let sdk = Sdk::Path(PathBuf::from("/a \"b\"/plugin-sdk"));
            for (path, text) in files("my-plugin", kind, &sdk) {
                assert!(!text.contains("{{"), "{path}: {text}");
            }
            let root = dir.path().join(kind.word());
            write(&root, &files("my-plugin", kind, &Sdk::Published)).unwrap();
            let manifest = std::fs::read_to_string(root.join("plugin.toml")).unwrap();
            let manifest = genie_plugin_host::Manifest::parse(&manifest).unwrap();
            assert_eq!(manifest.name, "my-plugin");
            assert_eq!(manifest.kinds[0].as_str(), kind.word());
            let again = write(&root, &[]).unwrap_err().to_string();
            assert!(again.contains("exists already"), "{again}");
        }
    }

    #[test]
    fn the_sdk_is_a_path_that_exists_or_the_published_crate() {
        let Sdk::Path(path) = Sdk::at(Path::new(SDK_OF_CHECKOUT)).unwrap() else { unreachable!() };
        assert!(path.is_absolute());
        let error = Sdk::at(Path::new("/none")).unwrap_err();
        assert!(format!("{error:#}").contains("--sdk takes"), "{error:#}");
        assert_eq!(
            Sdk::Published.dependency(""),
            format!("{{ version = \"{}\" }}", env!("CARGO_PKG_VERSION"))
        );
    }
}
