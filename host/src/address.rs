//! Where a host or a node listens, as people write it: `unix:PATH`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Address(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Address(path.into())),
            _ => Err(format!(
                "{text:?} is no address; write unix:PATH, for example unix:/run/me/genie.sock"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed_alike() {
        assert_eq!("unix:/a/b".parse::<Address>().unwrap().to_string(), "unix:/a/b");
        for wrong in ["", "unix:", "/a/b", "tcp:1.2.3.4:5"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
