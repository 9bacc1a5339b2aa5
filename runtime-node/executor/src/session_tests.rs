//! What each record does, on a backend in plain memory.

use genie_transport::SharedMemory;
use genie_wire::control::{Released, WeightStored};
use genie_wire::{DType, OutputSpec, TapeWriter, TensorMeta};
use proptest::prelude::*;

use super::*;
use crate::fake::Fake;
use crate::{ExecutorLimits, SentFrames, SessionSettings};

const BUDGET: u64 = 1 << 20;

/// One or more sessions on one node, each with its writer.
struct Bench {
    node: Executor<Fake>,
    clients: Vec<Client>,
}

struct Client {
    session: Option<Session<Fake>>,
    tape: TapeWriter,
    sent: SentFrames,
    next_token: u64,
}

fn bench(identities: &[&str]) -> Bench {
    bench_on(Fake::default(), identities)
}

fn bench_on(backend: Fake, identities: &[&str]) -> Bench {
    let mut node = Executor::new(backend, BUDGET);
    let clients = identities
        .iter()
        .map(|identity| {
            let settings =
                SessionSettings { identity: identity.to_string(), ..SessionSettings::default() };
            Client {
                session: Some(node.open(settings).unwrap()),
                tape: TapeWriter::new(),
                sent: SentFrames::default(),
                next_token: 0,
            }
        })
        .collect();
    Bench { node, clients }
}

fn template(op: &str, slots: u32, scalars: u32, mutated: &[u32], new: &[u64]) -> Vec<u8> {
    let meta = |bytes: &u64| TensorMeta::contiguous(DType::UINT8, &[*bytes]);
    let template = Template {
        op: op.to_owned(),
        slots,
        scalars,
        mutated: mutated.to_vec(),
        random: false,
        new_storages: new.to_vec(),
        args: vec![],
        outputs: (0..)
            .zip(new)
            .map(|(index, bytes)| OutputSpec::New { index, meta: meta(bytes) })
            .collect(),
    };
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}

impl Bench {
    /// Executes what client `who` wrote.
    fn flush(&mut self, who: usize) -> Result<(), SessionError> {
        let client = &mut self.clients[who];
        let session = client.session.as_mut().unwrap();
        let mut position = 0;
        let tape = client.tape.take(Vec::new());
        self.node.execute(session, &tape, &mut position, usize::MAX, &mut client.sent)?;
        assert_eq!(position, tape.len());
        self.node.idle(session, &mut client.sent);
        Ok(())
    }

    fn close(&mut self, who: usize) {
        let session = self.clients[who].session.take().unwrap();
        self.node.close(session);
    }

    /// The bytes of a storage, or the error's code and message.
    fn read(
        &mut self,
        who: usize,
        id: StorageId,
        len: u64,
    ) -> Result<Vec<u8>, (ErrorCode, String)> {
        let client = &mut self.clients[who];
        client.next_token += 1;
        let token = client.next_token;
        client.tape.read(token, id, 0, len, None);
        self.flush(who).unwrap();
        let body = self.reply(who);
        let (answered, reply) = Reply::decode(&body).unwrap();
        assert_eq!(answered, token);
        match reply {
            Reply::Bytes(bytes) => Ok(bytes.to_vec()),
            Reply::Error { code, message } => Err((code, message.to_owned())),
            other => panic!("{other:?}"),
        }
    }

    fn reply(&mut self, who: usize) -> Vec<u8> {
        let (kind, body) = self.clients[who].sent.0.pop_back().expect("an answer");
        assert_eq!(kind, FrameKind::Reply);
        body
    }

    fn stored(&mut self, who: usize) -> WeightStored {
        let (kind, body) = self.clients[who].sent.0.pop_back().expect("an answer");
        assert_eq!(kind, FrameKind::WeightStored);
        WeightStored::decode(&body[..]).unwrap()
    }

    fn upload(&mut self, who: usize, bytes: &[u8]) -> StorageId {
        let tape = &mut self.clients[who].tape;
        let id = tape.alloc(bytes.len() as u64);
        tape.upload_inline(id, 0, bytes);
        id
    }

    fn tape(&mut self) -> &mut TapeWriter {
        &mut self.clients[0].tape
    }

    /// The sum of an uploaded byte and nothing.
    fn add(&mut self, who: usize, byte: u8) -> StorageId {
        let x = self.upload(who, &[byte]);
        let tape = &mut self.clients[who].tape;
        let add = tape.define(&template("fake::add", 1, 0, &[], &[1]));
        tape.op(add, &[x.0], &[], 1)
    }

    /// What the backend was told last.
    fn settings(&self) -> Vec<u8> {
        self.node.backend.settings.borrow().clone()
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.node.counters();
        counters.iter().find(|counter| counter.name == name).expect(name).value
    }
}

#[test]
fn an_operator_runs_and_its_result_is_read() {
    let mut bench = bench(&["me"]);
    let x = bench.upload(0, &[1, 2, 3]);
    let y = bench.upload(0, &[10, 20, 30]);
    let add = bench.tape().define(&template("fake::add", 2, 1, &[], &[3]));
    let sum = bench.tape().op(add, &[x.0, y.0], &[100], 1);
    assert_eq!(bench.read(0, sum, 3).unwrap(), [111, 122, 133]);
    assert_eq!(bench.counter("node.storage_bytes"), 9);
    for id in [x, y, sum] {
        bench.tape().free(id);
    }
    bench.flush(0).unwrap();
    assert_eq!(bench.counter("node.storage_bytes"), 0);
    assert_eq!(bench.counter("node.storages"), 0);
    assert_eq!(bench.counter("node.ops_executed"), 1);
}

#[test]
fn a_failure_poisons_what_it_would_have_written_and_nothing_else() {
    let mut bench = bench(&["me"]);
    let x = bench.upload(0, &[1]);
    let y = bench.upload(0, &[2]);
    let symbol = bench.tape().symbol("layers.0.mlp\0MLP");
    bench.tape().mark(genie_wire::record::MarkKind::ModuleEnter, symbol);
    let fail = bench.tape().define(&template("fake::fail", 2, 0, &[1], &[1, 1]));
    let add = bench.tape().define(&template("fake::add", 2, 0, &[], &[1]));
    let first = bench.tape().op(fail, &[x.0, y.0], &[], 2);
    bench.tape().mark(genie_wire::record::MarkKind::ModuleExit, symbol);
    let inherited = bench.tape().op(add, &[x.0, first.0], &[], 1);
    let fine = bench.tape().op(add, &[x.0, x.0], &[], 1);
    let expect =
        (ErrorCode::Index, "fake::fail: told to fail (in module layers.0.mlp (MLP))".to_owned());
    for id in [first, StorageId(first.0 + 1), y, inherited] {
        assert_eq!(bench.read(0, id, 1), Err(expect.clone()), "{id:?}");
    }
    assert_eq!(bench.read(0, x, 1).unwrap(), [1]);
    assert_eq!(bench.read(0, fine, 1).unwrap(), [2]);
    assert_eq!(bench.counter("node.op_errors"), 1);
    // Writing to it does not heal it; freeing it is fine.
    bench.tape().upload_inline(y, 0, &[7]);
    bench.tape().resize(y, 4);
    assert_eq!(bench.read(0, y, 1), Err(expect));
    bench.tape().free(y);
    bench.flush(0).unwrap();
}

/// Turns end in the middle of a script, what is inside is freed there, a failure names its place.
#[test]
fn a_script_runs_as_its_records_do() {
    let mut bench = bench(&["me"]);
    let (x, y) = (bench.upload(0, &[1]), bench.upload(0, &[2]));
    let symbol = bench.tape().symbol("layers.0.mlp\0MLP");
    let add = bench.tape().define(&template("fake::add", 2, 0, &[], &[1]));
    let fail = bench.tape().define(&template("fake::fail", 2, 0, &[], &[1]));
    let script = |bench: &mut Bench, second| {
        let mut body = TapeWriter::of_script(2);
        let inside = body.op(add, &[0, 1], &[], 1);
        body.mark(genie_wire::record::MarkKind::ModuleEnter, symbol);
        body.op(second, &[inside.0, 1], &[], 1);
        body.mark(genie_wire::record::MarkKind::ModuleExit, symbol);
        body.free(inside);
        body.free(StorageId(1));
        bench.tape().define_script(2, body.bytes())
    };
    let adds = script(&mut bench, add);
    let fails = script(&mut bench, fail);
    let (_, stored) = (bench.flush(0).unwrap(), bench.counter("node.storages"));
    let sum = bench.tape().run_script(adds, &[x.0, y.0], &[false], 2).0 + 1;
    let bytes = bench.tape().take(Vec::new());
    let (mut position, mut turns) = (0, 0);
    while position < bytes.len() {
        let client = &mut bench.clients[0];
        let session = client.session.as_mut().unwrap();
        bench.node.execute(session, &bytes, &mut position, 1, &mut client.sent).unwrap();
        turns += 1;
    }
    // The run itself, and its records but for the free that this run leaves out.
    assert_eq!(turns, 1 + 5);
    assert_eq!(bench.counter("node.storages"), stored + 1);
    assert_eq!(bench.read(0, StorageId(sum), 1).unwrap(), [5]);
    let failed = bench.tape().run_script(fails, &[x.0, y.0], &[true], 2).0 + 1;
    let expect =
        (ErrorCode::Index, "fake::fail: told to fail (in module layers.0.mlp (MLP))".to_owned());
    assert_eq!(bench.read(0, StorageId(failed), 1), Err(expect));
    assert_eq!(bench.counter("node.storages"), stored + 1, "y was freed, one more was made");
    assert_eq!(bench.counter("node.script_runs"), 2);
}

#[test]
fn an_unknown_operator_fails_where_it_is_used() {
    let mut bench = bench(&["me"]);
    let unknown = bench.tape().define(&template("other::op", 0, 0, &[], &[1]));
    bench.flush(0).unwrap();
    let id = bench.tape().op(unknown, &[], &[], 1);
    let (code, message) = bench.read(0, id, 1).unwrap_err();
    assert_eq!(code, ErrorCode::NotImplemented);
    assert!(message.starts_with("other::op: "), "{message}");
}

#[test]
fn the_budget_turns_overrun_into_out_of_memory_at_the_read() {
    let mut bench = bench(&["me"]);
    let huge = bench.tape().alloc(BUDGET + 1);
    bench.flush(0).unwrap();
    // A promise costs nothing.
    assert_eq!(bench.counter("node.storage_bytes"), 0);
    let (code, message) = bench.read(0, huge, 1).unwrap_err();
    assert_eq!(code, ErrorCode::OutOfMemory);
    assert!(message.contains("--memory-bytes"), "{message}");
    bench.tape().upload_inline(huge, 0, &[1]);
    assert_eq!(bench.read(0, huge, 1).unwrap_err().0, ErrorCode::OutOfMemory);

    let half = bench.tape().define(&template("fake::add", 0, 0, &[], &[BUDGET / 2 + 1]));
    let fits = bench.tape().op(half, &[], &[], 1);
    let does_not = bench.tape().op(half, &[], &[], 1);
    assert_eq!(bench.read(0, does_not, 1).unwrap_err().0, ErrorCode::OutOfMemory);
    bench.tape().free(fits);
    let again = bench.tape().op(half, &[], &[], 1);
    assert_eq!(bench.read(0, again, 1).unwrap(), [0]);
    bench.tape().resize(again, BUDGET * 2);
    assert_eq!(bench.read(0, again, 1).unwrap_err().0, ErrorCode::OutOfMemory);
    assert_eq!(bench.counter("node.storage_bytes"), 0);
}

#[test]
fn ranges_are_checked() {
    let mut bench = bench(&["me"]);
    let x = bench.upload(0, &[1, 2]);
    assert_eq!(bench.read(0, x, 3).unwrap_err().0, ErrorCode::Value);
    assert_eq!(bench.read(0, x, 2).unwrap(), [1, 2]);
    bench.tape().upload_inline(x, 1, &[1, 2]);
    assert_eq!(bench.read(0, x, 1).unwrap_err().0, ErrorCode::Value);
}

#[test]
fn a_broken_protocol_ends_the_session() {
    type Write = fn(&mut TapeWriter, StorageId);
    let cases: [(&str, Write); 7] = [
        ("a second free", |tape, id| tape.free(id)),
        ("a read of a freed storage", |tape, id| tape.read(1, id, 0, 1, None)),
        ("an upload to one", |tape, id| tape.upload_inline(id, 0, &[1])),
        ("a resize of one", |tape, id| tape.resize(id, 1)),
        ("storing one", |tape, id| tape.store_weight(id, &[0; 32])),
        ("binding one", |tape, id| tape.bind_weight(id, &[0; 32])),
        ("an upload from nowhere", |tape, _| {
            let id = tape.alloc(1);
            tape.upload(id, 0, 1, RegionSpan { region: 3, offset: 0 });
        }),
    ];
    for (what, write) in cases {
        let mut bench = bench(&["me"]);
        let id = bench.tape().alloc(1);
        bench.tape().free(id);
        bench.flush(0).unwrap();
        write(bench.tape(), id);
        assert!(bench.flush(0).is_err(), "{what}");
        bench.close(0);
        assert_eq!(bench.counter("node.storages"), 0);
    }
}

#[test]
fn uploads_and_reads_pass_through_regions_and_credits_come_in_order() {
    for (remote, direct) in [(false, false), (true, false), (true, true)] {
        let mut bench = bench_on(Fake { remote, direct, ..Fake::default() }, &["me"]);
        let region_bytes = 3 << 20;
        let memory = SharedMemory::create(region_bytes).unwrap();
        let session = bench.clients[0].session.as_mut().unwrap();
        let copy = SharedMemory::adopt(memory.fd().try_clone_to_owned().unwrap(), region_bytes);
        bench.node.add_region(session, 1, copy.unwrap()).unwrap();
        let again = SharedMemory::create(1).unwrap();
        assert!(bench.node.add_region(session, 1, again).is_err());

        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
        memory.write(100, &content).unwrap();
        let x = bench.tape().alloc(1_000_000);
        // In two chunks, then back to the start of the region.
        bench.tape().upload(x, 0, 600_000, RegionSpan { region: 1, offset: 100 });
        bench.tape().upload(x, 600_000, 400_000, RegionSpan { region: 1, offset: 600_100 });
        let to = RegionSpan { region: 1, offset: 2_000_000 };
        bench.tape().read(9, x, 1, 999_999, Some(to));
        bench.flush(0).unwrap();
        let mut back = vec![0; 999_999];
        memory.read(2_000_000, &mut back).unwrap();
        assert!(back == content[1..]);
        let mut released = 0;
        for (kind, body) in std::mem::take(&mut bench.clients[0].sent.0) {
            match kind {
                FrameKind::Released => {
                    let credit = Released::decode(&body[..]).unwrap();
                    assert_eq!(credit.region, 1);
                    released += credit.bytes;
                }
                FrameKind::Reply => assert_eq!(Reply::decode(&body), Ok((9, Reply::Done))),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(released, 1_000_000);
        // An upload to a failed storage still gives its bytes back.
        let y = bench.tape().alloc(BUDGET * 2);
        bench.tape().upload(y, 0, 7, RegionSpan { region: 1, offset: 0 });
        bench.flush(0).unwrap();
        let (kind, body) = bench.clients[0].sent.0.pop_back().unwrap();
        assert_eq!(kind, FrameKind::Released);
        assert_eq!(Released::decode(&body[..]).unwrap().bytes, 7);
        bench.tape().upload(x, 0, 2, RegionSpan { region: 1, offset: region_bytes - 1 });
        assert!(matches!(bench.flush(0), Err(SessionError::OutsideRegion { .. })));
    }
}

#[test]
fn a_weight_moves_once_and_is_shared_within_one_identity() {
    for remote in [false, true] {
        let mut bench = bench_on(Fake { remote, ..Fake::default() }, &["a", "a", "b"]);
        let content = [5u8; 100];
        let hash = *blake3::hash(&content).as_bytes();
        let w = bench.upload(0, &content);
        bench.clients[0].tape.store_weight(w, &hash);
        bench.flush(0).unwrap();
        let stored = bench.stored(0);
        assert_eq!((stored.refused.as_str(), stored.bytes), ("", 100));
        assert_eq!(stored.hash, hash);

        let bound = bench.clients[1].tape.alloc(100);
        bench.clients[1].tape.bind_weight(bound, &hash);
        assert_eq!(bench.read(1, bound, 100).unwrap(), content);
        assert_eq!(bench.counter("node.weight_bytes"), 100);
        assert_eq!(bench.counter("node.storage_bytes"), 0);
        assert_eq!(bench.counter("node.weight_hits"), 1);

        // Another identity does not see it, and a wrong size is not bound.
        let other = bench.clients[2].tape.alloc(100);
        bench.clients[2].tape.bind_weight(other, &hash);
        assert_eq!(bench.read(2, other, 1).unwrap_err().0, ErrorCode::WeightMissing);
        let short = bench.clients[1].tape.alloc(99);
        bench.clients[1].tape.bind_weight(short, &hash);
        assert_eq!(bench.read(1, short, 1).unwrap_err().0, ErrorCode::Value);

        // The first write copies: by an operator, by an upload, by a resize.
        let tape = &mut bench.clients[1].tape;
        let add = tape.define(&template("fake::add", 1, 1, &[0], &[]));
        tape.op(add, &[bound.0], &[1], 0);
        assert_eq!(bench.read(1, bound, 100).unwrap(), [6u8; 100]);
        assert_eq!(bench.read(0, w, 100).unwrap(), content);
        assert_eq!(bench.counter("node.storage_bytes"), 100);
        for change in [true, false] {
            let tape = &mut bench.clients[1].tape;
            let id = tape.alloc(100);
            tape.bind_weight(id, &hash);
            if change {
                tape.upload_inline(id, 0, &[9])
            } else {
                tape.resize(id, 50)
            }
            assert_eq!(bench.read(1, id, 2).unwrap(), [if change { 9 } else { 5 }, 5]);
            assert_eq!(bench.read(0, w, 100).unwrap(), content);
        }

        // A storage holds it, and nothing else does: it outlives its first session unheld.
        bench.close(0);
        assert_eq!(bench.counter("node.weight_bytes_unheld"), 100);
        let held = bench.clients[1].tape.alloc(100);
        bench.clients[1].tape.bind_weight(held, &hash);
        assert_eq!(bench.read(1, held, 100).unwrap(), content);
        assert_eq!(bench.counter("node.weight_bytes_unheld"), 0);
        bench.clients[1].tape.free(held);
        bench.flush(1).unwrap();
        assert_eq!(bench.counter("node.weight_bytes_unheld"), 100);
        bench.close(1);
        bench.close(2);
        assert_eq!(bench.node.holdings.ledger.used(), 100);
        assert_eq!(bench.counter("node.templates"), 0);
    }
}

/// Asks for one weight, as the content of a storage or of an id that was passed over.
fn have(bench: &mut Bench, who: usize, id: StorageId, bytes: u64, content: &[u8]) -> bool {
    bench.flush(who).unwrap();
    let hash = *blake3::hash(content).as_bytes();
    let session = bench.clients[who].session.as_mut().unwrap();
    bench.node.bind_if_stored(session, id, bytes, &hash).unwrap()
}

#[test]
fn a_question_binds_what_is_stored_to_its_storages() {
    let mut bench = bench(&["a", "a", "b"]);
    let w = bench.upload(0, b"weight");
    bench.clients[0].tape.store_weight(w, blake3::hash(b"weight").as_bytes());
    bench.flush(0).unwrap();

    let id = bench.clients[1].tape.alloc(6);
    assert!(have(&mut bench, 1, id, 6, b"weight"));
    assert_eq!(bench.read(1, id, 6).unwrap(), b"weight");
    // An id that was passed over comes alive.
    let passed = bench.clients[1].tape.next_storage();
    bench.clients[1].tape.skip(2);
    assert!(have(&mut bench, 1, passed, 6, b"weight"));
    assert!(!have(&mut bench, 1, StorageId(passed.0 + 1), 6, b"absent"));
    assert_eq!(bench.read(1, passed, 6).unwrap(), b"weight");
    bench.clients[1].tape.free(passed);

    // What does not fit, or is another's, stays as it is; an id to come is no storage.
    let short = bench.upload(1, b"short");
    assert!(!have(&mut bench, 1, short, 5, b"weight"));
    assert!(!have(&mut bench, 1, short, 6, b"weight"));
    assert_eq!(bench.read(1, short, 5).unwrap(), b"short");
    let stranger = bench.clients[2].tape.alloc(6);
    assert!(!have(&mut bench, 2, stranger, 6, b"weight"));
    let poisoned = bench.upload(1, b"poison");
    bench.clients[1].tape.bind_weight(poisoned, &[9; 32]);
    assert!(!have(&mut bench, 1, poisoned, 6, b"weight"));
    assert_eq!(bench.read(1, poisoned, 6).unwrap_err().0, ErrorCode::WeightMissing);
    let hash = *blake3::hash(b"weight").as_bytes();
    let session = bench.clients[1].session.as_mut().unwrap();
    let beyond = bench.node.bind_if_stored(session, StorageId(99), 6, &hash);
    assert!(matches!(beyond, Err(SessionError::NotAlive { .. })));
    bench.close(1);
    assert_eq!(bench.counter("node.weight_bytes_unheld"), 0, "the first session holds it");
}

#[test]
fn weights_that_nobody_uses_make_room_for_tensors() {
    let mut bench = bench(&["a"]);
    for byte in 1..=3 {
        // The fake allocates zeros.
        let mut content = vec![0; BUDGET as usize / 3];
        content[0] = byte;
        let id = bench.tape().alloc(content.len() as u64);
        bench.tape().upload_inline(id, 0, &[byte]);
        bench.tape().store_weight(id, blake3::hash(&content).as_bytes());
        bench.tape().free(id);
    }
    bench.flush(0).unwrap();
    assert_eq!(bench.counter("node.weights"), 3);
    let large = bench.tape().alloc(BUDGET / 2);
    bench.tape().upload_inline(large, 0, &[7]);
    assert_eq!(bench.read(0, large, 1).unwrap(), [7]);
    assert_eq!(bench.counter("node.weights"), 1);
    assert_eq!(bench.counter("node.weights_evicted"), 2);
}

#[test]
fn a_weight_is_stored_under_its_true_hash_only() {
    let mut bench = bench(&["a"]);
    let secret = bench.upload(0, b"secret");
    let hash = *blake3::hash(b"secret").as_bytes();
    bench.tape().store_weight(secret, &hash);
    bench.flush(0).unwrap();
    assert_eq!(bench.stored(0).refused, "");
    // Naming the hash of a stored weight gives no access to its content.
    let liar = bench.upload(0, b"public");
    bench.tape().store_weight(liar, &hash);
    bench.flush(0).unwrap();
    assert!(bench.stored(0).refused.contains("hash"));
    assert_eq!(bench.read(0, liar, 6).unwrap(), b"public", "it keeps what was uploaded");
    bench.tape().free(liar);
    // The same content stored again joins the stored weight.
    let same = bench.upload(0, b"secret");
    bench.tape().store_weight(same, &hash);
    bench.tape().store_weight(same, &hash);
    bench.flush(0).unwrap();
    assert_eq!((bench.counter("node.weights"), bench.node.holdings.ledger.used()), (1, 6));
}

#[test]
fn run_records_are_answered() {
    let mut bench = bench(&["me"]);
    let x = bench.upload(0, &[1, 2]);
    let first = bench.tape().run(7, &template("fake::add", 1, 0, &[], &[2, 1]), &[x.0], &[], 4);
    bench.flush(0).unwrap();
    let body = bench.reply(0);
    let expect = Reply::Outputs { storage_bytes: vec![2, 1], outputs: vec![], scalars: &[] };
    assert_eq!(Reply::decode(&body), Ok((7, expect)));
    assert_eq!(bench.read(0, first, 2).unwrap(), [1, 2]);
    assert_eq!(bench.read(0, StorageId(first.0 + 1), 1).unwrap(), [1]);
    bench.tape().run(8, &template("fake::fail", 1, 0, &[0], &[]), &[x.0], &[], 1);
    bench.flush(0).unwrap();
    let body = bench.reply(0);
    assert!(matches!(Reply::decode(&body), Ok((8, Reply::Error { code: ErrorCode::Index, .. }))));
    // The program got the error at the call: what would have been written keeps its value.
    assert_eq!(bench.read(0, x, 1).unwrap(), [1]);
    let fail = bench.tape().define(&template("fake::fail", 1, 0, &[0], &[]));
    bench.tape().op(fail, &[x.0], &[], 0);
    assert_eq!(bench.read(0, x, 1).unwrap_err().0, ErrorCode::Index);
    bench.tape().run(9, &template("fake::add", 1, 0, &[], &[1]), &[x.0], &[], 1);
    bench.flush(0).unwrap();
    let body = bench.reply(0);
    assert!(matches!(Reply::decode(&body), Ok((9, Reply::Error { code: ErrorCode::Index, .. }))));
}

#[test]
fn each_session_has_a_generator_of_its_own() {
    let mut bench = bench(&["a", "b"]);
    let random = template("fake::random", 0, 0, &[], &[1]);
    let draw = |bench: &mut Bench, who: usize| {
        let tape = &mut bench.clients[who].tape;
        let id = tape.define(&random);
        let id = tape.op(id, &[], &[], 1);
        bench.read(who, id, 1).unwrap()
    };
    let first = draw(&mut bench, 0);
    draw(&mut bench, 0);
    assert_eq!(draw(&mut bench, 1), first);
    bench.tape().seed(3);
    bench.tape().get_generator_state(1);
    bench.flush(0).unwrap();
    let body = bench.reply(0);
    let state = 3u64.to_le_bytes();
    assert_eq!(Reply::decode(&body), Ok((1, Reply::Bytes(&state))));
    let seeded = draw(&mut bench, 0);
    bench.tape().set_generator_state(&state);
    assert_eq!(draw(&mut bench, 0), seeded);
    bench.tape().set_generator_state(b"wrong size");
    bench.tape().fence(5);
    bench.flush(0).unwrap();
    assert_eq!(Reply::decode(&bench.reply(0)), Ok((5, Reply::Reached { at_ns: 0 })));
}

#[test]
fn many_inputs_and_turns_of_few_records_work() {
    let mut bench = bench(&["me"]);
    let inputs: Vec<u64> = (0..40).map(|_| bench.upload(0, &[1]).0).collect();
    let add = bench.tape().define(&template("fake::add", 40, 0, &[39], &[1]));
    let sum = bench.tape().op(add, &inputs, &[], 1);
    let client = &mut bench.clients[0];
    let (tape, mut position) = (client.tape.take(Vec::new()), 0);
    while position < tape.len() {
        let session = client.session.as_mut().unwrap();
        bench.node.execute(session, &tape, &mut position, 1, &mut client.sent).unwrap();
    }
    assert_eq!(bench.read(0, sum, 1).unwrap(), [40]);
    assert_eq!(bench.read(0, StorageId(inputs[39]), 1).unwrap(), [40]);
}

#[test]
fn the_clients_thread_count_is_set_when_sessions_change() {
    let mut node = Executor::new(Fake::default(), BUDGET);
    let settings = |threads| SessionSettings { threads, ..SessionSettings::default() };
    let mut sessions: Vec<_> =
        [2, 1, 0, 1_000_000].map(|threads| node.open(settings(threads)).unwrap()).into();
    let expect = [2, 1, 1, THREADS_MAX];
    for (session, threads) in sessions.iter_mut().zip(expect) {
        node.execute(session, &[], &mut 0, 1, &mut SentFrames::default()).unwrap();
        assert_eq!(node.backend.threads.get(), threads);
    }
}

#[test]
fn each_session_runs_under_its_own_settings() {
    let mut bench = bench(&["a", "b"]);
    let x = [0, 1].map(|who| bench.clients[who].tape.alloc(1));
    bench.clients[0].tape.settings(3, b"of a");
    bench.flush(0).unwrap();
    assert_eq!((bench.node.backend.threads.get(), bench.settings()), (3, b"of a".to_vec()));
    bench.clients[1].tape.settings(5, b"of b");
    bench.flush(1).unwrap();
    assert_eq!((bench.node.backend.threads.get(), bench.settings()), (5, b"of b".to_vec()));
    for (who, threads, settings) in [(0, 3, "of a"), (1, 5, "of b")] {
        bench.clients[who].tape.free(x[who]);
        bench.flush(who).unwrap();
        assert_eq!(bench.node.backend.threads.get(), threads);
        assert_eq!(bench.settings(), settings.as_bytes());
    }
}

#[test]
fn no_client_gets_more_threads_than_the_node_gives() {
    let limits = ExecutorLimits { threads_max: 2, ..ExecutorLimits::of(BUDGET) };
    let mut node = Executor::with_limits(Fake::default(), limits);
    let mut tape = TapeWriter::new();
    tape.settings(256, b"more");
    for fixed in [false, true] {
        let settings =
            SessionSettings { threads: 256, threads_fixed: fixed, ..SessionSettings::default() };
        let mut session = node.open(settings).unwrap();
        for bytes in [&[][..], tape.bytes()] {
            node.execute(&mut session, bytes, &mut 0, 9, &mut SentFrames::default()).unwrap();
            assert_eq!(node.backend.threads.get(), 2);
        }
        node.close(session);
    }
}

#[test]
fn threads_that_the_host_fixed_stay() {
    let mut node = Executor::new(Fake::default(), BUDGET);
    let fixed = SessionSettings { threads: 2, threads_fixed: true, ..SessionSettings::default() };
    let mut session = node.open(fixed).unwrap();
    let mut tape = TapeWriter::new();
    tape.settings(7, b"");
    node.execute(&mut session, tape.bytes(), &mut 0, 1, &mut SentFrames::default()).unwrap();
    assert_eq!(node.backend.threads.get(), 2);
}

#[test]
fn settings_that_the_node_lacks_fail_what_runs_under_them_and_nothing_else() {
    let mut bench = bench(&["a"]);
    let before = bench.add(0, 1);
    bench.clients[0].tape.settings(0, b"unknown");
    let under = bench.add(0, 1);
    bench.clients[0].tape.settings(0, b"");
    let after = bench.add(0, 1);
    assert!(bench.read(0, before, 1).is_ok());
    assert!(bench.read(0, under, 1).unwrap_err().1.contains("no such setting"));
    assert!(bench.read(0, after, 1).is_ok());
}

const THREADS_MAX: u32 = 256;

/// One step of a random program; numbers choose among what exists.
#[derive(Debug, Clone)]
enum Step {
    Upload(Vec<u8>),
    Alloc(u8),
    Overwrite(u8, u8, u8),
    Resize(u8, u8),
    Op { inputs: [u8; 3], mutate: bool, new: u8, scalar: u8 },
    Free(u8),
    Read(u8),
    Store(u8),
    StoreWrong(u8),
    Bind(u8, u8),
    Fail(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Step::Upload),
        (0u8..4).prop_map(Step::Alloc),
        any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Step::Overwrite(a, b % 4, c)),
        any::<(u8, u8)>().prop_map(|(a, b)| Step::Resize(a, b % 4)),
        any::<([u8; 3], bool, u8, u8)>().prop_map(|(inputs, mutate, new, scalar)| {
            Step::Op { inputs, mutate, new: new % 3, scalar }
        }),
        any::<u8>().prop_map(Step::Free),
        any::<u8>().prop_map(Step::Read),
        any::<u8>().prop_map(Step::Store),
        any::<u8>().prop_map(Step::StoreWrong),
        any::<(u8, u8)>().prop_map(|(a, b)| Step::Bind(a, b)),
        any::<(u8, u8)>().prop_map(|(a, b)| Step::Fail(a, b)),
    ];
    prop::collection::vec((any::<bool>(), step), 0..80)
}

/// What a storage must hold.
type Expected = Result<Vec<u8>, ErrorCode>;

/// The meaning of a program, without sharing, laziness or sessions' common state.
#[derive(Default)]
struct Model {
    storages: Vec<(StorageId, Expected)>,
}

impl Model {
    fn pick(&mut self, choice: u8) -> Option<&mut (StorageId, Expected)> {
        let len = self.storages.len();
        (len > 0).then(|| &mut self.storages[choice as usize % len])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_tape_is_executed_or_refused(tape: Vec<u8>, prefix in steps()) {
        let mut bench = bench(&["a", "a"]);
        play(&mut bench, &prefix);
        let client = &mut bench.clients[0];
        let session = client.session.as_mut().unwrap();
        let _ = bench.node.execute(session, &tape, &mut 0, usize::MAX, &mut client.sent);
        bench.close(0);
        bench.close(1);
        prop_assert_eq!(bench.counter("node.storages"), 0);
        prop_assert_eq!(bench.counter("node.storage_bytes"), 0);
    }

    /// Two sessions of one identity share weights, and neither ever sees the other's writes.
    #[test]
    fn programs_mean_what_they_mean_alone(steps in steps()) {
        let mut bench = bench(&["a", "a"]);
        let models = play(&mut bench, &steps);
        for (who, model) in models.iter().enumerate() {
            for (id, expected) in &model.storages {
                let len = expected.as_ref().map_or(0, |bytes| bytes.len()) as u64;
                let found = bench.read(who, *id, len).map_err(|(code, _)| code);
                prop_assert_eq!(&found, expected, "session {} storage {:?}", who, id);
            }
        }
        bench.close(0);
        bench.close(1);
        prop_assert_eq!(bench.counter("node.storage_bytes"), 0);
        prop_assert_eq!(bench.node.holdings.ledger.used(), bench.counter("node.weight_bytes"));
    }
}

/// Plays the steps on two sessions and returns what each must hold in the end.
fn play(bench: &mut Bench, steps: &[(bool, Step)]) -> [Model; 2] {
    let mut models = [Model::default(), Model::default()];
    let mut weights: Vec<Vec<u8>> = Vec::new();
    for (who, step) in steps {
        let who = usize::from(*who);
        let model = &mut models[who];
        match step {
            Step::Upload(bytes) => {
                let id = bench.upload(who, bytes);
                model.storages.push((id, Ok(bytes.clone())));
            }
            Step::Alloc(bytes) => {
                let id = bench.clients[who].tape.alloc((*bytes).into());
                // The fake allocates zeros.
                model.storages.push((id, Ok(vec![0; usize::from(*bytes)])));
            }
            Step::Overwrite(choice, offset, byte) => {
                let Some((id, expected)) = model.pick(*choice) else {
                    continue;
                };
                bench.clients[who].tape.upload_inline(*id, (*offset).into(), &[*byte]);
                if let Ok(bytes) = expected {
                    match bytes.get_mut(usize::from(*offset)) {
                        Some(place) => *place = *byte,
                        None => *expected = Err(ErrorCode::Value),
                    }
                }
            }
            Step::Resize(choice, bytes) => {
                let Some((id, expected)) = model.pick(*choice) else {
                    continue;
                };
                bench.clients[who].tape.resize(*id, (*bytes).into());
                if let Ok(content) = expected {
                    content.resize((*bytes).into(), 0);
                }
            }
            Step::Op { inputs, mutate, new, scalar } => {
                let picked: Vec<_> =
                    inputs.iter().filter_map(|c| model.pick(*c).map(|p| p.clone())).collect();
                let ids: Vec<u64> = picked.iter().map(|(id, _)| id.0).collect();
                let mutated: &[u32] = if *mutate && !ids.is_empty() { &[0] } else { &[] };
                let new_bytes = vec![2; (*new).into()];
                let tape = &mut bench.clients[who].tape;
                let add = template("fake::add", ids.len() as u32, 1, mutated, &new_bytes);
                let add = tape.define(&add);
                let first = tape.op(add, &ids, &[(*scalar).into()], (*new).into());
                let contents: Expected = Ok(vec![]);
                let failed = picked.iter().find_map(|(_, e)| e.as_ref().err().copied());
                let sum = |at: usize| {
                    picked.iter().fold(*scalar, |sum, (_, expected)| {
                        let byte = expected.as_ref().ok().and_then(|b| b.get(at));
                        sum.wrapping_add(byte.copied().unwrap_or(0))
                    })
                };
                let result = |len: usize| match failed {
                    Some(code) => Err(code),
                    None => contents.clone().map(|_| (0..len).map(sum).collect()),
                };
                if !mutated.is_empty() {
                    let (id, before) = &picked[0];
                    let after = result(before.as_ref().map_or(0, Vec::len));
                    let place = model.storages.iter_mut().find(|(other, _)| other == id).unwrap();
                    if place.1.is_ok() {
                        place.1 = after;
                    }
                }
                for i in 0..u64::from(*new) {
                    model.storages.push((StorageId(first.0 + i), result(2)));
                }
            }
            Step::Free(choice) => {
                let Some(id) = model.pick(*choice).map(|(id, _)| *id) else {
                    continue;
                };
                bench.clients[who].tape.free(id);
                model.storages.retain(|(other, _)| *other != id);
            }
            Step::Read(choice) => {
                let Some((id, expected)) = model.pick(*choice).map(|p| p.clone()) else {
                    continue;
                };
                let len = expected.as_ref().map_or(0, |bytes| bytes.len()) as u64;
                let found = bench.read(who, id, len).map_err(|(code, _)| code);
                assert_eq!(found, expected);
            }
            Step::Store(choice) => {
                let Some((id, expected)) = model.pick(*choice).map(|p| p.clone()) else {
                    continue;
                };
                let content = expected.unwrap_or_default();
                bench.clients[who].tape.store_weight(id, blake3::hash(&content).as_bytes());
                weights.push(content);
            }
            Step::StoreWrong(choice) => {
                let Some((id, _)) = model.pick(*choice) else {
                    continue;
                };
                // Another hash than its content has: nothing happens.
                bench.clients[who].tape.store_weight(*id, &[0; 32]);
            }
            Step::Bind(choice, weight) => {
                let Some((id, expected)) = model.pick(*choice) else {
                    continue;
                };
                let Some(content) = weights.get(usize::from(*weight) % weights.len().max(1)) else {
                    continue;
                };
                let hash = *blake3::hash(content).as_bytes();
                bench.clients[who].tape.bind_weight(*id, &hash);
                // The tapes of the two sessions run one after the other.
                let identity: Arc<str> = "a".into();
                let account = bench.node.holdings.ledger.account(&identity);
                bench.flush(1 - who).unwrap();
                let known = {
                    let bytes = bench.clients[who].tape.take(Vec::new());
                    // Everything before the binding first, to know what is stored by then.
                    let client = &mut bench.clients[who];
                    let session = client.session.as_mut().unwrap();
                    let (mut position, mut known) = (0, false);
                    while position < bytes.len() {
                        let weight = bench.node.holdings.hold(account, &hash);
                        known = weight.is_some();
                        weight.into_iter().for_each(|weight| bench.node.holdings.release(weight));
                        let sent = &mut client.sent;
                        bench.node.execute(session, &bytes, &mut position, 1, sent).unwrap();
                    }
                    known
                };
                if let Ok(before) = expected {
                    if !known {
                        *expected = Err(ErrorCode::WeightMissing);
                    } else if before.len() != content.len() {
                        *expected = Err(ErrorCode::Value);
                    } else {
                        *expected = Ok(content.clone());
                    }
                }
            }
            Step::Fail(input, new) => {
                let Some((id, expected)) = model.pick(*input) else {
                    continue;
                };
                let new = u64::from(new % 3);
                let tape = &mut bench.clients[who].tape;
                let fail = tape.define(&template("fake::fail", 1, 0, &[0], &vec![1; new as usize]));
                let first = tape.op(fail, &[id.0], &[], new);
                let code = expected.as_ref().err().copied().unwrap_or(ErrorCode::Index);
                *expected = Err(code);
                for i in 0..new {
                    model.storages.push((StorageId(first.0 + i), Err(code)));
                }
            }
        }
    }
    for who in 0..2 {
        bench.flush(who).unwrap();
    }
    models
}
