//! Checks a directory of plugins before anything in it is read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a directory of plugins is not used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(
        "cannot look at the plugin directory {path}: {source}; create it, or name another by \
         --plugins (GENIE_PLUGINS)"
    )]
    Look { path: PathBuf, source: std::io::Error },
    #[error("{0} is not a directory; --plugins takes the directory that holds the plugins")]
    NotADirectory(PathBuf),
    #[error(
        "the plugin directory {path} can be written to by others (mode {mode:o}); run \
         `chmod go-w {path}`"
    )]
    WritableByOthers { path: PathBuf, mode: u32 },
    #[error("the plugin directory {path} belongs to user {uid}, not to you or root")]
    Owner { path: PathBuf, uid: u32 },
}

/// Checks that `dir` is a directory that nobody but its owner, you or root, can write to.
pub fn check_directory(dir: &Path) -> Result<(), DirectoryError> {
    let path = || dir.to_owned();
    let metadata =
        std::fs::metadata(dir).map_err(|source| DirectoryError::Look { path: path(), source })?;
    if !metadata.is_dir() {
        return Err(DirectoryError::NotADirectory(path()));
    }
    if is_writable_by_others(&metadata) {
        let mode = metadata.mode() & 0o7777;
        return Err(DirectoryError::WritableByOthers { path: path(), mode });
    }
    match is_ours(&metadata) {
        true => Ok(()),
        false => Err(DirectoryError::Owner { path: path(), uid: metadata.uid() }),
    }
}

pub(crate) fn is_writable_by_others(metadata: &Metadata) -> bool {
    metadata.mode() & 0o022 != 0
}

/// Whether the file belongs to this user or to root.
pub(crate) fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() || metadata.uid() == 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_directory_passes_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        check_directory(dir.path()).unwrap();
        let error = |path: &Path| check_directory(path).unwrap_err().to_string();
        assert!(error(&dir.path().join("none")).contains("create it"));
        std::fs::write(dir.path().join("file"), b"").unwrap();
        assert!(error(&dir.path().join("file")).contains("not a directory"));
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(error(dir.path()).contains("chmod go-w"));
    }
}
