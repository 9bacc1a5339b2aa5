//! Whom an attempt to connect is accounted to.

use std::net::IpAddr;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// This machine, by a way that only the user's own processes have: no limits but the places.
    Here,
    /// An address that its sender has not shown to be at: any packet can carry it.
    Unproven,
    V4([u8; 4]),
    /// The network half of an address: who has one address of it has all of them.
    V6([u8; 8]),
}

impl Source {
    /// `None`: a peer without an address is on this machine.
    pub fn of(address: Option<IpAddr>) -> Source {
        match address.map(|address| address.to_canonical()) {
            None => Source::Here,
            Some(IpAddr::V4(address)) => Source::V4(address.octets()),
            Some(IpAddr::V6(address)) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Source::V6([a, b, c, d, e, f, g, h])
            }
        }
    }

    /// Whether somebody is known to be there, who can be held to limits and remembered.
    pub(super) fn is_address(self) -> bool {
        matches!(self, Source::V4(_) | Source::V6(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_mapped_addresses_are_one_source() {
        let of = |text: &str| Source::of(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(Source::of(None), Source::Here);
        assert!(!Source::Here.is_address() && !Source::Unproven.is_address());
    }
}
