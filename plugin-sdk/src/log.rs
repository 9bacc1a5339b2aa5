//! Lines in the host's log, under the plugin's name. Natively they go to standard error.

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
}

pub fn debug(message: &str) {
    crate::guest::write_log(Level::Debug, message);
}

pub fn info(message: &str) {
    crate::guest::write_log(Level::Info, message);
}

pub fn warn(message: &str) {
    crate::guest::write_log(Level::Warn, message);
}
