//! Certificates of hosts and nodes, and the mutual TLS that they speak.
//!
//! A *certificate directory* holds `ca.pem` (who is trusted; several authorities while one is
//! replaced by the next), `cert.pem` (this side's chain) and `key.pem` (mode 0600). A certificate
//! says who its holder is by a URI: `genie://host/NAME` or `genie://node/NAME`. [`ReloadingCerts`]
//! reads a directory, follows it when its files change, and makes the configurations of rustls:
//! TLS 1.3 only, both sides prove who they are, no session is resumed (a resumed one would skip
//! the check of the client's certificate).
//!
//! The crate opens no connection and starts no thread. Feature `issue` adds a small certificate
//! authority (`issue`, `store`). Start reading at [`ReloadingCerts`], then `verify.rs`.

mod describe;
mod error;
mod files;
mod identity;
#[cfg(feature = "issue")]
pub mod issue;
mod listen;
mod reload;
#[cfg(feature = "issue")]
pub mod store;
mod verify;

pub use describe::{describe, describe_alert};
pub use error::TlsError;
pub use files::{CA_FILE, CERT_FILE, CertFiles, KEY_FILE, default_dir};
pub use identity::{Identity, Role, identity, peer_identity, server_name};
pub use listen::may_listen;
pub use reload::{ReloadingCerts, Warn};
pub use rustls;
pub use verify::Accept;

/// A moment as people read it: `2026-11-22 16:05 UTC`.
pub fn date(unix_s: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(unix_s) {
        Ok(at) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02} UTC",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute()
        ),
        Err(_) => format!("{unix_s} s after 1970"),
    }
}
