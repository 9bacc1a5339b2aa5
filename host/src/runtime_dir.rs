//! The private directory for a host's sockets.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Context;
use tempfile::TempDir;

/// The longest directory whose sockets' paths still fit an address.
const BASE_BYTES_MAX: usize = 80;

/// Makes a fresh directory of mode 0700 under `base` (`XDG_RUNTIME_DIR`) or, where that cannot be
/// used, under the directory for temporary files. It goes with the returned value.
pub fn create(base: Option<OsString>) -> anyhow::Result<TempDir> {
    let uid = rustix::process::geteuid().as_raw();
    let mut bases: Vec<PathBuf> = base.into_iter().map(PathBuf::from).collect();
    bases.push(std::env::temp_dir());
    bases.push(PathBuf::from("/tmp"));
    bases.retain(|base| base.as_os_str().len() <= BASE_BYTES_MAX);
    let mut last = None;
    for base in &bases {
        let made = tempfile::Builder::new()
            .prefix(&format!("genie-{uid}-"))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(base);
        match made {
            Ok(dir) => return Ok(dir),
            Err(error) => last = Some((base, error)),
        }
    }
    let (base, error) = last.context("every directory for sockets has too long a name")?;
    Err(error).with_context(|| {
        format!(
            "cannot make a directory for sockets in {}; set XDG_RUNTIME_DIR to a directory that \
             you can write to",
            base.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_goes_with_its_value() {
        let dir = create(Some("/does/not/exist".into())).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(dir);
        assert!(!path.exists());
    }
}
