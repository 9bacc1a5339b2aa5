//! The front end: what a Python process has of Genie.
//!
//! [`client`] is the session: the tape that operators are appended to, the link to the host, the
//! waits for what the program reads. It knows neither Python nor libtorch. The module `python`
//! (feature `python`) fills the shim's `GenieTape` with it and makes the extension module
//! `genie._native`; starting processes and choosing modes is `python/genie/_session.py`.

pub mod client;
#[cfg(feature = "python")]
mod python;
