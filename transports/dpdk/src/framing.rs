//! Ethernet, IPv4, UDP and ARP: just what carries bulk datagrams. Pure: bytes in, bytes out.
//!
//! No VLAN tags, no IPv6, no fragments: a frame that has them is not ours.

use std::net::{Ipv4Addr, SocketAddrV4};

pub const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Everything before the payload of a frame that we send.
pub const HEADER_BYTES: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// What an interface's MTU loses to IPv4 and UDP.
pub const IP_UDP_BYTES: usize = IPV4_BYTES + UDP_BYTES;
const ARP_BYTES: usize = 28;
/// A whole ARP frame; devices pad it to the wire's 60 bytes.
pub const ARP_FRAME_BYTES: usize = ETHERNET_BYTES + ARP_BYTES;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const PROTOCOL_UDP: u8 = 17;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_OR_OFFSET: u16 = 0x3fff;
const HOPS: u8 = 64;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// The address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Reads `02:00:00:00:00:01`.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.is_empty() || part.len() > 2 {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }

    /// Whether one interface can have it: neither broadcast, multicast nor zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The sum of the internet checksum (RFC 1071) over pieces of any length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// Adds the bytes that follow those added before.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.sum += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        // Sums of 32-bit words in 64 bits: carries are folded at the end (RFC 1071, section 2).
        let mut words = bytes.chunks_exact(4);
        let mut sum = 0u64;
        for word in &mut words {
            sum += u64::from(u32::from_be_bytes(word.try_into().expect("chunks of 4")));
        }
        let rest = words.remainder();
        let mut last = [0u8; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_be_bytes(last));
        self.odd = rest.len() % 2 == 1;
        self.sum = fold32(self.sum + fold32(sum));
    }

    /// The sum before it is negated, for a device that adds the rest.
    pub fn sum(self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The value of a checksum field.
    pub fn finish(self) -> u16 {
        !self.sum()
    }
}

fn fold32(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Between whom frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    pub from_mac: Mac,
    pub to_mac: Mac,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
}

/// Who fills in a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// Nobody: zero, which UDP over IPv4 allows. For payload that the processor cannot read.
    None,
    /// This is it: the sum over the payload.
    Payload(Checksum),
    /// The device, from the pseudo header's sum that is put in the field.
    Device,
}

/// The headers of one datagram of `payload` bytes. `device_ipv4`: the device sums the IP header.
pub fn headers(path: &Path, payload: usize, udp: Sum, device_ipv4: bool) -> [u8; HEADER_BYTES] {
    let mut out = [0u8; HEADER_BYTES];
    let ip_len = (IP_UDP_BYTES + payload) as u16;
    let udp_len = (UDP_BYTES + payload) as u16;
    out[0..6].copy_from_slice(&path.to_mac.0);
    out[6..12].copy_from_slice(&path.from_mac.0);
    out[12..14].copy_from_slice(&TYPE_IPV4.to_be_bytes());
    let ip = &mut out[ETHERNET_BYTES..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    ip[8] = HOPS;
    ip[9] = PROTOCOL_UDP;
    ip[12..16].copy_from_slice(&path.from.ip().octets());
    ip[16..20].copy_from_slice(&path.to.ip().octets());
    if !device_ipv4 {
        let mut sum = Checksum::default();
        sum.add(&ip[..IPV4_BYTES]);
        ip[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    }
    ip[20..22].copy_from_slice(&path.from.port().to_be_bytes());
    ip[22..24].copy_from_slice(&path.to.port().to_be_bytes());
    ip[24..26].copy_from_slice(&udp_len.to_be_bytes());
    let field = match udp {
        Sum::None => 0,
        Sum::Device => pseudo(*path.from.ip(), *path.to.ip(), udp_len).sum(),
        Sum::Payload(payload) => {
            let mut sum = pseudo(*path.from.ip(), *path.to.ip(), udp_len);
            sum.add(&ip[20..28]);
            sum.sum = fold32(sum.sum + payload.sum);
            // Zero would say "no checksum": its other form is sent instead (RFC 768).
            match sum.finish() {
                0 => 0xffff,
                field => field,
            }
        }
    };
    out[HEADER_BYTES - 2..].copy_from_slice(&field.to_be_bytes());
    out
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, udp_len: u16) -> Checksum {
    let mut sum = Checksum::default();
    sum.add(&from.octets());
    sum.add(&to.octets());
    sum.add(&[0, PROTOCOL_UDP]);
    sum.add(&udp_len.to_be_bytes());
    sum
}

/// A question for, or an answer with, the interface address of an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    pub is_request: bool,
    pub from_mac: Mac,
    pub from: Ipv4Addr,
    /// Unknown (zero) in a request.
    pub to_mac: Mac,
    pub to: Ipv4Addr,
}

impl Arp {
    /// The frame: a request goes to everybody, an answer to who asked.
    pub fn frame(&self) -> [u8; ARP_FRAME_BYTES] {
        let mut out = [0u8; ARP_FRAME_BYTES];
        let (to, operation) =
            if self.is_request { (Mac::BROADCAST, ARP_REQUEST) } else { (self.to_mac, ARP_REPLY) };
        out[0..6].copy_from_slice(&to.0);
        out[6..12].copy_from_slice(&self.from_mac.0);
        out[12..14].copy_from_slice(&TYPE_ARP.to_be_bytes());
        out[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        out[20..22].copy_from_slice(&operation.to_be_bytes());
        out[22..28].copy_from_slice(&self.from_mac.0);
        out[28..32].copy_from_slice(&self.from.octets());
        out[32..38].copy_from_slice(&self.to_mac.0);
        out[38..42].copy_from_slice(&self.to.octets());
        out
    }
}

/// What a frame is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    Arp(Arp),
    Datagram(Datagram),
    /// Well formed or not: nothing this transport reads.
    Other(NotOurs),
}

/// A UDP datagram; its payload is `frame[payload_at..payload_at + payload_len]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    pub from_mac: Mac,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload_at: usize,
    pub payload_len: usize,
}

/// Why a frame is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOurs {
    Truncated,
    OtherProtocol,
    Fragment,
    BadChecksum,
}

/// Reads a frame. `sums`: whether to check sums here (not when the device did).
pub fn parse(frame: &[u8], sums: bool) -> Frame {
    read(frame, sums).unwrap_or_else(Frame::Other)
}

fn read(frame: &[u8], sums: bool) -> Result<Frame, NotOurs> {
    use NotOurs::*;
    let (ethernet, body) = frame.split_at_checked(ETHERNET_BYTES).ok_or(Truncated)?;
    let from_mac = Mac(ethernet[6..12].try_into().expect("6 bytes"));
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        TYPE_ARP => read_arp(body).map(Frame::Arp),
        TYPE_IPV4 => read_udp(from_mac, body, sums).map(Frame::Datagram),
        _ => Err(OtherProtocol),
    }
}

fn read_arp(body: &[u8]) -> Result<Arp, NotOurs> {
    let body: &[u8; ARP_BYTES] = body.first_chunk().ok_or(NotOurs::Truncated)?;
    if body[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(NotOurs::OtherProtocol);
    }
    let is_request = match u16::from_be_bytes([body[6], body[7]]) {
        ARP_REQUEST => true,
        ARP_REPLY => false,
        _ => return Err(NotOurs::OtherProtocol),
    };
    Ok(Arp {
        is_request,
        from_mac: Mac(body[8..14].try_into().expect("6 bytes")),
        from: address(&body[14..18]),
        to_mac: Mac(body[18..24].try_into().expect("6 bytes")),
        to: address(&body[24..28]),
    })
}

fn read_udp(from_mac: Mac, body: &[u8], sums: bool) -> Result<Datagram, NotOurs> {
    use NotOurs::*;
    let first = *body.first().ok_or(Truncated)?;
    let header_len = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header_len < IPV4_BYTES {
        return Err(OtherProtocol);
    }
    let header = body.get(..header_len).ok_or(Truncated)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // What follows the IP packet is padding of the wire.
    let udp = body.get(header_len..total).ok_or(Truncated)?;
    if header[9] != PROTOCOL_UDP {
        return Err(OtherProtocol);
    }
    if u16::from_be_bytes([header[6], header[7]]) & MORE_OR_OFFSET != 0 {
        return Err(Fragment);
    }
    let (udp_header, _) = udp.split_at_checked(UDP_BYTES).ok_or(Truncated)?;
    let udp_len = usize::from(u16::from_be_bytes([udp_header[4], udp_header[5]]));
    if udp_len < UDP_BYTES || udp_len > udp.len() {
        return Err(Truncated);
    }
    let (from, to) = (address(&header[12..16]), address(&header[16..20]));
    if sums {
        let mut sum = Checksum::default();
        sum.add(header);
        if sum.finish() != 0 {
            return Err(BadChecksum);
        }
        let stated = u16::from_be_bytes([udp_header[6], udp_header[7]]);
        if stated != 0 {
            let mut sum = pseudo(from, to, udp_len as u16);
            sum.add(&udp[..udp_len]);
            if sum.finish() != 0 {
                return Err(BadChecksum);
            }
        }
    }
    Ok(Datagram {
        from_mac,
        from: SocketAddrV4::new(from, u16::from_be_bytes([udp_header[0], udp_header[1]])),
        to: SocketAddrV4::new(to, u16::from_be_bytes([udp_header[2], udp_header[3]])),
        payload_at: ETHERNET_BYTES + header_len + UDP_BYTES,
        payload_len: udp_len - UDP_BYTES,
    })
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(bytes).expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: Path = Path {
        from_mac: Mac([2, 0, 0, 0, 0, 1]),
        to_mac: Mac([2, 0, 0, 0, 0, 2]),
        from: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4000),
        to: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 5000),
    };

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut sum = Checksum::default();
        sum.add(payload);
        let mut frame = headers(&PATH, payload.len(), Sum::Payload(sum), false).to_vec();
        frame.extend_from_slice(payload);
        frame
    }

    /// The plain definition: 16-bit words, big endian, the last padded with zero.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_ip_header_of_a_known_packet_has_its_known_sum() {
        // RFC 1071's own example: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2.
        let mut sum = Checksum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.sum(), 0xddf2);
    }

    #[test]
    fn addresses_are_read_and_shown() {
        assert_eq!(Mac::parse("02:00:0a:00:00:ff"), Some(Mac([2, 0, 10, 0, 0, 255])));
        assert_eq!(Mac([2, 0, 10, 0, 0, 255]).to_string(), "02:00:0a:00:00:ff");
        for wrong in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:00", "+2:0:0:0:0:0:0"] {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
        assert!(!Mac::BROADCAST.is_unicast());
    }

    proptest! {
        #[test]
        fn sums_in_pieces_are_the_sum_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200,
        ) {
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut sum = Checksum::default();
            sum.add(a);
            sum.add(b);
            prop_assert_eq!(sum.finish(), slow_sum(&bytes));
        }

        #[test]
        fn a_datagram_comes_out_as_it_went_in(
            payload in proptest::collection::vec(any::<u8>(), 0..2000), padding in 0usize..40,
        ) {
            let mut bytes = frame(&payload);
            bytes.extend(std::iter::repeat_n(0xaa, padding));
            let Frame::Datagram(read) = parse(&bytes, true) else { panic!("not a datagram") };
            prop_assert_eq!((read.from, read.to), (PATH.from, PATH.to));
            prop_assert_eq!(&bytes[read.payload_at..][..read.payload_len], &payload[..]);
        }

        #[test]
        fn one_flipped_bit_is_no_datagram_with_the_same_content(
            payload in proptest::collection::vec(any::<u8>(), 1..200), at: usize,
        ) {
            let mut bytes = frame(&payload);
            // Behind the Ethernet header, which has the wire's own check. A flip that clears the
            // UDP sum entirely would read as "no sum"; one bit does that only to a power of two.
            let at = ETHERNET_BYTES * 8 + at % ((bytes.len() - ETHERNET_BYTES) * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            if let Frame::Datagram(_) = parse(&bytes, true) {
                prop_assert_eq!(&bytes[HEADER_BYTES - 2..HEADER_BYTES], &[0, 0]);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            parse(&bytes, true);
        }

        #[test]
        fn damaged_frames_stay_inside_their_bytes(
            payload in proptest::collection::vec(any::<u8>(), 0..60),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
            cut: usize,
        ) {
            let mut bytes = frame(&payload);
            for (at, value) in changes {
                let len = bytes.len();
                bytes[at % len] = value;
            }
            bytes.truncate(cut % (bytes.len() + 1));
            if let Frame::Datagram(read) = parse(&bytes, false) {
                prop_assert!(read.payload_at + read.payload_len <= bytes.len());
            }
        }

        #[test]
        fn arp_comes_out_as_it_went_in(is_request: bool, a: [u8; 6], b: [u8; 6], c: u32, d: u32) {
            let arp = Arp { is_request, from_mac: Mac(a), from: c.into(), to_mac: Mac(b), to: d.into() };
            prop_assert_eq!(parse(&arp.frame(), true), Frame::Arp(arp));
        }
    }
}
