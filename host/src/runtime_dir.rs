//! The private directory for a host's sockets.
//!
//! A host that ends removes its directory. One that was killed cannot; the next host does it. A
//! lock on a file inside tells which directories are in use: the kernel drops it with the process.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

/// The longest directory whose sockets' paths still fit an address.
const BASE_BYTES_MAX: usize = 80;
/// Abandoned directories one host removes at its start.
const SWEPT_MAX: usize = 64;
const LOCK: &str = "lock";

/// The directory; it goes with this value.
pub struct RuntimeDir {
    dir: TempDir,
    _lock: File,
}

impl RuntimeDir {
    /// Makes a fresh directory of mode 0700 under `base` (`XDG_RUNTIME_DIR`) or, where that
    /// cannot be used, under the directory for temporary files.
    pub fn create(base: Option<OsString>) -> anyhow::Result<Self> {
        let prefix = format!("genie-{}-", rustix::process::geteuid().as_raw());
        let mut bases: Vec<PathBuf> = base.into_iter().map(PathBuf::from).collect();
        bases.push(std::env::temp_dir());
        bases.push(PathBuf::from("/tmp"));
        bases.retain(|base| base.as_os_str().len() <= BASE_BYTES_MAX);
        let mut last = None;
        for base in &bases {
            match create_in(base, &prefix) {
                Ok(dir) => {
                    sweep(base, &prefix);
                    return Ok(dir);
                }
                Err(error) => last = Some((base, error)),
            }
        }
        let (base, error) = last.context("every directory for sockets has too long a name")?;
        Err(error).with_context(|| {
            format!(
                "cannot make a directory for sockets in {}; set XDG_RUNTIME_DIR to a directory \
                 that you can write to",
                base.display()
            )
        })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn create_in(base: &Path, prefix: &str) -> std::io::Result<RuntimeDir> {
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(base)?;
    let lock = File::create_new(dir.path().join(LOCK))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(RuntimeDir { dir, _lock: lock })
}

/// Removes directories whose host was killed. What cannot be looked at or removed stays.
fn sweep(base: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    let ours = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path());
    for dir in ours.filter(|dir| is_abandoned(dir)).take(SWEPT_MAX) {
        tracing::debug!("removing {}, which a killed host left behind", dir.display());
        let _ = std::fs::remove_dir_all(&dir);
    }
}

fn is_abandoned(dir: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let is_ours = std::fs::symlink_metadata(dir).is_ok_and(|dir| dir.is_dir() && dir.uid() == uid);
    // A directory without a lock file is about to get one, or is none of ours.
    is_ours
        && File::open(dir.join(LOCK))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_goes_with_its_value() {
        let dir = RuntimeDir::create(Some("/does/not/exist".into())).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn only_abandoned_directories_are_swept() {
        let base = tempfile::tempdir().unwrap();
        let create = || RuntimeDir::create(Some(base.path().into())).unwrap();
        let (living, killed) = (create(), create());
        let abandoned = {
            let RuntimeDir { dir, _lock } = killed;
            dir.keep()
        };
        let stranger = base.path().join("genie-of-somebody-else");
        std::fs::create_dir(&stranger).unwrap();
        let next = create();
        assert!(living.path().exists() && next.path().exists() && stranger.exists());
        assert!(!abandoned.exists());
    }
}
