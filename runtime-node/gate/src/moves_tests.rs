//! Weights that move between two servers over TCP; the test is their host.

use genie_tcp::Tcp;
use genie_transport::transport::{
    Completion, Connection, Listener, Memory, Options, Part, Transport, TransportError,
};
use genie_wire::StorageId;
use genie_wire::control::{
    Have, HaveAnswer, WantedWeight, WeightFetch, WeightServe, WeightServing,
};
use genie_wire::frame::FrameKind;
use genie_wire::limits::INLINE_BYTES_MAX;
use prost::Message;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use genie_channel::message::identity;
use genie_remote::LinkSettings;
use rustix::event::Timespec;

use crate::tests::{Client, Node, node_with};

/// Several steps and messages.
const BYTES: usize = 9 << 20;
const BUDGET: u64 = 64 << 20;
const SECRET: [u8; 32] = [7; 32];

fn links() -> Arc<LinkSettings> {
    Arc::new(LinkSettings {
        software: "test".to_owned(),
        transports: vec![Arc::new(Tcp)],
        trusted: true,
        certificates: None,
        deadline_ms: 10_000,
        data_address: "127.0.0.1:0".to_owned(),
        transport_settings: BTreeMap::new(),
        region_bytes_max: 0,
        instance: 1,
    })
}

fn pair() -> (Node, Node) {
    let node = || node_with(1, 8, BUDGET, Some(links()));
    (node(), node())
}

fn content() -> Vec<u8> {
    (0..BYTES).map(|at| (at ^ at >> 9) as u8).collect()
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// Uploads and stores a weight in the name of the client without identity.
fn store(client: &mut Client, bytes: &[u8]) {
    let id = client.tape.alloc(bytes.len() as u64);
    for (index, piece) in bytes.chunks(INLINE_BYTES_MAX).enumerate() {
        client.tape.upload_inline(id, (index * INLINE_BYTES_MAX) as u64, piece);
        client.flush();
    }
    client.tape.store_weight(id, &hash(bytes));
    client.tape.free(id);
    client.flush();
    assert_eq!(client.next().unwrap().kind, FrameKind::WeightStored);
}

fn serve(host: &mut Client, number: u64, hash: [u8; 32], identity: &str) -> WeightServing {
    let serve = WeightServe {
        identity: identity.to_owned(),
        hash: hash.to_vec(),
        connection: number,
        secret: SECRET.to_vec(),
        transport: "tcp".to_owned(),
        device: 0,
    };
    host.send(FrameKind::WeightServe, &serve.encode_to_vec());
    let frame = host.next().unwrap();
    assert_eq!(frame.kind, FrameKind::WeightServing);
    WeightServing::decode(&frame.body[..]).unwrap()
}

/// Asks to fetch a weight for an id that was passed over; returns it.
fn ask_to_fetch(
    client: &mut Client,
    number: u64,
    hash: [u8; 32],
    address: &str,
    bytes: u64,
) -> StorageId {
    let id = client.tape.next_storage();
    client.tape.skip(1);
    client.flush();
    let fetch = WeightFetch {
        token: number,
        hash: hash.to_vec(),
        bytes,
        address: address.to_owned(),
        connection: number,
        secret: SECRET.to_vec(),
        transport: "tcp".to_owned(),
        deadline_ms: 10_000,
        storage: id.0,
    };
    client.send(FrameKind::WeightFetch, &fetch.encode_to_vec());
    id
}

fn answer(client: &mut Client) -> HaveAnswer {
    let frame = client.next().unwrap();
    assert_eq!(frame.kind, FrameKind::HaveAnswer);
    HaveAnswer::decode(&frame.body[..]).unwrap()
}

fn has(client: &mut Client, hash: [u8; 32]) -> bool {
    let id = client.tape.next_storage();
    client.tape.skip(1);
    client.flush();
    let storage = id.0;
    let wanted = WantedWeight { storage, bytes: BYTES as u64, hash: hash.to_vec() };
    client.send(FrameKind::Have, &Have { token: 99, wanted: vec![wanted] }.encode_to_vec());
    let found = answer(client).found == [true];
    if found {
        client.tape.free(id);
        client.flush();
    }
    found
}

#[test]
fn a_weight_moves_and_can_be_used() {
    let (giving, taking) = pair();
    let (content, hash) = (content(), hash(&content()));
    let mut first = giving.client();
    store(&mut first, &content);
    let mut host = giving.connect();
    let mut second = taking.client();
    assert!(!has(&mut second, hash));

    // The serving connection is good for more than one.
    let mut id = StorageId(0);
    for number in [1, 2] {
        let serving = serve(&mut host, number, hash, "");
        assert_eq!((serving.refused.as_str(), serving.bytes), ("", BYTES as u64));
        id = ask_to_fetch(&mut second, number, hash, &serving.address, serving.bytes);
        let answer = answer(&mut second);
        assert_eq!((answer.token, answer.found), (number, vec![true]));
    }
    for offset in (0..BYTES).step_by(INLINE_BYTES_MAX) {
        let len = INLINE_BYTES_MAX.min(BYTES - offset);
        let read = second.read_at(id, offset as u64, len as u64).unwrap();
        assert!(read == content[offset..offset + len], "at {offset}");
    }
    for (name, value) in [
        ("node.weights_moved_in", 2),
        ("node.weight_bytes_moved_in", 2 * BYTES as u64),
        ("node.weights", 1),
        ("node.weight_bytes", BYTES as u64),
        ("node.storage_bytes", 0),
        ("node.upload_bytes", 0),
    ] {
        assert_eq!(second.counter(name), value, "{name}");
    }
    // The giving end is told last.
    while first.counter("node.weights_moved_out") < 2 {}
    assert_eq!(first.counter("node.weight_bytes_moved_out"), 2 * BYTES as u64);
    assert_eq!(first.counter("node.storage_bytes"), 0, "the copies are given back");

    // The storages that it came for hold it.
    assert_eq!(second.counter("node.weight_bytes_unheld"), 0);
    drop(second);
    let mut witness = taking.client();
    while witness.counter("node.sessions") > 1 {}
    assert_eq!(witness.counter("node.storage_bytes"), 0);
    assert_eq!(witness.counter("node.weight_bytes_unheld"), BYTES as u64);
}

#[test]
fn what_does_not_have_the_hash_is_not_stored() {
    let (giving, taking) = pair();
    let content = content();
    let mut first = giving.client();
    store(&mut first, &content);
    let wanted = hash(b"something else");
    let (mut host, mut second) = (giving.connect(), taking.client());
    let serving = serve(&mut host, 1, hash(&content), "");
    ask_to_fetch(&mut second, 1, wanted, &serving.address, serving.bytes);
    let answer = answer(&mut second);
    assert_eq!((answer.token, answer.found), (1, vec![false]));
    assert!(!has(&mut second, wanted) && !has(&mut second, hash(&content)));
    assert_eq!(second.counter("node.storage_bytes"), 0);
    assert_eq!(second.counter("node.weights_moved_in"), 0);
}

#[test]
fn weights_of_others_and_unknown_ones_are_not_served() {
    let (giving, _taking) = pair();
    let mut first = giving.client();
    store(&mut first, b"mine");
    let mut host = giving.connect();
    for (whose, of) in [("somebody", hash(b"mine")), ("", hash(b"yours"))] {
        let serving = serve(&mut host, 1, of, whose);
        assert!(serving.refused.contains("store"), "{serving:?}");
    }
    // What a host names as its client's lies within its own certificate.
    assert_eq!(identity("host/a", "1000"), "host/a/1000");
    assert_eq!(identity("", "1000"), "1000");

    let unknown = WeightServe {
        hash: hash(b"mine").to_vec(),
        secret: SECRET.to_vec(),
        transport: "?".repeat(1 << 20),
        ..WeightServe::default()
    };
    host.send(FrameKind::WeightServe, &unknown.encode_to_vec());
    let serving = WeightServing::decode(&host.next().unwrap().body[..]).unwrap();
    assert!(serving.refused.contains("transport") && serving.refused.len() < 100);

    let alone = node_with(1, 8, BUDGET, None);
    let mut first = alone.client();
    store(&mut first, b"mine");
    let serving = serve(&mut alone.connect(), 1, hash(b"mine"), "");
    assert!(serving.refused.contains("no transports"), "{serving:?}");
}

#[test]
fn what_cannot_be_fetched_is_answered_at_once() {
    let (_giving, taking) = pair();
    let mut second = taking.client();
    let hash = hash(b"");
    for (what, address, bytes) in [
        ("too large", "127.0.0.1:1", u64::MAX),
        ("nothing", "127.0.0.1:1", 0),
        ("more than the node has", "127.0.0.1:1", BUDGET),
        ("nobody listens", "127.0.0.1:1", 1000),
        ("no address", "somewhere", 1000),
        ("too long an address", &"x".repeat(1 << 20), 1000),
    ] {
        ask_to_fetch(&mut second, 5, hash, address, bytes);
        let answer = answer(&mut second);
        assert_eq!((answer.token, answer.found), (5, vec![false]), "{what}");
        assert_eq!(second.counter("node.storage_bytes"), 0, "{what}");
    }
}

/// A giving end that the test plays itself.
struct Giver {
    data: Box<dyn Connection>,
}

/// Where the test itself waits for a node.
fn listen(number: u64) -> (Box<dyn Listener>, String) {
    let options: Options = links().data_options("tcp", "127.0.0.1:0", number, SECRET);
    let listener = Tcp.listen(&options).unwrap();
    let address = listener.address();
    (listener, address)
}

impl Giver {
    fn accept(mut listener: Box<dyn Listener>) -> Giver {
        loop {
            if let Some(data) = listener.accept().unwrap() {
                return Giver { data };
            }
            wait(listener.event_fd());
        }
    }

    /// Polls until a message was written.
    fn write(&mut self, bytes: u64) {
        let (memory, _owner) = Memory::allocate(bytes).unwrap();
        self.until(|completion| matches!(completion, Completion::Connected)).unwrap();
        let key = self.data.register(memory).unwrap();
        self.data.write(1, &[Part { key, offset: 0, bytes }], 0, 0).unwrap();
        self.until(|completion| matches!(completion, Completion::Written { .. })).unwrap();
    }

    fn until(&mut self, what: impl Fn(&Completion) -> bool) -> Result<(), TransportError> {
        let mut completions = Vec::new();
        loop {
            self.data.poll(&mut completions)?;
            if completions.drain(..).any(|completion| what(&completion)) {
                return Ok(());
            }
            if !self.data.arm()? {
                wait(self.data.event_fd());
            }
        }
    }
}

fn wait(fd: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, poll};
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing for 20 s");
}

#[test]
fn a_giving_node_that_vanishes_ends_the_move() {
    let (_giving, taking) = pair();
    let mut second = taking.client();
    let (listener, address) = listen(3);
    ask_to_fetch(&mut second, 3, hash(b"x"), &address, BYTES as u64);
    let mut giver = Giver::accept(listener);
    giver.write(BYTES as u64 / 2);
    assert_eq!(second.counter("node.storage_bytes"), 2 * BYTES as u64, "storage and copy");
    drop(giver);
    let answer = answer(&mut second);
    assert_eq!((answer.token, answer.found), (3, vec![false]));
    assert_eq!(second.counter("node.storage_bytes"), 0);
}

#[test]
fn a_deadline_and_a_session_that_ends_end_the_move() {
    let (_giving, taking) = pair();
    let (mut second, mut witness) = (taking.client(), taking.client());
    let (listener, address) = listen(4);
    let fetch = WeightFetch {
        token: 4,
        hash: hash(b"x").to_vec(),
        bytes: BYTES as u64,
        address,
        connection: 4,
        secret: SECRET.to_vec(),
        transport: "tcp".to_owned(),
        deadline_ms: 100,
        storage: 0,
    };
    second.send(FrameKind::WeightFetch, &fetch.encode_to_vec());
    // It is there, and gives nothing.
    let _giver = Giver::accept(listener);
    let answered = answer(&mut second);
    assert_eq!((answered.token, answered.found), (4, vec![false]));

    let (listener, address) = listen(5);
    ask_to_fetch(&mut second, 5, hash(b"x"), &address, BYTES as u64);
    let mut giver = Giver::accept(listener);
    giver.write(1000);
    drop(second);
    let end = giver.until(|_| false).expect_err("nobody wants it any more");
    assert!(!end.message.is_empty());
    while witness.counter("node.sessions") > 1 {}
    assert_eq!(witness.counter("node.storage_bytes"), 0);
}

#[test]
fn a_weight_is_served_by_the_device_that_has_it() {
    let giving = node_with(2, 8, BUDGET, Some(links()));
    let taking = node_with(1, 8, BUDGET, Some(links()));
    let mut first = giving.connect();
    first.hello(1);
    assert_eq!(first.next().unwrap().kind, FrameKind::Welcome);
    store(&mut first, b"weight of device 1");
    let of = hash(b"weight of device 1");
    let ask = |host: &mut Client, device| {
        let serve = WeightServe {
            hash: of.to_vec(),
            connection: 6,
            secret: SECRET.to_vec(),
            transport: "tcp".to_owned(),
            device,
            ..WeightServe::default()
        };
        host.send(FrameKind::WeightServe, &serve.encode_to_vec());
        WeightServing::decode(&host.next().unwrap().body[..]).unwrap()
    };
    let mut host = giving.connect();
    let serving = ask(&mut host, 1);
    assert_eq!(serving.refused, "");
    assert!(ask(&mut host, 0).refused.contains("store"));
    assert!(ask(&mut giving.connect(), 7).refused.contains("device 7"));
    let mut second = taking.client();
    ask_to_fetch(&mut second, 6, of, &serving.address, serving.bytes);
    assert_eq!(answer(&mut second).found, [true]);
}
