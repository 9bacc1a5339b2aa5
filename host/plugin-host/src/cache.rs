//! Compiled components, kept between runs in a private directory.
//!
//! Code from this cache runs with the host's rights, so a file is used only when the directory
//! is this user's alone and when the file's own hash, which also covers what it was compiled
//! from and for, is right.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::limits::{ARTIFACT_BYTES_MAX, CACHE_BYTES_MAX, CACHE_FILES_MAX};
use crate::vet;

const MAGIC: &[u8; 8] = b"genieplg";
const HEADER_BYTES: usize = 8 + 32;
const SUFFIX: &str = "cwasm";

/// What was compiled, and for which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub [u8; 32]);

impl Key {
    pub fn new(component: &[u8], engine: &[u8; 32]) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("genie plugin compile cache 1: key");
        hasher.update(engine).update(component);
        Key(*hasher.finalize().as_bytes())
    }

    fn file_name(&self) -> String {
        format!("{}.{SUFFIX}", blake3::Hash::from(self.0).to_hex())
    }

    fn seal(&self, artifact: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(artifact);
        *hasher.finalize().as_bytes()
    }
}

/// The directory of the cache.
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Makes the directory if need be; an error says why it cannot be used.
    pub fn open(dir: &Path) -> Result<Cache, String> {
        let shown = dir.display();
        let fail = |error: std::io::Error| format!("cannot use the cache {shown}: {error}");
        std::fs::create_dir_all(dir).map_err(fail)?;
        let metadata = std::fs::symlink_metadata(dir).map_err(fail)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(format!("the cache {shown} is not a directory of this user's own"));
        }
        if metadata.mode() & 0o077 != 0 {
            std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(fail)?;
            // What lay here while others could write is not trusted.
            if metadata.mode() & 0o022 != 0 {
                clear(dir);
            }
        }
        Ok(Cache { dir: dir.to_owned() })
    }

    /// The artifact that was kept under this key; a spoiled one is removed.
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.dir.join(key.file_name());
        let (mut bytes, _) = vet::read(&path, ARTIFACT_BYTES_MAX + HEADER_BYTES as u64).ok()?;
        let is_sound = bytes.len() >= HEADER_BYTES
            && bytes[..8] == *MAGIC
            && bytes[8..HEADER_BYTES] == key.seal(&bytes[HEADER_BYTES..]);
        if !is_sound {
            tracing::debug!("{} is spoiled and removed", path.display());
            let _ = std::fs::remove_file(&path);
            return None;
        }
        bytes.drain(..HEADER_BYTES);
        Some(bytes)
    }

    /// Keeps an artifact, and makes room for it.
    pub fn put(&self, key: &Key, artifact: &[u8]) -> std::io::Result<()> {
        self.make_room(artifact.len() as u64);
        // Another process may write the same: the last one to rename wins, with equal content.
        let unfinished = self.dir.join(format!("{}.{}.part", key.file_name(), std::process::id()));
        let write = || {
            use std::os::unix::fs::OpenOptionsExt;
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(MAGIC)?;
            file.write_all(&key.seal(artifact))?;
            file.write_all(artifact)?;
            std::fs::rename(&unfinished, self.dir.join(key.file_name()))
        };
        write().inspect_err(|_| {
            let _ = std::fs::remove_file(&unfinished);
        })
    }

    /// Removes the oldest files until `bytes` more fit.
    fn make_room(&self, bytes: u64) {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = files(&self.dir)
            .filter_map(|path| {
                let metadata = std::fs::symlink_metadata(&path).ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        files.sort();
        let mut count = files.len() + 1;
        let mut total = bytes + files.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        for (_, bytes, path) in files {
            if count <= CACHE_FILES_MAX && total <= CACHE_BYTES_MAX {
                return;
            }
            let _ = std::fs::remove_file(path);
            count -= 1;
            total -= bytes;
        }
    }
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let is_own = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == SUFFIX || extension == "part")
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(is_own)
}

fn clear(dir: &Path) {
    for path in files(dir) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoiled_or_renamed_artifact_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let cache = Cache::open(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let (key, other) = (Key::new(b"component", &[1; 32]), Key::new(b"component", &[2; 32]));
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"code").unwrap();
        assert_eq!(cache.get(&key).unwrap(), b"code");
        std::fs::copy(dir.join(key.file_name()), dir.join(other.file_name())).unwrap();
        assert_eq!(cache.get(&other), None, "sealed for another engine");
        let path = dir.join(key.file_name());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(cache.get(&key), None);
        assert!(!path.exists());
    }

    #[test]
    fn a_cache_that_others_could_write_is_emptied() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let key = Key::new(b"component", &[1; 32]);
        cache.put(&key, b"code").unwrap();
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Cache::open(root.path()).unwrap().get(&key), None);
    }
}
