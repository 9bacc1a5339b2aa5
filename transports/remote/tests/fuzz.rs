//! What a hostile peer may send: mutated messages and frames never panic a link, and memory stays
//! bounded. `GENIE_FUZZ_CASES=1000000 cargo test --release -p genie-remote --test fuzz` for many.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use genie_remote::message::{Arrived, Gone, Hello, Listening, Open, Welcome};
use genie_remote::{LinkSettings, RemoteLink, Role};
use genie_transport::Link;
use genie_transport::transport::*;
use genie_wire::control::Region;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use prost::Message;

const CASES: u64 = 20_000;

/// A control connection that says what it is told to.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Completion>>>);

struct Scripted {
    script: Script,
    event: UnixStream,
    _other: UnixStream,
}

impl Connection for Scripted {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
    fn arm(&mut self) -> Result<bool> {
        Ok(!self.script.0.lock().unwrap().is_empty())
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        completions.extend(self.script.0.lock().unwrap().drain(..));
        Ok(())
    }
    fn send_frame(&mut self, _: u8, _: &[&[u8]], _: Option<BorrowedFd<'_>>) -> Result<()> {
        Ok(())
    }
    fn queued_bytes(&self) -> u64 {
        0
    }
    fn register(&mut self, _: Memory) -> Result<MemoryKey> {
        Ok(MemoryKey(1))
    }
    fn unregister(&mut self, _: MemoryKey) -> Result<()> {
        Ok(())
    }
    fn offer(&mut self, _: u32, _: Part) -> Result<()> {
        Ok(())
    }
    fn withdraw(&mut self, _: u32) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[Part], _: u32, _: u64) -> Result<()> {
        Ok(())
    }
    fn export_secret(&self, _: &[u8]) -> Result<[u8; 32]> {
        Ok([7; 32])
    }
    fn peer_identity(&self) -> String {
        "host/fuzz".into()
    }
    fn peer_address(&self) -> String {
        "10.0.0.1:1".into()
    }
    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    fn close(&mut self, _: &str) {}
}

/// A transport that only lends its name.
struct Named;

impl Transport for Named {
    fn facts(&self) -> Facts {
        let capabilities = Capabilities::CONTROL.with(Capabilities::DATA);
        Facts { name: "quic".into(), version: "0".into(), capabilities }
    }
    fn probe(&self, _: &Options) -> Result<String> {
        Ok(String::new())
    }
    fn listen(&self, _: &Options) -> Result<Box<dyn Listener>> {
        Err(TransportError::unsupported("quic", "listener here"))
    }
    fn connect(&self, _: &Options) -> Result<Box<dyn Connection>> {
        Err(TransportError::unsupported("quic", "connection here"))
    }
}

fn link(role: Role) -> (RemoteLink, Script) {
    let script = Script::default();
    let (event, other) = UnixStream::pair().unwrap();
    let control = Box::new(Scripted { script: script.clone(), event, _other: other });
    let settings = LinkSettings {
        software: "fuzz".into(),
        transports: vec![Arc::new(Named)],
        trusted: true,
        certificates: None,
        deadline_ms: 1000,
        data_address: "127.0.0.1:0".into(),
        transport_settings: BTreeMap::new(),
        region_bytes_max: 1 << 20,
        instance: 1,
    };
    (RemoteLink::new(role, control, &Named, Arc::new(settings)).unwrap(), script)
}

/// A valid message or frame, by number.
fn valid(choice: u32, random: &mut TestRng) -> (u8, Vec<u8>) {
    let number = random.next_u64() % 8;
    let arrived = Some(Arrived { through: number, above: vec![number + 2, number + 3] });
    let name = ["control", "quic", "udp", ""][random.next_u32() as usize % 4].to_owned();
    let attempt = random.next_u32() % 5;
    match choice % 8 {
        0 => (64, Hello { version: 2, oldest: 1, software: "x".into() }.encode_to_vec()),
        1 => {
            let welcome = Welcome { version: 2, transports: vec![name], ..Welcome::default() };
            (65, welcome.encode_to_vec())
        }
        2 => {
            let open = Open { attempt, transport: name, connection: number, arrived };
            (66, open.encode_to_vec())
        }
        3 => {
            let listening = Listening { attempt, address: name, arrived, ..Listening::default() };
            (67, listening.encode_to_vec())
        }
        4 => (68, Gone { attempt, reason: name }.encode_to_vec()),
        5 => {
            let mut body = number.to_le_bytes().to_vec();
            Region { id: attempt, bytes: 4096 << (number % 12) }.encode(&mut body).unwrap();
            (3, body)
        }
        6 => (2, [number.to_le_bytes().to_vec(), vec![1, 2, 3]].concat()),
        _ => (130, 0u64.to_le_bytes().to_vec()),
    }
}

#[test]
fn mutated_messages_never_panic_a_link() {
    let cases = std::env::var("GENIE_FUZZ_CASES").map_or(CASES, |text| text.parse().unwrap());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    let (mut delivered, mut refused, mut messages) = (0u64, 0u64, 0u64);
    while messages < cases {
        let role = if random.next_u32().is_multiple_of(2) { Role::Host } else { Role::Node };
        let (mut link, script) = link(role);
        script.0.lock().unwrap().push_back(Completion::Connected);
        for _ in 0..1 + random.next_u32() % 12 {
            messages += 1;
            let (mut kind, mut body) = valid(random.next_u32(), &mut random);
            match random.next_u32() % 6 {
                0 if !body.is_empty() => {
                    let at = random.next_u64() as usize % body.len();
                    body[at] ^= 1 << (random.next_u32() % 8);
                }
                1 => body.truncate(random.next_u64() as usize % (body.len() + 1)),
                2 => kind = random.next_u32() as u8,
                3 => body.extend_from_slice(&random.next_u64().to_le_bytes()),
                _ => {}
            }
            let mut script = script.0.lock().unwrap();
            script.push_back(Completion::Frame { kind, body, memory: None });
            if random.next_u32().is_multiple_of(4) {
                let message = random.next_u64() % 20;
                let placed = Completion::Placed { message, window: 0, offset: 0, bytes: 1 };
                script.push_back(placed);
            }
        }
        loop {
            match link.poll() {
                Ok(Some(_)) => delivered += 1,
                Ok(None) => break,
                Err(_) => {
                    refused += 1;
                    break;
                }
            }
        }
    }
    assert!(delivered > 0 && refused > 0, "both ends of the matter were tried");
}
