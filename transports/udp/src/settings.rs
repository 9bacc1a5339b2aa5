//! The settings of this transport, from [`Options::settings`].

use std::net::{SocketAddr, ToSocketAddrs};

use genie_transport::transport::{Options, Result};

use crate::invalid;

/// The most flows a connection may have.
pub const FLOWS_MAX: u16 = 64;
/// Names and meanings of all settings, for people.
pub const SETTINGS: [(&str, &str); 5] = [
    ("flows", "UDP source ports of the connecting end, 1 to 64: they spread over equal-cost paths"),
    (
        "mtu",
        "bytes of the largest IP packet, 576 to 65535; the route's interface decides if absent",
    ),
    ("ports", "A-B: a listener with port 0 takes a free port of this range"),
    ("buffer", "bytes of each socket's buffers; 8 MiB if absent"),
    ("rate_mbit", "sending rate never exceeded, in Mbit/s; no limit if absent"),
];

/// Of each socket's buffers: 13 ms at 5 Gb/s.
const BUFFER_BYTES: usize = 8 << 20;
const BUFFER_BYTES_MAX: usize = 1 << 30;
/// More source ports use more of equal-cost paths, and each costs a socket to look after and splits
/// the batches. What is gained was not measured yet on a network with several paths.
const FLOWS: u16 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    flows: Option<u16>,
    /// Bytes of the largest IP packet.
    pub mtu: Option<u32>,
    pub ports: Option<(u16, u16)>,
    pub buffer_bytes: usize,
    /// Bytes a second.
    pub rate_max: Option<u64>,
}

impl Settings {
    pub fn read(options: &Options) -> Result<Self> {
        let mut settings = Settings {
            flows: None,
            mtu: None,
            ports: None,
            buffer_bytes: BUFFER_BYTES,
            rate_max: None,
        };
        for (name, value) in &options.settings {
            match name.as_str() {
                "flows" => settings.flows = Some(number(name, value, 1, FLOWS_MAX.into())? as u16),
                "mtu" => settings.mtu = Some(number(name, value, 576, 65_535)? as u32),
                "ports" => settings.ports = Some(ports(value)?),
                "buffer" => {
                    let most = BUFFER_BYTES_MAX as u64;
                    settings.buffer_bytes = number(name, value, 1 << 16, most)? as usize;
                }
                "rate_mbit" => {
                    let rate = number(name, value, 1, 1_000_000)? * 1_000_000 / 8;
                    settings.rate_max = Some(rate);
                }
                _ => {
                    let known: Vec<_> = SETTINGS.iter().map(|(name, _)| *name).collect();
                    let known = known.join(", ");
                    return Err(invalid(format!("no setting {name:?}; there are {known}")));
                }
            }
        }
        Ok(settings)
    }

    /// How many flows to use.
    pub fn flows(&self) -> u16 {
        self.flows.unwrap_or(FLOWS)
    }
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(invalid(format!("{name}={value:?}: give a number from {least} to {most}"))),
    }
}

fn ports(value: &str) -> Result<(u16, u16)> {
    let range = value.split_once('-').and_then(|(first, last)| {
        let range: (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (range.0 > 0 && range.0 <= range.1).then_some(range)
    });
    range.ok_or_else(|| invalid(format!("ports={value:?}: give a range such as 40000-40100")))
}

/// The first address that `HOST:PORT` names.
pub(crate) fn resolve(address: &str) -> Result<SocketAddr> {
    let wrong = |why: &dyn std::fmt::Display| {
        invalid(format!("the address {address:?} is not HOST:PORT: {why}"))
    };
    let mut found = address.to_socket_addrs().map_err(|error| wrong(&error))?;
    found.next().ok_or_else(|| wrong(&"the name has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<Settings> {
        let mut options = Options::default();
        options.settings.extend(settings.iter().map(|(n, v)| (n.to_string(), v.to_string())));
        Settings::read(&options)
    }

    #[test]
    fn settings_are_read() {
        let all = [("flows", "4"), ("mtu", "9000"), ("ports", "5-9"), ("rate_mbit", "8")];
        let settings = read(&all).unwrap();
        assert_eq!(settings.flows(), 4);
        assert_eq!(settings.mtu, Some(9000));
        assert_eq!(settings.ports, Some((5, 9)));
        assert_eq!(settings.rate_max, Some(1_000_000));
        assert_eq!(read(&[]).unwrap().flows(), 1);
    }

    #[test]
    fn wrong_settings_are_refused_with_their_name() {
        for (name, value) in [
            ("flows", "0"),
            ("flows", "65"),
            ("mtu", "100"),
            ("ports", "9-5"),
            ("ports", "0-5"),
            ("ports", "5"),
            ("buffer", "-1"),
            ("speed", "9"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.message.contains(name), "{error}");
        }
    }
}
