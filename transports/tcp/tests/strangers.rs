//! Strangers in masses, over TCP: none of them keeps a host out.

mod certificates;
mod storm;
mod visitors;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use genie_tcp::Tcp;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, send};
use rustix::net::{socket_with, sockopt};
use storm::{From, HALF_OPEN, Node, STRANGERS, STRANGERS_PER_S, Storm, strangers_config};

/// Silent connections that come before the host does once more.
const STEP: u32 = 1000;
/// Connections that a storm keeps open.
const KEPT: u32 = 4 * STRANGERS_PER_S;

/// Somebody who connects and says no more than this.
fn stranger(from: From, number: usize, to: SocketAddr, said: &[u8]) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    // Nothing stays behind of it: the ports are used again and again.
    sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO)).unwrap();
    bind(&socket, &SocketAddr::from((from.address(number), 0))).unwrap();
    // Where the node's queue is full it does not get through, and neither do its words.
    let _ = connect(&socket, &to);
    let _ = send(&socket, said, SendFlags::NOSIGNAL);
    socket
}

/// The first words of a handshake, which the node answers with a signature.
fn client_hello() -> Vec<u8> {
    let name = "127.0.0.1".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(strangers_config()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

fn silent_connections(node: &Node, from: From) {
    let (count, to) = (storm::descriptors(HALF_OPEN), node.address.parse().unwrap());
    let mut silent = Vec::new();
    for number in 1..=count {
        silent.push(stranger(from, number as usize, to, &[]));
        // They queue in the kernel, in order: whoever comes after them waits until the node has
        // taken them. More than the queue holds would only try the kernel.
        if number % STEP == 0 {
            node.visit();
        }
    }
    node.visit_during(&format!("{count} silent connections, {from:?}"), None);
    drop(silent);
}

#[test]
fn ten_thousand_silent_connections_do_not_keep_a_host_out() {
    let _alone = storm::alone();
    for from in [From::TheHosts, From::Few, From::Everywhere] {
        let node = Node::start(&Tcp);
        silent_connections(&node, from);
        node.end();
    }
}

#[test]
fn nor_do_they_on_a_trusted_network() {
    let _alone = storm::alone();
    let node = Node::trusting(&Tcp);
    silent_connections(&node, From::Few);
    node.end();
}

#[test]
fn a_thousand_handshakes_a_second_do_not_keep_a_host_out() {
    let _alone = storm::alone();
    let kept_max = storm::descriptors(KEPT);
    for from in [From::Few, From::Everywhere] {
        let node = Node::start(&Tcp);
        let (to, hello) = (node.address.parse().unwrap(), client_hello());
        let mut kept = VecDeque::new();
        let storm = Storm::start(STRANGERS, move |number| {
            kept.push_back(stranger(from, number, to, &hello));
            if kept.len() > kept_max as usize {
                kept.pop_front();
            }
        });
        node.visit_during(&format!("handshakes, {from:?}"), Some(&storm));
        storm.end();
        assert!(node.end() <= 3 * 8, "strangers are told of one by one");
    }
}
