//! A node whose door many strangers are at, and a host that wants in: the same for every transport.
#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use genie_transport::transport::{Completion, Connection, Options, Transport};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{certificates, visitors};

/// A host must be in within this time: before it would give up itself (`connect_ms`). How fast a
/// machine is does not matter; on a quiet one `GENIE_STRANGERS_MS=1000` holds.
fn in_within() -> Duration {
    let asked = std::env::var("GENIE_STRANGERS_MS").ok().and_then(|ms| ms.parse().ok());
    Duration::from_millis(asked.unwrap_or(4_500))
}

pub const STRANGERS_PER_S: u32 = 1000;
/// Strangers of a storm: three seconds of them.
pub const STRANGERS: u32 = 3 * STRANGERS_PER_S;
pub const HALF_OPEN: u32 = 10_000;
/// Descriptors that everything but strangers may take.
const OTHER_DESCRIPTORS: u32 = 1000;
/// Times that a host connects where it is not a storm that ends.
const VISITS: usize = 5;

/// One storm at a time: they would be each other's.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where strangers come from.
#[derive(Debug, Clone, Copy)]
pub enum From {
    /// The host's own address.
    TheHosts,
    /// A few addresses.
    Few,
    /// Each from another.
    Everywhere,
}

impl From {
    pub fn address(self, stranger: usize) -> Ipv4Addr {
        match self {
            From::TheHosts => Ipv4Addr::LOCALHOST,
            From::Few => Ipv4Addr::new(127, 0, 0, 2 + (stranger % 8) as u8),
            From::Everywhere => {
                let [_, _, high, low] = (stranger as u32).to_be_bytes();
                Ipv4Addr::new(127, 1, high, low)
            }
        }
    }
}

/// As many descriptors as the process may have, at most `wanted` of them for strangers.
pub fn descriptors(wanted: u32) -> u32 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let all = limit.current.map_or(u32::MAX, |all| all.try_into().unwrap_or(u32::MAX));
    let count = wanted.min(all.saturating_sub(OTHER_DESCRIPTORS));
    if count < wanted {
        eprintln!("{count} strangers instead of {wanted}: more descriptors are not allowed here");
    }
    count
}

/// A node that takes connections on a thread of its own, as the real one does.
pub struct Node {
    pub address: String,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
    taken: Receiver<Box<dyn Connection>>,
    host: Options,
    transport: &'static dyn Transport,
}

impl Node {
    pub fn start(transport: &'static dyn Transport) -> Node {
        Node::with(transport, certificates::options())
    }

    /// On a trusted network nobody shows who he is.
    pub fn trusting(transport: &'static dyn Transport) -> Node {
        let address = "127.0.0.1:0".into();
        let options = Options { address, trusted: true, ..Options::default() };
        Node::with(transport, (options.clone(), options))
    }

    fn with(transport: &'static dyn Transport, (listen, host): (Options, Options)) -> Node {
        let mut listener = transport.listen(&listen).unwrap();
        let (address, ended) = (listener.address(), Arc::new(AtomicBool::new(false)));
        let (sender, taken) = channel();
        let over = ended.clone();
        let thread = std::thread::spawn(move || {
            let mut told = 0;
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok(Some(connection)) => drop(sender.send(connection)),
                    Ok(None) => visitors::sleep(&[listener.event_fd().as_raw_fd()]),
                    Err(_) => told += 1,
                }
            }
            told
        });
        let host = Options { address: address.clone(), ..host };
        let node = Node { address, ended, thread: Some(thread), taken, host, transport };
        // The host is known from now on.
        node.visit();
        node
    }

    /// A host connects; the time until both ends have the connection, and the node's end.
    pub fn visit(&self) -> (Duration, Box<dyn Connection>) {
        let (begin, within) = (Instant::now(), in_within());
        let mut ours = self.transport.connect(&self.host).unwrap();
        let (mut completions, mut theirs) = (Vec::new(), None);
        while completions.is_empty() || theirs.is_none() {
            let passed = begin.elapsed();
            assert!(passed < within, "the host is not in after {passed:?}");
            ours.poll(&mut completions).unwrap_or_else(|error| panic!("after {passed:?}: {error}"));
            if !completions.is_empty() && theirs.is_none() {
                match self.taken.recv_timeout(within.saturating_sub(passed)) {
                    Ok(connection) => theirs = Some(connection),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => panic!("the node has ended"),
                }
            } else if completions.is_empty() && !ours.arm().unwrap() {
                visitors::sleep(&[ours.event_fd().as_raw_fd()]);
            }
        }
        let passed = begin.elapsed();
        assert!(matches!(completions[0], Completion::Connected));
        let theirs = theirs.expect("the loop ended");
        assert_eq!(theirs.peer_identity(), if self.host.trusted { "" } else { "host/me" });
        (passed, theirs)
    }

    /// A host connects again and again while strangers come; says how long it took at most, and
    /// what the node counted.
    pub fn visit_during(&self, what: &str, storm: Option<&Storm>) {
        let (mut visits, mut longest) = (0, Duration::ZERO);
        let counted = loop {
            let (took, theirs) = self.visit();
            (visits, longest) = (visits + 1, longest.max(took));
            if storm.is_some_and(Storm::is_over) || (storm.is_none() && visits == VISITS) {
                break theirs.statistics();
            }
        };
        let strangers: Vec<String> = counted
            .iter()
            .filter(|(name, count)| name.starts_with("strangers") && *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        println!("{what}: {visits} visits, at most {longest:?}; {}", strangers.join(", "));
        assert!(!strangers.is_empty(), "{what}: nothing was counted: {counted:?}");
    }

    /// How many errors it was told of.
    pub fn end(mut self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Strangers who come at a steady rate, on a thread.
pub struct Storm {
    begin: Instant,
    strangers: u32,
    thread: JoinHandle<()>,
}

impl Storm {
    /// `come` lets the stranger of a number come. Who comes late, because the machine is busy, does
    /// so at once.
    pub fn start(strangers: u32, mut come: impl FnMut(usize) + Send + 'static) -> Storm {
        let begin = Instant::now();
        let thread = std::thread::spawn(move || {
            for stranger in 0..strangers {
                let due = begin + Duration::from_secs(1) * stranger / STRANGERS_PER_S;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                come(stranger as usize);
            }
        });
        Storm { begin, strangers, thread }
    }

    fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn end(self) {
        self.thread.join().unwrap();
        let rate = f64::from(self.strangers) / self.begin.elapsed().as_secs_f64();
        println!("{} strangers came, {rate:.0} a second", self.strangers);
    }
}

/// A client's configuration of somebody who knows the protocol, and has no certificate.
pub fn strangers_config() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"genie/1".to_vec()];
    config
}
