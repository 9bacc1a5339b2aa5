//! Finding the node's program.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const NAME: &str = "genie-node";

/// The node's program: `chosen`, next to this one, or on `path`; or a message that says where
/// was looked and what to do.
pub fn node_binary(
    chosen: Option<&Path>,
    own: Option<&Path>,
    path: &OsStr,
) -> Result<PathBuf, String> {
    if let Some(chosen) = chosen {
        return match is_program(chosen) {
            true => Ok(chosen.to_owned()),
            false => Err(format!(
                "the node's program {} does not exist or cannot be run; correct --node-binary \
                 (or GENIE_NODE_BINARY)",
                chosen.display()
            )),
        };
    }
    let mut looked = Vec::new();
    if let Some(beside) = own.and_then(Path::parent) {
        looked.push(beside.join(NAME));
    }
    looked.extend(std::env::split_paths(path).map(|dir| dir.join(NAME)));
    if let Some(found) = looked.iter().find(|path| is_program(path)) {
        return Ok(found.clone());
    }
    let places: Vec<String> = looked
        .iter()
        .filter_map(|path| path.parent())
        .map(|dir| dir.display().to_string())
        .collect();
    Err(format!(
        "no program {NAME} was found in {}; build it (`make build`), put it on PATH, or name it \
         by --node-binary or GENIE_NODE_BINARY",
        places.join(", ")
    ))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn the_choice_comes_first_then_the_neighbour_then_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let (beside, on_path) = (dir.path().join("a"), dir.path().join("b"));
        let own = beside.join("genie-host");
        let find = |chosen: Option<&Path>| node_binary(chosen, Some(&own), on_path.as_os_str());
        let missing = find(None).unwrap_err();
        assert!(missing.contains("make build") && missing.contains(on_path.to_str().unwrap()));
        for place in [&on_path, &beside] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join(NAME), b"").unwrap();
            assert_ne!(find(None).ok(), Some(place.join(NAME)), "it cannot be run yet");
            std::fs::set_permissions(place.join(NAME), Permissions::from_mode(0o755)).unwrap();
            assert_eq!(find(None).unwrap(), place.join(NAME));
        }
        assert!(find(Some(Path::new("/none"))).unwrap_err().contains("--node-binary"));
    }
}
