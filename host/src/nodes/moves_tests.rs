//! A session's moves, with giving nodes that the test plays.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use genie_transport::{Frame, SharedMemory};
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

fn absent(token: u64) -> HaveAnswer {
    HaveAnswer { token, present: false, bytes: 0 }
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
    assert!(moves.answered(&absent(7), &HASH, now), "the session is not told yet");
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
    assert_eq!((fetch.token, fetch.address.as_str(), fetch.bytes), (7, "10.0.0.1:77", BYTES));
    assert_eq!((fetch.connection, &fetch.secret), (serve.connection, &serve.secret));
    assert!(fetch.deadline_ms >= 10_000);

    let came = HaveAnswer { token: 7, present: true, bytes: BYTES };
    assert!(!moves.answered(&came, &HASH, now), "now it is told");
    assert_eq!(cluster.moved.load(Ordering::Relaxed), BYTES);
    // It is here now as well, and the link is good for the next until it idles.
    assert_eq!(cluster.places.find(&"1000".into(), &HASH, 0, now).unwrap().place, HERE);
    assert_eq!(moves.event_fds().count(), 1);
    let due = moves.due().unwrap();
    drive(&mut moves, due);
    assert_eq!((moves.event_fds().count(), moves.due()), (0, None));
}

#[test]
fn secrets_differ_and_moves_are_bounded() {
    let (cluster, now) = (Cluster::default().knowing(BYTES), Instant::now());
    let mut moves = moves(&cluster);
    for token in 0..MOVES_MAX as u64 {
        assert!(moves.answered(&absent(token), &HASH, now));
    }
    assert!(!moves.answered(&absent(99), &HASH, now), "uploaded");
    cluster.node.ready.store(true, Ordering::Relaxed);
    drive(&mut moves, now);
    let asked = cluster.node.asked();
    let secrets: std::collections::BTreeSet<_> = asked.iter().map(|a| a.secret.clone()).collect();
    assert_eq!((asked.len(), secrets.len()), (MOVES_MAX, MOVES_MAX));
    assert_eq!(cluster.node.reached.load(Ordering::Relaxed), 1, "over one link");
}

#[test]
fn what_is_not_worth_it_or_impossible_is_told_at_once() {
    let now = Instant::now();
    let small = Cluster::default().knowing(MOVE_BYTES_MIN - 1);
    let large = Cluster::default().knowing(MOVE_BYTES_MAX + 1);
    let apart = Cluster { no_transport: true, ..Cluster::default() }.knowing(BYTES);
    let unreachable = Cluster { unreachable: true, ..Cluster::default() }.knowing(BYTES);
    for cluster in [&small, &large, &apart, &unreachable] {
        let mut moves = moves(cluster);
        assert!(!moves.answered(&absent(1), &HASH, now));
        assert_eq!(moves.event_fds().count(), 0);
    }
    let mut again = moves(&unreachable);
    assert!(!again.answered(&absent(2), &HASH, now));
    let reached = unreachable.node.reached.load(Ordering::Relaxed);
    assert_eq!(reached, 1, "the way is not tried again at once");
    // Nobody else is known to have it.
    let alone = Arc::new(Cluster::default());
    let mut moves = moves(&alone);
    moves.stored(&WeightStored { hash: HASH.to_vec(), bytes: BYTES, refused: String::new() });
    assert!(!moves.answered(&absent(1), &HASH, now), "only this node had it");
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
        assert!(moves.answered(&absent(1), &HASH, now));
        assert_eq!(drive(&mut moves, now), []);
        sin(&cluster.node);
        assert_eq!(drive(&mut moves, now), [Step::Absent { token: 1 }], "{what}");
        assert_eq!(cluster.failed.load(Ordering::Relaxed), 1, "{what}");
        assert!(!moves.answered(&absent(2), &HASH, now), "{what}: not tried again at once");
    }
}

#[test]
fn a_node_that_is_silent_and_a_fetch_that_fails() {
    let (cluster, now) = (Cluster::default().knowing(BYTES), Instant::now());
    let mut moves = moves(&cluster);
    assert!(moves.answered(&absent(1), &HASH, now));
    let due = moves.due().unwrap();
    assert_eq!(due, now + deadline(0));
    assert_eq!(drive(&mut moves, due - Duration::from_millis(1)), []);
    assert_eq!(drive(&mut moves, due), [Step::Absent { token: 1 }]);

    let later = due + Duration::from_secs(3600);
    cluster.node.ready.store(true, Ordering::Relaxed);
    assert!(moves.answered(&absent(2), &HASH, later), "it may be back");
    drive(&mut moves, later);
    cluster.node.answers(serving("10.0.0.1:1"));
    assert_eq!(drive(&mut moves, later).len(), 1);
    assert!(!moves.answered(&absent(2), &HASH, later), "the session is told");
    assert_eq!(cluster.failed.load(Ordering::Relaxed), 2);
    assert_eq!(cluster.places.find(&"1000".into(), &HASH, HERE.node, later), None);
}
