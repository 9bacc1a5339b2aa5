//! What is done to which packets.

use std::time::Duration;

use crate::packet::{Protocol, Shape};

/// Which packets a fault is for; the default takes every UDP or TCP packet that carries something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    pub protocol: Option<Protocol>,
    /// Either port.
    pub port: Option<u16>,
    /// Packets with less payload pass.
    pub bytes_min: usize,
}

impl Default for Aim {
    fn default() -> Self {
        Self { protocol: None, port: None, bytes_min: 1 }
    }
}

impl Aim {
    /// True if this fault is meant for a packet of that shape.
    pub fn takes(&self, shape: &Shape) -> bool {
        self.protocol.is_none_or(|protocol| protocol == shape.protocol)
            && self.port.is_none_or(|port| shape.ports.contains(&port))
            && shape.payload_bytes() >= self.bytes_min
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    Drop,
    /// Sent twice.
    Duplicate,
    /// Held longer, so that later ones overtake it.
    Hold(Duration),
    /// One bit of the payload changes; `offset` counts from the payload's end if negative.
    Flip {
        offset: i64,
        bit: u8,
    },
}

/// A deed for the next `left` packets that `aim` takes, after it let `skip` pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub deed: Deed,
    pub aim: Aim,
    pub skip: u64,
    pub left: u64,
}

impl Fault {
    /// True if the packet is to be treated; counts it.
    pub fn strikes(&mut self, shape: &Shape) -> bool {
        if self.left == 0 || !self.aim.takes(shape) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left -= 1;
        true
    }
}
