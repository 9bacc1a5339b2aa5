//! A session's moves, with giving nodes that the test plays.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use genie_transport::{Frame, SharedMemory};
use genie_wire::StorageId;
use rustix::event::{EventfdFlags, eventfd};

use super::*;

const BYTES: u64 = 1 << 20;
const HASH: WeightHash = [5; 32];
const HERE: Place = Place { node: 1, device: 0 };
const THERE: Place = Place { node: 0, device: 3 };

/// One giving node.
#[derive(Default)]
struct Node {
    ready: AtomicBool,
    reached: AtomicU64,
    asked: Mutex<Vec<WeightServe>>,
    says: Mutex<VecDeque<Result<Frame, LinkError>>>,
}

impl Node {
    fn answers(&self, serving: WeightServing) {
        let (kind, body) = (FrameKind::WeightServing, serving.encode_to_vec());
        self.says.lock().unwrap().push_back(Ok(Frame { kind, body, memory: None }));
    }

    fn asked(&self) -> Vec<WeightServe> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

struct FakeLink(Arc<Node>, OwnedFd);

impl Link for FakeLink {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }

    fn queued_bytes(&self) -> usize {
        0
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        _: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        assert!(kind == FrameKind::WeightServe && self.0.ready.load(Ordering::Relaxed));
        let serve = WeightServe::decode(&parts.concat()[..]).unwrap();
        self.0.asked.lock().unwrap().push(serve);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        self.0.says.lock().unwrap().pop_front().transpose()
    }

    fn peer(&self) -> String {
        "fake".to_owned()
    }
}

impl Source for FakeLink {
    fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    fn resolve(&self, address: &str) -> String {
        address.replace("0.0.0.0", "10.0.0.1")
    }
}

#[derive(Default)]
struct Cluster {
    places: Places,
    /// All giving nodes are this one.
    node: Arc<Node>,
    no_transport: bool,
    unreachable: bool,
    moved: AtomicU64,
    failed: AtomicU64,
}

impl Others for Cluster {
    fn places(&self) -> &Places {
        &self.places
    }

    fn reach(&self, _: usize) -> Result<Box<dyn Source>, String> {
        self.node.reached.fetch_add(1, Ordering::Relaxed);
        match self.unreachable {
            true => Err("no route".to_owned()),
            false => {
                let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
                Ok(Box::new(FakeLink(self.node.clone(), fd)))
            }
        }
    }

    fn transport(&self, from: usize, to: usize) -> Option<String> {
        assert_eq!((from, to), (THERE.node, HERE.node));
        (!self.no_transport).then(|| "udp".to_owned())
    }

    fn name(&self, node: usize) -> String {
        format!("node {node}")
    }

    fn count(&self, moved: Option<u64>) {
        match moved {
            Some(bytes) => self.moved.fetch_add(bytes, Ordering::Relaxed),
            None => self.failed.fetch_add(1, Ordering::Relaxed),
        };
    }
}

impl Cluster {
    /// One where a weight is known to be THERE.
    fn knowing(self, bytes: u64) -> Arc<Self> {
        self.places.note(&"1000".into(), &HASH, bytes, THERE);
        Arc::new(self)
    }
}

fn moves(cluster: &Arc<Cluster>) -> Moves {
    Moves::new(cluster.clone(), "1000", HERE)
}

/// The node's answer: it has none of this many weights.
fn absent(token: u64, count: usize) -> HaveAnswer {
    HaveAnswer { token, found: vec![false; count] }
}

fn wanted(hash: WeightHash) -> Wanted {
    Wanted::new(StorageId(77), BYTES, hash)
}

/// Whether the session is not told yet that its node lacks the weight.
fn waits(moves: &mut Moves, token: u64, now: Instant) -> bool {
    moves.answered(&absent(token, 1), &[wanted(HASH)], now)
}

fn told(token: u64, found: &[bool]) -> Step {
    Step::Answer(HaveAnswer { token, found: found.to_vec() })
}

fn drive(moves: &mut Moves, now: Instant) -> Vec<Step> {
    let mut steps = Vec::new();
    moves.drive(now, &mut steps);
    steps
}

fn serving(address: &str) -> WeightServing {
    WeightServing { address: address.to_owned(), bytes: BYTES, refused: String::new() }
}

#[test]
fn a_weight_is_asked_for_there_and_fetched_here() {
    let (cluster, now) = (Cluster::default().knowing(BYTES), Instant::now());
    let mut moves = moves(&cluster);
    assert!(waits(&mut moves, 7, now), "the session is not told yet");
    assert_eq!(moves.event_fds().count(), 1);
    assert_eq!(drive(&mut moves, now), [], "the link is not ready");
    cluster.node.ready.store(true, Ordering::Relaxed);
    assert_eq!(drive(&mut moves, now), []);
    let asked = cluster.node.asked();
    let [serve] = &asked[..] else { panic!("{}", asked.len()) };
    assert_eq!((serve.identity.as_str(), serve.transport.as_str()), ("1000", "udp"));
    assert_eq!((serve.device, &serve.hash[..], serve.secret.len()), (3, &HASH[..], 32));
    assert!(serve.secret.iter().any(|byte| *byte != 0));

    cluster.node.answers(serving("0.0.0.0:77"));
    let steps = drive(&mut moves, now);
    let [Step::Fetch(fetch)] = &steps[..] else { panic!("{}", steps.len()) };
    assert_eq!((fetch.storage, fetch.address.as_str(), fetch.bytes), (77, "10.0.0.1:77", BYTES));
    assert!(fetch.token >= HOST_TOKENS, "the program has no such token");
    assert_eq!((fetch.connection, &fetch.secret), (serve.connection, &serve.secret));
    assert!(fetch.deadline_ms >= 10_000);

    assert!(moves.fetched(&HaveAnswer { token: fetch.token, found: vec![true] }, now));
    assert_eq!(drive(&mut moves, now), [told(7, &[true])], "now it is told");
    assert_eq!(cluster.moved.load(Ordering::Relaxed), BYTES);
    // It is here now as well, and the link is good for the next until it idles.
    assert_eq!(cluster.places.find(&"1000".into(), &HASH, 0, now).unwrap().place, HERE);
    assert_eq!(moves.event_fds().count(), 1);
    let due = moves.due().unwrap();
    drive(&mut moves, due);
    assert_eq!((moves.event_fds().count(), moves.due()), (0, None));
}

#[test]
fn one_question_brings_many_a_few_at_a_time() {
    let count = 3 * MOVES_MAX;
    let (cluster, now) = (Cluster::default(), Instant::now());
    let asked: Vec<Wanted> = (0..count as u8).map(|byte| wanted([byte; 32])).collect();
    for wanted in &asked[1..] {
        cluster.places.note(&"1000".into(), &wanted.hash, BYTES, THERE);
    }
    let cluster = Arc::new(cluster);
    cluster.node.ready.store(true, Ordering::Relaxed);
    let mut moves = moves(&cluster);
    assert!(moves.answered(&absent(7, count), &asked, now));
    let mut secrets = std::collections::BTreeSet::new();
    let mut came = 0;
    let answer = loop {
        let steps = drive(&mut moves, now);
        if let [Step::Answer(answer)] = &steps[..] {
            break answer.clone();
        }
        let serves = cluster.node.asked();
        assert!(serves.len() <= MOVES_MAX && !(serves.is_empty() && steps.is_empty()));
        for serve in serves {
            secrets.insert(serve.secret);
            cluster.node.answers(serving("10.0.0.1:1"));
        }
        for step in steps {
            let Step::Fetch(fetch) = step else { panic!("{step:?}") };
            // The last does not come.
            came += 1;
            let found = vec![came < count - 1];
            assert!(moves.fetched(&HaveAnswer { token: fetch.token, found }, now));
        }
    };
    // All but the first, which nobody has, and the last.
    let expected: Vec<bool> = (0..count).map(|at| at != 0 && at != count - 1).collect();
    assert_eq!((answer.token, answer.found), (7, expected));
    assert_eq!(secrets.len(), count - 1);
    assert_eq!(cluster.node.reached.load(Ordering::Relaxed), 1, "over one link");
}

#[test]
fn what_is_not_worth_it_or_impossible_is_told_at_once() {
    let now = Instant::now();
    let other_size = Cluster::default().knowing(BYTES + 1);
    let apart = Cluster { no_transport: true, ..Cluster::default() }.knowing(BYTES);
    let unreachable = Cluster { unreachable: true, ..Cluster::default() }.knowing(BYTES);
    for cluster in [&other_size, &apart] {
        let mut moves = moves(cluster);
        assert!(!waits(&mut moves, 1, now));
        assert_eq!(moves.event_fds().count(), 0);
    }
    for bytes in [MOVE_BYTES_MIN - 1, MOVE_BYTES_MAX + 1] {
        let mut moves = moves(&Cluster::default().knowing(bytes));
        let wanted = Wanted::new(StorageId(1), bytes, HASH);
        assert!(!moves.answered(&absent(1, 1), &[wanted], now));
    }
    let mut first = moves(&unreachable);
    assert!(waits(&mut first, 1, now));
    assert_eq!(drive(&mut first, now), [told(1, &[false])]);
    let mut again = moves(&unreachable);
    assert!(!waits(&mut again, 2, now));
    let reached = unreachable.node.reached.load(Ordering::Relaxed);
    assert_eq!(reached, 1, "the way is not tried again at once");
    // Nobody else is known to have it.
    let alone = Arc::new(Cluster::default());
    let mut moves = moves(&alone);
    moves.stored(&WeightStored { hash: HASH.to_vec(), bytes: BYTES, refused: String::new() });
    assert!(!waits(&mut moves, 1, now), "only this node had it");
    let other = [6; 32];
    let refused = "no".to_owned();
    moves.stored(&WeightStored { hash: other.to_vec(), bytes: BYTES, refused });
    assert_eq!(alone.places.find(&"1000".into(), &other, 0, now), None);
}

#[test]
fn whatever_fails_the_session_hears_that_it_is_not_there() {
    type Sin = fn(&Node);
    let sins: [(&str, Sin); 4] = [
        ("refused", |node| {
            node.answers(WeightServing { refused: "gone".into(), ..WeightServing::default() });
        }),
        ("closed", |node| node.says.lock().unwrap().push_back(Err(LinkError::Closed))),
        ("another frame", |node| {
            let frame = Frame { kind: FrameKind::Reply, body: vec![], memory: None };
            node.says.lock().unwrap().push_back(Ok(frame));
        }),
        ("a malformed answer", |node| {
            let (kind, body) = (FrameKind::WeightServing, vec![0xff; 9]);
            node.says.lock().unwrap().push_back(Ok(Frame { kind, body, memory: None }));
        }),
    ];
    for (what, sin) in sins {
        let (cluster, now) = (Cluster::default().knowing(BYTES), Instant::now());
        let mut moves = moves(&cluster);
        cluster.node.ready.store(true, Ordering::Relaxed);
        assert!(waits(&mut moves, 1, now));
        assert_eq!(drive(&mut moves, now), []);
        sin(&cluster.node);
        assert_eq!(drive(&mut moves, now), [told(1, &[false])], "{what}");
        assert_eq!(cluster.failed.load(Ordering::Relaxed), 1, "{what}");
        assert!(!waits(&mut moves, 2, now), "{what}: not tried again at once");
    }
}

#[test]
fn a_node_that_is_silent_and_a_fetch_that_fails() {
    let (cluster, now) = (Cluster::default().knowing(BYTES), Instant::now());
    let mut moves = moves(&cluster);
    assert!(waits(&mut moves, 1, now));
    let due = moves.due().unwrap();
    assert_eq!(due, now + deadline(0));
    assert_eq!(drive(&mut moves, due - Duration::from_millis(1)), []);
    assert_eq!(drive(&mut moves, due), [told(1, &[false])]);

    let later = due + Duration::from_secs(3600);
    cluster.node.ready.store(true, Ordering::Relaxed);
    assert!(waits(&mut moves, 2, later), "it may be back");
    drive(&mut moves, later);
    cluster.node.answers(serving("10.0.0.1:1"));
    let steps = drive(&mut moves, later);
    let [Step::Fetch(fetch)] = &steps[..] else { panic!("{}", steps.len()) };
    assert!(moves.fetched(&absent(fetch.token, 1), later));
    assert_eq!(drive(&mut moves, later), [told(2, &[false])], "the session is told");
    assert_eq!(cluster.failed.load(Ordering::Relaxed), 2);
    assert_eq!(cluster.places.find(&"1000".into(), &HASH, HERE.node, later), None);
}
