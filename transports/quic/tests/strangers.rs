//! Strangers in masses, over QUIC: none of them keeps a host out.

#[path = "../../tcp/tests/certificates/mod.rs"]
mod certificates;
mod first_packets;
#[path = "../../tcp/tests/storm/mod.rs"]
mod storm;
#[path = "../../tcp/tests/visitors/mod.rs"]
mod visitors;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use first_packets::{Stranger, retry};
use genie_quic::Quic;
use storm::{From, HALF_OPEN, Node, STRANGERS, Storm, strangers_config};

/// Sockets of a storm; each is many strangers.
const SOCKETS: u32 = 500;

struct Strangers {
    stranger: Stranger,
    from: From,
    to: SocketAddr,
    /// They answer when they are asked to prove their address; nobody can who sends from an
    /// address that is not its own.
    prove: bool,
    sockets: HashMap<Ipv4Addr, UdpSocket>,
}

impl Strangers {
    fn new(node: &Node, from: From, prove: bool) -> Strangers {
        let stranger = Stranger::new(strangers_config());
        let to = node.address.parse().unwrap();
        Strangers { stranger, from, to, prove, sockets: HashMap::new() }
    }

    fn come(&mut self, number: usize) {
        let address = self.from.address(number % SOCKETS as usize);
        let socket = self.sockets.entry(address).or_insert_with(|| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let id = (number as u64).to_be_bytes();
        // What finds no room is lost, as it is in a network.
        let _ = socket.send_to(&self.stranger.first_packet(&id, &[]), self.to);
        if self.prove {
            let mut datagram = [0; 2048];
            while let Ok(bytes) = socket.recv(&mut datagram) {
                if let Some((id, token)) = retry(&datagram[..bytes]) {
                    let _ = socket.send_to(&self.stranger.first_packet(&id, &token), self.to);
                }
            }
        }
    }
}

fn storm_of(strangers: u32, from: From, prove: bool) {
    let _alone = storm::alone();
    storm::descriptors(SOCKETS);
    let node = Node::start(&Quic);
    let mut all = Strangers::new(&node, from, prove);
    let storm = Storm::start(strangers, move |number| all.come(number));
    let what = format!("{strangers} first packets, {from:?}, proving their address: {prove}");
    node.visit_during(&what, Some(&storm));
    storm.end();
    assert!(node.end() <= 3 * 8, "strangers are told of one by one");
}

/// From addresses that need not be their own.
#[test]
fn a_thousand_first_packets_a_second_do_not_keep_a_host_out() {
    for from in [From::TheHosts, From::Few, From::Everywhere] {
        storm_of(STRANGERS, from, false);
    }
}

/// From addresses that are their own; the handshakes are begun, and go no further.
#[test]
fn ten_thousand_half_open_handshakes_do_not_keep_a_host_out() {
    storm_of(STRANGERS, From::Few, true);
    storm_of(HALF_OPEN, From::Everywhere, true);
}
