//! The payload of one datagram, attached piece by piece behind its head.
//!
//! Descriptors are taken before the protocol makes the datagram, because what it made must be sent.

use genie_bulk::PIECES_MAX;

use crate::packet::{Lease, Packet, Pool};

/// Descriptors at hand, and those that the datagram in the making uses.
#[derive(Debug, Default)]
pub struct Tail {
    spare: Vec<Packet>,
    taken: Vec<Packet>,
    /// The port that memory must be registered for.
    registers: Option<u16>,
}

impl Tail {
    /// A tail for a port that reads memory as it is, or needs it registered.
    pub fn new(registers: Option<u16>) -> Tail {
        Tail { registers, ..Tail::default() }
    }

    /// The port that memory must be registered for, if it must.
    pub fn registers(&self) -> Option<u16> {
        self.registers
    }

    /// Makes ready for one datagram; `false`: all descriptors are in the device.
    pub fn refill(&mut self, pool: &Pool) -> bool {
        while self.spare.len() < PIECES_MAX {
            match Packet::new(pool) {
                Some(packet) => self.spare.push(packet),
                None => return false,
            }
        }
        true
    }

    /// Puts a range of leased memory behind what is there. At most [`PIECES_MAX`] a datagram.
    pub fn attach(&mut self, lease: &Lease, offset: usize, bytes: usize) {
        let mut packet = self.spare.pop().expect("as many as a datagram has pieces are at hand");
        packet.attach(lease, offset, bytes as u16);
        self.taken.push(packet);
    }

    /// Bytes attached.
    pub fn bytes(&self) -> usize {
        self.taken.iter().map(Packet::bytes).sum()
    }

    /// What was attached, in order.
    pub fn take(&mut self) -> impl Iterator<Item = Packet> + '_ {
        self.taken.drain(..)
    }

    /// Descriptors at hand.
    pub fn kept(&self) -> usize {
        self.spare.len()
    }

    pub fn clear(&mut self) {
        self.spare.clear();
        self.taken.clear();
    }
}
