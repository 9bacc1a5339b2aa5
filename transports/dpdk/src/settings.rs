//! The settings of this transport, as strings from the command line or a file.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::{DpdkError, Result};
use crate::framing::{ETHERNET_BYTES, IP_UDP_BYTES, Mac};

/// Names of all settings with what they mean; anything else is refused.
pub const NAMES: &[(&str, &str)] = &[
    ("device", "net_af_packet0,iface=eth1 or another vdev of DPDK, or a PCI address"),
    ("ip", "our own IPv4 address on the device with its prefix, such as 10.0.0.2/24"),
    ("gateway", "the router for peers outside the prefix"),
    ("peer_mac", "the peer's interface address, where ARP does not reach it"),
    ("mtu", "bytes of an IP packet; what the device has when absent"),
    ("checksum", "auto (the device sums where it can), on (we do) or off (none; bulk checks)"),
    ("flows", "UDP source ports to spread over equal-cost paths, 1 to 64"),
    ("rate_mbps_max", "never send faster than this"),
    ("eal", "further arguments for EAL, separated by spaces"),
    ("hugepages", "yes to use them; needed by no software device"),
    ("memory_mb", "memory for packet buffers (default 256)"),
    ("cores", "CPUs the DPDK thread may run on, such as 0-1 or 3 (default: any of the process)"),
    ("spin_us", "how long the thread polls after the last packet before it sleeps (default 20)"),
    ("sleep_us_max", "the longest sleep without interrupts (default 1000)"),
    (
        "zero_copy",
        "auto (trusted payloads, where the device can), yes (refuse a device that cannot) or no",
    ),
    ("interrupts", "yes to sleep until the device interrupts, where its driver can"),
];

/// UDP source ports of one connection.
pub const FLOWS_MAX: u16 = 64;
const MTU_MIN: u16 = 576;
/// Jumbo frames are what Ethernet carries; software devices could more, but mbufs are sized by it.
pub const MTU_MAX: u16 = 9600;
const MEMORY_MB_MAX: u32 = 1 << 16;
const SLEEP_US_MAX: u64 = 100_000;

/// Who sums UDP payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    Auto,
    On,
    Off,
}

/// Whether payloads are sent from where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    Auto,
    Demanded,
    Off,
}

/// How DPDK itself is started; the same for all devices of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalSettings {
    pub extra: Vec<String>,
    pub hugepages: bool,
    pub memory_mb: u32,
    pub cores: Option<String>,
    pub spin: Duration,
    pub sleep_max: Duration,
    /// The device is on the PCI bus: only that one is looked at.
    pub pci: Option<String>,
}

/// One device, as this process uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// As EAL takes it, completed with what the traps of its driver demand.
    pub device: String,
    pub ip: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub mtu: Option<u16>,
    pub checksums: Checksums,
    pub interrupts: bool,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub eal: EalSettings,
    pub device: DeviceSettings,
    pub peer_mac: Option<Mac>,
    pub flows: u16,
    pub zero_copy: ZeroCopy,
    /// Bytes a second.
    pub rate_max: Option<u64>,
}

impl Settings {
    pub fn read(given: &BTreeMap<String, String>) -> Result<Settings> {
        if let Some(unknown) = given.keys().find(|name| !NAMES.iter().any(|(n, _)| n == name)) {
            return Err(DpdkError::Setting {
                name: "(unknown)",
                value: unknown.clone(),
                expected: "docs/dpdk.md lists the settings of this transport",
            });
        }
        let reader = Reader(given);
        let mtu = reader.number("mtu", u64::from(MTU_MIN), u64::from(MTU_MAX))?.map(|n| n as u16);
        let device = reader.required("device")?;
        let pci = is_pci_address(device).then(|| device.to_owned());
        let (ip, prefix) = reader.read("ip", read_network)?.ok_or_else(|| missing("ip"))?;
        Ok(Settings {
            eal: EalSettings {
                extra: reader
                    .get("eal")
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
                hugepages: reader.yes("hugepages")?,
                memory_mb: reader.number("memory_mb", 32, MEMORY_MB_MAX.into())?.unwrap_or(256)
                    as u32,
                cores: reader.read("cores", read_cores)?,
                spin: Duration::from_micros(
                    reader.number("spin_us", 0, SLEEP_US_MAX)?.unwrap_or(20),
                ),
                sleep_max: Duration::from_micros(
                    reader.number("sleep_us_max", 1, SLEEP_US_MAX)?.unwrap_or(1000),
                ),
                pci,
            },
            device: DeviceSettings {
                device: complete(device, mtu),
                ip,
                prefix,
                gateway: reader.read("gateway", |text| text.parse().ok())?,
                mtu,
                checksums: reader
                    .read("checksum", |text| match text {
                        "auto" => Some(Checksums::Auto),
                        "on" => Some(Checksums::On),
                        "off" => Some(Checksums::Off),
                        _ => None,
                    })?
                    .unwrap_or(Checksums::Auto),
                interrupts: reader.yes("interrupts")?,
            },
            peer_mac: reader
                .read("peer_mac", |text| Mac::parse(text).filter(|mac| mac.is_unicast()))?,
            flows: reader.number("flows", 1, FLOWS_MAX.into())?.unwrap_or(1) as u16,
            zero_copy: reader
                .read("zero_copy", |text| match text {
                    "auto" => Some(ZeroCopy::Auto),
                    "yes" => Some(ZeroCopy::Demanded),
                    "no" => Some(ZeroCopy::Off),
                    _ => None,
                })?
                .unwrap_or(ZeroCopy::Auto),
            rate_max: reader
                .number("rate_mbps_max", 1, 10_000_000)?
                .map(|mbps| mbps * 1_000_000 / 8),
        })
    }
}

impl DeviceSettings {
    /// Where a packet for `peer` goes next: itself on our link, the gateway otherwise.
    pub fn next_hop(&self, peer: Ipv4Addr) -> Option<Ipv4Addr> {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        let near = u32::from(self.ip) & mask == u32::from(peer) & mask;
        if near { Some(peer) } else { self.gateway }
    }
}

/// The payload of one datagram on a device with this MTU.
pub fn datagram_bytes(mtu: u16) -> usize {
    usize::from(mtu) - IP_UDP_BYTES
}

/// The frame of one datagram on a device with this MTU.
pub fn frame_bytes(mtu: u16) -> usize {
    usize::from(mtu) + ETHERNET_BYTES
}

struct Reader<'a>(&'a BTreeMap<String, String>);

impl Reader<'_> {
    fn get(&self, name: &'static str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn required(&self, name: &'static str) -> Result<&str> {
        self.get(name).filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
    }

    fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| DpdkError::Setting {
            name,
            value: value.to_owned(),
            expected: meaning(name),
        })
    }

    fn number(&self, name: &'static str, least: u64, most: u64) -> Result<Option<u64>> {
        self.read(name, |text| text.parse().ok().filter(|n| (least..=most).contains(n)))
    }

    fn yes(&self, name: &'static str) -> Result<bool> {
        let yes = self.read(name, |text| match text {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        })?;
        Ok(yes.unwrap_or(false))
    }
}

fn missing(name: &'static str) -> DpdkError {
    DpdkError::Missing { name, expected: meaning(name) }
}

fn meaning(name: &str) -> &'static str {
    NAMES.iter().find(|(n, _)| *n == name).map_or("", |(_, meaning)| meaning)
}

fn read_network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let ip: Ipv4Addr = ip.parse().ok()?;
    (!ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()).then_some((ip, prefix))
}

fn read_cores(text: &str) -> Option<String> {
    let valid = text.split(',').all(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(a), Ok(b)) if a <= b)
    });
    valid.then(|| text.to_owned())
}

/// `0000:01:00.0` or `01:00.0`, perhaps with arguments of the driver behind a comma.
pub fn is_pci_address(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or_default();
    let Some((bus, function)) = address.rsplit_once('.') else { return false };
    let parts: Vec<&str> = bus.split(':').collect();
    (2..=3).contains(&parts.len())
        && parts.iter().all(|part| u32::from_str_radix(part, 16).is_ok())
        && function.len() == 1
        && u32::from_str_radix(function, 16).is_ok()
}

/// Adds the arguments without which a driver does something surprising.
fn complete(device: &str, mtu: Option<u16>) -> String {
    let mut device = device.to_owned();
    if device == "net_ring" {
        return "net_ring0".to_owned();
    }
    if device.starts_with("net_af_packet") {
        let mut add = |name: &str, value: &str| {
            if !device.split(',').any(|argument| argument.starts_with(&format!("{name}="))) {
                device.push_str(&format!(",{name}={value}"));
            }
        };
        // The default skips the queueing discipline, and so every shaping and its statistics.
        add("qdisc_bypass", "0");
        if mtu.is_some_and(|mtu| mtu > 1500) {
            // The default frame of the ring is 2 KiB; blocks are whole pages and whole frames.
            add("blocksz", "36864");
            add("framesz", "9216");
        }
    }
    device
}

/// The kernel's interface under a device, if it lies on one whose MTU it takes over.
pub fn interface_of(device: &str) -> Option<&str> {
    let arguments = device.starts_with("net_af_packet").then(|| device.split(','))?;
    arguments.filter_map(|argument| argument.strip_prefix("iface=")).next()
}

/// The socket that a driver makes for itself, which a predecessor may have left behind.
pub fn socket_made_by(device: &str) -> Option<&str> {
    let argument =
        |name: &str| device.split(',').find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    if device.starts_with("net_vhost") {
        return if argument("client") == Some("1") { None } else { argument("iface") };
    }
    if device.starts_with("net_memif") {
        let server = matches!(argument("role"), Some("server" | "master"));
        return argument("socket").filter(|socket| server && !socket.starts_with('@'));
    }
    if device.starts_with("net_virtio_user") {
        return argument("path").filter(|_| argument("server") == Some("1"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings> {
        let mut given: BTreeMap<String, String> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        given.entry("device".to_owned()).or_insert("net_ring0".to_owned());
        given.entry("ip".to_owned()).or_insert("10.0.0.1/24".to_owned());
        Settings::read(&given)
    }

    #[test]
    fn defaults_need_only_a_device_and_an_address() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.device.device, "net_ring0");
        assert_eq!((settings.device.ip, settings.device.prefix), ([10, 0, 0, 1].into(), 24));
        assert_eq!(settings.eal.memory_mb, 256);
        assert_eq!((settings.flows, settings.eal.pci), (1, None));
    }

    #[test]
    fn each_wrong_value_is_named() {
        for (name, value) in [
            ("ip", "10.0.0.0.1"),
            ("ip", "10.0.0.1/33"),
            ("ip", "224.0.0.1"),
            ("mtu", "100"),
            ("mtu", "65000"),
            ("mtu", "many"),
            ("flows", "0"),
            ("checksum", "yes"),
            ("zero_copy", "on"),
            ("cores", "3-1"),
            ("cores", "a"),
            ("peer_mac", "ff:ff:ff:ff:ff:ff"),
            ("hugepages", "1"),
            ("sleep_us_max", "0"),
            ("gateway", "router"),
        ] {
            let error = read(&[(name, value)]).expect_err(value).to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        assert!(read(&[("devise", "x")]).unwrap_err().to_string().contains("devise"));
        let missing = Settings::read(&BTreeMap::new()).unwrap_err().to_string();
        assert!(missing.contains("device"), "{missing}");
    }

    #[test]
    fn af_packet_gets_shaping_and_jumbo_frames() {
        let device = |pairs: &[(&str, &str)]| read(pairs).unwrap().device.device;
        let plain = ("device", "net_af_packet0,iface=v0");
        assert_eq!(device(&[plain]), "net_af_packet0,iface=v0,qdisc_bypass=0");
        assert_eq!(
            device(&[plain, ("mtu", "9000")]),
            "net_af_packet0,iface=v0,qdisc_bypass=0,blocksz=36864,framesz=9216"
        );
        let own = ("device", "net_af_packet0,iface=v0,qdisc_bypass=1,blocksz=65536,framesz=16384");
        assert_eq!(device(&[own, ("mtu", "9000")]), own.1);
    }

    #[test]
    fn pci_addresses_are_told_from_names() {
        for (device, is) in [
            ("0000:01:00.0", true),
            ("01:00.1", true),
            ("0000:01:00.0,dv_flow_en=1", true),
            ("net_ring0", false),
            ("net_af_packet0,iface=a.0", false),
            ("01.0", false),
            ("", false),
        ] {
            assert_eq!(is_pci_address(device), is, "{device}");
        }
    }

    #[test]
    fn sockets_of_servers_are_known() {
        for (device, socket) in [
            ("net_vhost0,iface=/tmp/a", Some("/tmp/a")),
            ("net_vhost0,iface=/tmp/a,client=1", None),
            ("net_virtio_user0,path=/tmp/a", None),
            ("net_virtio_user0,path=/tmp/a,server=1", Some("/tmp/a")),
            ("net_memif0,role=server,socket=/tmp/m", Some("/tmp/m")),
            ("net_memif0,role=server,socket=@abstract", None),
            ("net_memif0,role=client,socket=/tmp/m", None),
            ("net_af_packet0,iface=/tmp/a", None),
        ] {
            assert_eq!(socket_made_by(device), socket, "{device}");
        }
    }

    #[test]
    fn peers_off_the_link_go_through_the_gateway() {
        let at = |ip: &str, gateway: Option<&str>| {
            let mut pairs = vec![("ip", ip)];
            pairs.extend(gateway.map(|gateway| ("gateway", gateway)));
            read(&pairs).unwrap().device
        };
        let near = [10, 0, 0, 9].into();
        let far = [10, 0, 1, 9].into();
        assert_eq!(at("10.0.0.1/24", None).next_hop(near), Some(near));
        assert_eq!(at("10.0.0.1/24", None).next_hop(far), None);
        let gateway = Some([10, 0, 0, 254].into());
        assert_eq!(at("10.0.0.1/24", Some("10.0.0.254")).next_hop(far), gateway);
        assert_eq!(at("10.0.0.1/0", None).next_hop(far), Some(far));
        assert_eq!(at("10.0.0.1/32", Some("10.0.0.254")).next_hop(near), gateway);
    }
}
