//! Checks a directory of plugins; loading them comes with a later version.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};

/// Plugins one directory may hold.
const PLUGINS_MAX: usize = 256;

/// The names of the `*.wasm` files in `dir`, which nobody else may write to.
pub fn check(dir: &Path) -> anyhow::Result<Vec<String>> {
    let shown = dir.display();
    let metadata = std::fs::metadata(dir).with_context(|| {
        format!("cannot look at the plugin directory {shown}; create it or drop --plugins")
    })?;
    if !metadata.is_dir() {
        bail!("{shown} is not a directory; --plugins takes the directory that holds *.wasm files");
    }
    if metadata.mode() & 0o022 != 0 {
        bail!(
            "the plugin directory {shown} can be written to by others (mode {:o}); run \
             `chmod go-w {shown}`",
            metadata.mode() & 0o7777
        );
    }
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid && metadata.uid() != 0 {
        bail!(
            "the plugin directory {shown} belongs to user {}, not to you or root",
            metadata.uid()
        );
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))? {
        let entry = entry.with_context(|| format!("cannot list {shown}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".wasm") && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            names.push(name);
        }
        if names.len() > PLUGINS_MAX {
            bail!("{shown} holds more than {PLUGINS_MAX} plugins");
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_directory_is_listed_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.wasm", "a.wasm", "notes.txt"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(check(dir.path()).unwrap(), ["a.wasm", "b.wasm"]);
        let error = |path: &Path| format!("{:#}", check(path).unwrap_err());
        assert!(error(&dir.path().join("none")).contains("create it"));
        assert!(error(&dir.path().join("a.wasm")).contains("not a directory"));
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(error(dir.path()).contains("chmod go-w"));
    }
}
