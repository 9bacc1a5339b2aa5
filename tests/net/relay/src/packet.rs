//! As much of IPv4, UDP and TCP as faults need: what a packet is, and a bit flipped so that no
//! checksum below the protocol under test notices.

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The transports that faults can be aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Where the parts of a packet lie. Invariant: every offset is within the packet it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub protocol: Protocol,
    pub ports: [u16; 2],
    checksum_at: usize,
    payload_at: usize,
    end: usize,
}

impl Shape {
    /// The shape of an unfragmented IPv4 packet that carries UDP or TCP.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let end = usize::from(word(packet, 2)?);
        let whole = word(packet, 6)? & 0x3fff == 0;
        if packet[0] >> 4 != 4 || header < 20 || end > packet.len() || !whole {
            return None;
        }
        let (protocol, checksum_at, payload_at) = match *packet.get(9)? {
            UDP => (Protocol::Udp, header + 6, header + 8),
            TCP => {
                let offset = usize::from(packet.get(header + 12)? >> 4) * 4;
                (Protocol::Tcp, header + 16, header + offset.max(20))
            }
            _ => return None,
        };
        let ports = [word(packet, header)?, word(packet, header + 2)?];
        (payload_at <= end).then_some(Self { protocol, ports, checksum_at, payload_at, end })
    }

    /// Bytes that the transport carries.
    pub fn payload_bytes(&self) -> usize {
        self.end - self.payload_at
    }

    /// Flips a bit of the payload byte at `offset` (counted from the end if negative) and mends the
    /// transport's checksum, so that the receiving kernel hands the damage up. False without such a byte.
    pub fn flip(&self, packet: &mut [u8], offset: i64, bit: u8) -> bool {
        let bytes = self.payload_bytes();
        let place = match usize::try_from(offset) {
            Ok(offset) => Some(offset),
            Err(_) => {
                bytes.checked_sub(usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX))
            }
        };
        let Some(place) = place.filter(|&place| place < bytes) else {
            return false;
        };
        let at = self.payload_at + place;
        // Words are counted from the start of the transport header, which lies at an even offset.
        let old = word_or_last(packet, at & !1, self.end);
        packet[at] ^= 1 << (bit & 7);
        let new = word_or_last(packet, at & !1, self.end);
        let sum = u16::from_be_bytes([packet[self.checksum_at], packet[self.checksum_at + 1]]);
        // UDP's 0 says that there is no checksum.
        if self.protocol == Protocol::Tcp || sum != 0 {
            let sum = match updated(sum, old, new) {
                0 if self.protocol == Protocol::Udp => 0xffff,
                sum => sum,
            };
            packet[self.checksum_at..self.checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        true
    }
}

/// RFC 1624, equation 3: a checksum after one of its words changed.
fn updated(sum: u16, old: u16, new: u16) -> u16 {
    let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).expect("folded")
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

/// The word at `at`, padded with zero beyond `end`.
fn word_or_last(packet: &[u8], at: usize, end: usize) -> u16 {
    u16::from_be_bytes([packet[at], if at + 1 < end { packet[at + 1] } else { 0 }])
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The transport checksum as the receiver computes it: 0 when it holds.
    fn residue(packet: &[u8]) -> u16 {
        let segment = &packet[20..];
        let mut total = u32::from(packet[9]) + u32::try_from(segment.len()).unwrap();
        let halves = packet[12..20].chunks(2).chain(segment.chunks(2));
        total += halves.map(|half| u32::from(word_or_last(half, 0, half.len()))).sum::<u32>();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        !u16::try_from(total).unwrap()
    }

    /// A packet between 10.0.0.1:1000 and 10.0.0.2:2000 with a valid transport checksum.
    pub fn packet(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
        let (number, header, checksum_at) = match protocol {
            Protocol::Udp => (UDP, 8, 26),
            Protocol::Tcp => (TCP, 20, 36),
        };
        let mut packet = vec![0; 20 + header];
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len()).unwrap();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[9] = number;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..24].copy_from_slice(&[0x03, 0xe8, 0x07, 0xd0]);
        match protocol {
            Protocol::Udp => packet[24..26].copy_from_slice(&(length - 20).to_be_bytes()),
            Protocol::Tcp => packet[32] = 0x50,
        }
        let sum = residue(&packet);
        packet[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    #[test]
    fn shapes() {
        let udp = packet(Protocol::Udp, b"hello");
        let shape = Shape::of(&udp).unwrap();
        assert_eq!(
            (shape.protocol, shape.ports, shape.payload_bytes()),
            (Protocol::Udp, [1000, 2000], 5)
        );
        assert_eq!(Shape::of(&udp[..30]), None);
        let mut fragment = udp.clone();
        fragment[6] = 0x20;
        assert_eq!(Shape::of(&fragment), None);
        assert_eq!(Shape::of(&packet(Protocol::Tcp, b"")).unwrap().payload_bytes(), 0);
    }

    proptest! {
        #[test]
        fn a_flip_changes_one_payload_bit_and_no_checksum_sees_it(
            payload in prop::collection::vec(any::<u8>(), 1..200),
            offset in -200_i64..200,
            bit in 0_u8..8,
            tcp: bool,
        ) {
            let whole = packet(if tcp { Protocol::Tcp } else { Protocol::Udp }, &payload);
            prop_assert_eq!(residue(&whole), 0);
            let mut spoiled = whole.clone();
            let shape = Shape::of(&whole).unwrap();
            let fits = offset < payload.len() as i64 && offset >= -(payload.len() as i64);
            prop_assert_eq!(shape.flip(&mut spoiled, offset, bit), fits);
            prop_assert_eq!(residue(&spoiled), 0);
            let header = whole.len() - payload.len();
            let bits = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
            prop_assert_eq!(bits(&whole[header..], &spoiled[header..]), u32::from(fits));
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80), offset: i64, ip: bool, udp: bool,
        ) {
            if ip && bytes.len() > 9 {
                bytes[0] = 0x45;
                bytes[2] = 0;
                bytes[6..8].fill(0);
                bytes[9] = if udp { UDP } else { TCP };
            }
            if let Some(shape) = Shape::of(&bytes) {
                shape.flip(&mut bytes, offset, 3);
            }
        }
    }
}
