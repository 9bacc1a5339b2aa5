//! Whether a plugin's file may be loaded at all: who can change it.
//!
//! A native plugin runs with all rights of this program. So nobody but root and the user of this
//! program may be able to write it, or to put another file in its place.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Write permission of the group and of everybody.
const OTHERS_WRITE: u32 = 0o022;

/// Why a plugin is not used. Each names the file and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{path} cannot be read ({why}); check that it exists and who may read it", path = .path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{path} is not a {expected}; remove it from the directory", path = .path.display())]
    WrongKind { path: PathBuf, expected: &'static str },
    #[error(
        "{path} can be written by its group or by everybody (mode {mode:04o}), so others could make this \
         program run their code; run: chmod go-w {path}", path = .path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "{path} belongs to the user {owner}, who could make this program run other code; install it as root \
         or as the user {user}", path = .path.display()
    )]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "{path} could not be loaded: {why}; rebuild it for this machine, and install what it links to",
        path = .path.display()
    )]
    NotLoadable { path: PathBuf, why: String },
    #[error(
        "{path} has no symbol {symbol}; it is no transport plugin, remove it from the directory",
        path = .path.display(), symbol = crate::abi::ENTRY
    )]
    NoEntry { path: PathBuf },
    #[error("{path} is refused: {why}", path = .path.display())]
    Table { path: PathBuf, why: crate::import::ImportError },
    /// What the child found wrong when it loaded the plugin.
    #[error("{why}")]
    Child { why: String },
    #[error(
        "{path} {what} while it was tried in a process of its own ({stage}); it is not loaded, tell its \
         author", path = .path.display()
    )]
    Failed { path: PathBuf, stage: String, what: String },
    #[error(
        "{path} is another transport of the name {name}, which {first} has already; remove one",
        path = .path.display()
    )]
    Duplicate { path: PathBuf, name: String, first: String },
    #[error(
        "{path} is beyond the first {limit} plugins of the directory; remove what is not needed",
        path = .path.display()
    )]
    TooMany { path: PathBuf, limit: usize },
}

/// The real path of a plugin whose file and directory only root and this user can write.
///
/// Links are followed first: what counts is the file that would be loaded and where it lies.
pub fn file(path: &Path) -> Result<PathBuf, Refusal> {
    let real = resolve(path)?;
    if let Some(parent) = real.parent() {
        directory(parent)?;
    }
    let found = stat(&real)?;
    if !found.is_file() {
        return Err(Refusal::WrongKind { path: path.to_owned(), expected: "file" });
    }
    owned_and_closed(&real, &found)?;
    Ok(real)
}

/// The real path of a directory that only root and this user can write.
pub fn directory(path: &Path) -> Result<PathBuf, Refusal> {
    let real = resolve(path)?;
    let found = stat(&real)?;
    if !found.is_dir() {
        return Err(Refusal::WrongKind { path: path.to_owned(), expected: "directory" });
    }
    owned_and_closed(&real, &found)?;
    Ok(real)
}

fn owned_and_closed(path: &Path, found: &Metadata) -> Result<(), Refusal> {
    let user = rustix::process::geteuid().as_raw();
    allowed(path, found.uid(), found.mode(), user)
}

fn allowed(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), Refusal> {
    if owner != 0 && owner != user {
        return Err(Refusal::Owner { path: path.to_owned(), owner, user });
    }
    if mode & OTHERS_WRITE != 0 {
        return Err(Refusal::Writable { path: path.to_owned(), mode: mode & 0o7777 });
    }
    Ok(())
}

fn resolve(path: &Path) -> Result<PathBuf, Refusal> {
    path.canonicalize().map_err(unreadable(path))
}

fn stat(path: &Path) -> Result<Metadata, Refusal> {
    path.metadata().map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Refusal {
    move |error| Refusal::Unreadable { path: path.to_owned(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A directory with one file, of these modes.
    fn place(dir_mode: u32, file_mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.so");
        std::fs::write(&file, b"").unwrap();
        set_mode(&file, file_mode);
        set_mode(dir.path(), dir_mode);
        (dir, file)
    }

    #[test]
    fn others_must_not_be_able_to_write() {
        for (dir_mode, file_mode, fine) in [
            (0o755, 0o644, true),
            (0o700, 0o755, true),
            (0o775, 0o644, false),
            (0o777, 0o644, false),
            (0o1777, 0o644, false),
            (0o755, 0o664, false),
            (0o755, 0o646, false),
        ] {
            let (_dir, path) = place(dir_mode, file_mode);
            let result = file(&path);
            assert_eq!(result.is_ok(), fine, "{dir_mode:o} {file_mode:o}: {result:?}");
            if let Err(refusal) = result {
                assert!(refusal.to_string().contains("chmod go-w "), "{refusal}");
            }
        }
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let (_outside, target) = place(0o777, 0o644);
        let (dir, _) = place(0o755, 0o644);
        let link = dir.path().join("link.so");
        symlink(&target, &link).unwrap();
        assert!(matches!(file(&link), Err(Refusal::Writable { .. })));
        set_mode(target.parent().unwrap(), 0o755);
        assert_eq!(file(&link).unwrap(), target.canonicalize().unwrap());
    }

    #[test]
    fn files_of_others_are_refused() {
        let path = Path::new("/p/x.so");
        assert_eq!(allowed(path, 0, 0o644, 1000), Ok(()));
        assert_eq!(allowed(path, 1000, 0o644, 1000), Ok(()));
        let refusal = allowed(path, 1001, 0o644, 1000).unwrap_err();
        assert!(refusal.to_string().contains("1001"), "{refusal}");
    }

    #[test]
    fn missing_and_strange_things_are_refused() {
        let (dir, _) = place(0o755, 0o644);
        let missing = dir.path().join("missing.so");
        assert!(matches!(file(&missing), Err(Refusal::Unreadable { .. })));
        let sub = dir.path().join("sub.so");
        std::fs::create_dir(&sub).unwrap();
        assert!(matches!(file(&sub), Err(Refusal::WrongKind { .. })));
        assert!(matches!(directory(&dir.path().join("x.so")), Err(Refusal::WrongKind { .. })));
    }
}
