//! Opens a plugin's files without trusting what lies there.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::directory::{is_ours, is_writable_by_others};

/// Identifies the content of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_ns: (i64, i64),
}

impl Stamp {
    pub fn of(path: &Path) -> Option<Stamp> {
        std::fs::symlink_metadata(path).ok().map(|metadata| Stamp::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            changed_ns: (
                metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
            ),
        }
    }
}

/// Checks a plugin's own directory and gives its real path; an error says why it is refused.
pub(crate) fn plugin_directory(dir: &Path) -> Result<PathBuf, String> {
    let look = |error| format!("cannot look at {}: {error}", dir.display());
    let real = dir.canonicalize().map_err(look)?;
    ours_alone(&real, &std::fs::symlink_metadata(&real).map_err(look)?)?;
    Ok(real)
}

/// The real path of a component named in a manifest in `dir` (a real path), which it must not
/// leave.
pub(crate) fn inside(dir: &Path, component: &Path) -> Result<PathBuf, String> {
    let named = dir.join(component);
    let real = named.canonicalize().map_err(|error| {
        format!("the component {} cannot be found ({error}); build it first", named.display())
    })?;
    if !real.starts_with(dir) {
        return Err(format!(
            "the component {} leads out of the plugin's directory, to {}; copy it there",
            named.display(),
            real.display()
        ));
    }
    for parent in real.ancestors().skip(1).take_while(|parent| *parent != dir) {
        let metadata = std::fs::symlink_metadata(parent).map_err(|error| error.to_string())?;
        ours_alone(parent, &metadata)?;
    }
    Ok(real)
}

/// Reads a regular file of at most `bytes_max` that only its owner, this user or root, writes.
/// Never waits for anybody (a FIFO) and never follows a link.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<(Vec<u8>, Stamp), String> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // Opening a device may already act, so the kind is looked at before and after.
    let before = std::fs::symlink_metadata(path)
        .map_err(|error| format!("{shown} cannot be looked at: {error}"))?;
    regular(path, &before, bytes_max)?;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| format!("{shown} cannot be opened: {errno}"))?;
    let file = File::from(file);
    let metadata =
        file.metadata().map_err(|error| format!("{shown} cannot be looked at: {error}"))?;
    regular(path, &metadata, bytes_max)?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    (&file)
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if bytes.len() as u64 != metadata.len() {
        return Err(format!("{shown} changed while it was read; it is looked at again later"));
    }
    Ok((bytes, Stamp::from(&metadata)))
}

fn regular(path: &Path, metadata: &Metadata, bytes_max: u64) -> Result<(), String> {
    let shown = path.display();
    if !metadata.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if metadata.len() > bytes_max {
        return Err(format!("{shown} has {} bytes; at most {bytes_max} are read", metadata.len()));
    }
    ours_alone(path, metadata)
}

fn ours_alone(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let shown = path.display();
    if is_writable_by_others(metadata) {
        return Err(format!(
            "{shown} can be written to by others (mode {:o}); run `chmod go-w {shown}`",
            metadata.mode() & 0o7777
        ));
    }
    match is_ours(metadata) {
        true => Ok(()),
        false => Err(format!("{shown} belongs to user {}, not to you or root", metadata.uid())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_plain_files_of_ones_own_are_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap();
        let path = |name: &str| dir.join(name);
        std::fs::write(path("plain"), b"abc").unwrap();
        assert_eq!(read(&path("plain"), 3).unwrap().0, b"abc");
        symlink("plain", path("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let sparse = File::create(path("sparse")).unwrap();
        sparse.set_len(10 << 30).unwrap();
        std::fs::write(path("shared"), b"abc").unwrap();
        std::fs::set_permissions(path("shared"), Permissions::from_mode(0o666)).unwrap();
        let cases = [
            ("none", "cannot be looked at"),
            ("link", "not a regular file"),
            ("fifo", "not a regular file"),
            (".", "not a regular file"),
            ("sparse", "at most 3"),
            ("shared", "chmod go-w"),
        ];
        for (name, expected) in cases {
            let error = read(&path(name), 3).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_component_stays_in_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        let dir = base.join("plugin");
        std::fs::create_dir_all(dir.join("build")).unwrap();
        std::fs::write(base.join("secret"), b"").unwrap();
        std::fs::write(dir.join("build/a.wasm"), b"").unwrap();
        symlink(base.join("secret"), dir.join("out.wasm")).unwrap();
        symlink("build/a.wasm", dir.join("in.wasm")).unwrap();
        assert_eq!(inside(&dir, Path::new("in.wasm")).unwrap(), dir.join("build/a.wasm"));
        assert!(inside(&dir, Path::new("out.wasm")).unwrap_err().contains("leads out"));
        std::fs::set_permissions(dir.join("build"), Permissions::from_mode(0o777)).unwrap();
        assert!(inside(&dir, Path::new("in.wasm")).unwrap_err().contains("chmod go-w"));
    }
}
