//! Finds manifests below a directory and reads plugins' files.

use std::path::{Path, PathBuf};

use crate::limits::{Limits, MANIFEST_BYTES_MAX, PLUGINS_MAX};
use crate::manifest::{Manifest, is_manifest};
use crate::vet::{self, Stamp};

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;

/// What tells whether a plugin's files have changed since they were read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Stamps {
    manifest: Option<Stamp>,
    component: Option<(PathBuf, Option<Stamp>)>,
}

impl Stamps {
    /// The stamps of the files as they are now.
    pub fn now(manifest: &Path, component: Option<&Path>) -> Stamps {
        let component = component.map(|path| {
            let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let stamp = Stamp::of(&real);
            (real, stamp)
        });
        Stamps { manifest: Stamp::of(manifest), component }
    }
}

/// The files of one plugin, read.
pub(crate) struct Source {
    pub manifest: Manifest,
    pub component: Vec<u8>,
    /// Covers both files.
    pub digest: [u8; 32],
}

/// The manifests of `dir`, sorted: `plugin.toml` and `*.plugin.toml` in its directories and, for
/// the directory of one plugin, in itself.
pub(crate) fn manifests(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(dir) {
        if path.is_dir() {
            found.extend(entries(&path).into_iter().filter(|path| is_manifest(path)));
        } else if is_manifest(&path) {
            found.push(path);
        }
    }
    if found.len() > PLUGINS_MAX {
        let shown = dir.display();
        tracing::warn!("{shown} holds {} plugins; {PLUGINS_MAX} are loaded", found.len());
        found.truncate(PLUGINS_MAX);
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX);
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Reads a manifest; an error says why the plugin is refused.
pub(crate) fn read_manifest(path: &Path) -> Result<(Manifest, Vec<u8>), String> {
    let dir = vet::plugin_directory(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().ok_or("the manifest has no name")?;
    let (bytes, _) = vet::read(&dir.join(name), MANIFEST_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "the manifest is not UTF-8")?;
    Ok((Manifest::parse(text)?, bytes))
}

/// Reads the component that a manifest names.
pub(crate) fn read_component(
    path: &Path,
    manifest: Manifest,
    text: &[u8],
    limits: &Limits,
) -> Result<Source, String> {
    let dir = vet::plugin_directory(path.parent().unwrap_or(Path::new(".")))?;
    let real = vet::inside(&dir, &manifest.component)?;
    let (component, _) = vet::read(&real, limits.component_bytes)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text).update(&component);
    Ok(Source { manifest, component, digest: *hasher.finalize().as_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_manifests_may_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for dir in ["b", "a", "empty"] {
            std::fs::create_dir(path(dir)).unwrap();
        }
        for file in ["b/x.plugin.toml", "b/y.plugin.toml", "a/plugin.toml", "a/Cargo.toml"] {
            std::fs::write(path(file), "").unwrap();
        }
        let expected: Vec<PathBuf> =
            ["a/plugin.toml", "b/x.plugin.toml", "b/y.plugin.toml"].map(path).into();
        assert_eq!(manifests(root.path()), expected);
        assert_eq!(manifests(&path("a")), expected[..1]);
    }
}
