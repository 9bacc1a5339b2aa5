use std::net::IpAddr;

use crate::error::TlsError;

/// Without certificates a node listens only where no other machine can reach it.
pub fn may_listen(address: IpAddr, has_certs: bool) -> Result<(), TlsError> {
    if has_certs || address.to_canonical().is_loopback() {
        return Ok(());
    }
    Err(TlsError::ListenWithoutCerts { address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_without_certificates() {
        for (address, open) in [
            ("127.0.0.1", true),
            ("127.8.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("fe80::1", false),
        ] {
            let ip = address.parse().unwrap();
            assert_eq!(may_listen(ip, false).is_ok(), open, "{address}");
            assert!(may_listen(ip, true).is_ok());
        }
    }
}
