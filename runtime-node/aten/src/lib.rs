//! The one crate that links libtorch.
//!
//! `cpp/` holds the shim: [`execute`] runs templates (the node), [`capture`] registers the device
//! `remote_accelerator` and turns operators into templates and records (the front end). Both use
//! one codec, `cpp/codec.h`, whose format is `genie_wire::value`.
//!
//! This crate declares the C boundary and wraps ownership; it never does I/O.

#[cfg(feature = "capture")]
pub mod capture;
#[cfg(feature = "execute")]
pub mod execute;
mod status;

pub use status::{AtenError, GenieError};
