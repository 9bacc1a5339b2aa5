//! The client against a host in the same process: a link pair and a thread that keeps storages
//! as bytes.

mod fake_host;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use genie_wire::limits::{STRING_BYTES_MAX, SYMBOLS_BYTES_MAX, TOKENS_MAX};
use genie_wire::record::MarkKind;
use genie_wire::{ErrorCode, PROTOCOL_SETTINGS, StorageId, Template};

use crate::client::core::NO_ROOM;
use crate::client::limits::{INLINE_UPLOAD_BYTES_MAX, SIGHT_BYTES_MIN, WEIGHT_BYTES_MIN};
use crate::client::{
    Content, Hooks, NO_INTERPRETER, Options, Session, Settings, Stage, begin_weights, end_weights,
};
use fake_host::{Behaviour, FakeHost};

/// What the hello of [`options`] says.
const PLAIN: Settings<'_> = Settings { hash: 0, threads: 1, bytes: &[] };
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    let bytes = 256 << 10;
    Options { upload_bytes: bytes, download_bytes: bytes, ..Options::default() }
}

fn start(behaviour: Behaviour) -> (Session, FakeHost) {
    start_with(behaviour, &NO_INTERPRETER)
}

fn start_with(behaviour: Behaviour, hooks: &'static Hooks) -> (Session, FakeHost) {
    let (link, host) = FakeHost::start(behaviour);
    let session = Session::open(Box::new(link), "the test's host".into(), &options(), hooks)
        .expect("the fake host welcomes");
    (session, host)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

fn template() -> Vec<u8> {
    let mut encoded = Vec::new();
    Template {
        op: "aten::relu".into(),
        slots: 1,
        scalars: 1,
        mutated: vec![],
        random: false,
        new_storages: vec![16],
        args: vec![],
        outputs: vec![],
    }
    .encode(&mut encoded);
    encoded
}

#[test]
fn bytes_of_every_size_come_back() {
    let (session, _host) = start(Behaviour::default());
    for len in [1, 63, 64, 4096, 4097, 65536, 65537, 1 << 20, (3 << 20) + 5] {
        for whole in [false, true] {
            let sent = pattern(len, u8::from(whole));
            let id = session.alloc(len as u64);
            let content = if whole { Content::Whole } else { Content::Part };
            session.upload(id, 0, &sent, content).unwrap();
            let mut back = vec![0; len];
            session.read(id, 0, &mut back).unwrap();
            assert!(back == sent, "{len} bytes, whole {whole}");
            let mut tail = vec![0; len / 2];
            session.read(id, (len - len / 2) as u64, &mut tail).unwrap();
            assert!(tail == sent[len - len / 2..], "the second half of {len} bytes");
            session.free(id, len as u64);
        }
    }
}

#[test]
fn a_session_that_ended_is_freed() {
    let (session, _host) = start(Behaviour::default());
    let session = Arc::new(session);
    session.clone().send_what_lingers().unwrap();
    session.synchronize().unwrap();
    let until = |what: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    };
    // The thread has nothing to look for any more.
    until(&|| session.lock().sleeper.is_asleep());
    session.close();
    until(&|| Arc::strong_count(&session) == 1);
}

/// Uploads to a storage of its own and checks what is there; returns the payload bytes it took.
fn moved(session: &Session, bytes: &[u8], content: Content) -> u64 {
    let before = session.counters().payload_bytes_up;
    let id = session.alloc(bytes.len() as u64);
    session.upload(id, 0, bytes, content).unwrap();
    let mut back = vec![0; bytes.len()];
    session.read(id, 0, &mut back).unwrap();
    assert!(back == bytes);
    session.free(id, bytes.len() as u64);
    session.counters().payload_bytes_up - before
}

#[test]
fn a_parameter_moves_once_and_other_content_twice() {
    let (session, host) = start(Behaviour::default());
    let weight = pattern(INLINE_UPLOAD_BYTES_MAX as usize * 100, 1);
    let len = weight.len() as u64;
    let times = |content, bytes: &[u8]| [0; 4].map(|_| moved(&session, bytes, content));
    assert_eq!(times(Content::Weight, &weight), [len, 0, 0, 0]);
    assert_eq!(times(Content::Whole, &pattern(weight.len(), 2)), [len, len, 0, 0]);
    assert_eq!(session.counters().weights_bound, 5);
    assert_eq!(session.counters().weight_queries, 7, "new content is not asked for");
    session.synchronize().unwrap();
    drop(session);
    assert_eq!(host.join().live_storages, 0);
}

#[test]
fn fresh_batches_cost_no_question() {
    let (session, _host) = start(Behaviour::default());
    for seed in 0..=255 {
        assert_eq!(
            moved(&session, &pattern(SIGHT_BYTES_MIN as usize, seed), Content::Whole),
            SIGHT_BYTES_MIN
        );
    }
    assert_eq!(session.counters().weight_queries, 0);
}

#[test]
fn announced_weights_are_asked_for_in_one_question() {
    let (session, host) = start(Behaviour::default());
    let weights: Vec<Vec<u8>> =
        (0..100).map(|at| pattern(WEIGHT_BYTES_MIN as usize + at, at as u8)).collect();
    let places = || weights.iter().map(|weight| (weight.as_ptr().addr(), weight.len()));
    for round in 0..3 {
        let before = session.counters();
        // SAFETY: the weights live longer.
        unsafe { begin_weights(places().chain(places())) };
        for weight in &weights {
            let up = moved(&session, weight, Content::Whole);
            assert_eq!(up, if round == 0 { weight.len() as u64 } else { 0 });
        }
        end_weights(Some(&session));
        let after = session.counters();
        assert_eq!(after.weight_queries - before.weight_queries, 1);
        assert_eq!(after.weights_bound - before.weights_bound, if round == 0 { 0 } else { 100 });
    }
    // What was announced and never came holds nothing.
    // SAFETY: as above.
    unsafe { begin_weights(places()) };
    assert_eq!(moved(&session, &weights[50], Content::Whole), 0);
    end_weights(Some(&session));
    session.synchronize().unwrap();
    drop(session);
    assert_eq!(host.join().live_storages, 0);
}

#[test]
fn an_announcement_is_its_threads_own_and_ends() {
    let (session, _host) = start(Behaviour::default());
    let weight = pattern(256, 1);
    // SAFETY: the weight lives longer.
    unsafe { begin_weights([(weight.as_ptr().addr(), weight.len())]) };
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(moved(&session, &weight, Content::Whole), 256));
    });
    assert_eq!(session.counters().weight_queries, 0);
    end_weights(Some(&session));
    assert_eq!(moved(&session, &weight, Content::Whole), 256);
    assert_eq!(session.counters().weight_queries, 0);
}

#[test]
fn a_question_that_is_interrupted_leaves_nothing_on_the_node() {
    let behaviour = Behaviour { hold_answers: true, ..Behaviour::default() };
    let (session, host) = start_with(behaviour, &INTERRUPTING);
    let weight = pattern(256, 1);
    let store = session.alloc(256);
    session.upload(store, 0, &weight, Content::Part).unwrap();
    session.lock().tape.store_weight(StorageId(store), &blake3::hash(&weight).into());
    // SAFETY: the weight lives longer.
    unsafe { begin_weights([(weight.as_ptr().addr(), weight.len())]) };
    let id = session.alloc(256);
    INTERRUPT.store(true, Ordering::SeqCst);
    assert!(session.upload(id, 0, &weight, Content::Whole).unwrap_err().is_interrupt());
    end_weights(Some(&session));
    host.release_reads();
    session.free(store, 256);
    session.free(id, 256);
    session.synchronize().unwrap();
    // The late answer came before the fence's; what it bound is freed behind it.
    session.synchronize().unwrap();
    drop(session);
    assert_eq!(host.join().live_storages, 0);
}

#[test]
fn settings_are_told_when_they_change_and_only_to_those_who_know_them() {
    for protocol in [PROTOCOL_SETTINGS - 1, PROTOCOL_SETTINGS] {
        let (session, host) = start(Behaviour { protocol, ..Behaviour::default() });
        let template = session.define(&template());
        let x = session.alloc(16);
        let other = Settings { hash: 7, threads: 2, bytes: b"other" };
        for settings in [PLAIN, PLAIN, other, other, PLAIN] {
            session.op(Stage::Forward, settings, template, &[x], &[0], 1);
        }
        let threads_alone = Settings { threads: 3, ..PLAIN };
        session
            .run(Stage::Forward, threads_alone, &self::template(), &[x], &[0], 1, |_, _| ())
            .unwrap();
        session.synchronize().unwrap();
        assert_eq!(session.carries_settings(), protocol == PROTOCOL_SETTINGS);
        drop(session);
        let told = host.join().settings;
        if protocol < PROTOCOL_SETTINGS {
            assert_eq!(told, []);
        } else {
            assert_eq!(told, [(2, b"other".to_vec()), (1, vec![]), (3, vec![])]);
        }
    }
}

#[test]
fn records_arrive_in_program_order_and_whole() {
    let (session, host) = start(Behaviour::default());
    let template = session.define(&template());
    let mut last = session.alloc(16);
    for word in 0..10_000 {
        let next = session.op(Stage::Forward, PLAIN, template, &[last], &[word], 1);
        session.free(last, 16);
        last = next;
    }
    session.op(Stage::Backward, PLAIN, template, &[last], &[0], 1);
    session.mark(MarkKind::PhaseEnter, "decode");
    session.mark(MarkKind::PhaseExit, "decode");
    session.synchronize().unwrap();
    drop(session);
    let seen = host.join();
    assert_eq!(seen.ops, 10_001);
    assert_eq!(seen.symbols, ["backward", "decode"]);
    assert_eq!(seen.live_storages, 2);
}

#[test]
fn marks_without_operators_leave_no_trace() {
    let (session, host) = start(Behaviour::default());
    let template = session.define(&template());
    let id = session.alloc(16);
    let enter = |text| session.mark(MarkKind::ModuleEnter, text);
    let leave = |text| session.mark(MarkKind::ModuleExit, text);
    enter("\0Elsewhere");
    enter("part\0Linear");
    leave("part\0Linear");
    leave("\0Elsewhere");
    assert_eq!(session.counters().marks, 0);
    enter("\0Net");
    enter("a\0Linear");
    leave("a\0Linear");
    enter("b\0Linear");
    session.op(Stage::Forward, PLAIN, template, &[id], &[0], 1);
    leave("b\0Linear");
    leave("\0Net");
    session.synchronize().unwrap();
    drop(session);
    use MarkKind::{ModuleEnter, ModuleExit};
    let texts = ["\0Elsewhere", "part\0Linear", "\0Net", "a\0Linear", "b\0Linear"];
    let seen = host.join();
    assert_eq!(seen.symbols, texts);
    assert_eq!(seen.marks, [(ModuleEnter, 2), (ModuleEnter, 4), (ModuleExit, 4), (ModuleExit, 2)]);
}

#[test]
fn many_threads_wait_at_once() {
    let (session, _host) = start(Behaviour::default());
    std::thread::scope(|scope| {
        for seed in 0..6u8 {
            let session = &session;
            scope.spawn(move || {
                for round in 0..50usize {
                    let sent = pattern(1 + round * 3001, seed);
                    let id = session.alloc(sent.len() as u64);
                    let content = if round % 2 == 0 { Content::Weight } else { Content::Part };
                    session.upload(id, 0, &sent, content).unwrap();
                    let mut back = vec![0; sent.len()];
                    session.read(id, 0, &mut back).unwrap();
                    assert!(back == sent);
                }
            });
        }
    });
}

#[test]
fn a_host_that_is_gone_ends_reads_soon() {
    let (session, host) = start(Behaviour { vanish_at_fence: true, ..Behaviour::default() });
    let id = session.alloc(4);
    let begun = Instant::now();
    let error = session.synchronize().unwrap_err();
    assert_eq!(error.code, ErrorCode::NodeLost as u8, "{error}");
    assert!(error.message.contains("the test's host"), "{error}");
    assert!(begun.elapsed() < PATIENCE);
    assert!(!session.is_live());
    assert_eq!(session.read(id, 0, &mut [0; 4]).unwrap_err().code, ErrorCode::NodeLost as u8);
    // Capturing goes on without waiting or growing.
    for _ in 0..1000 {
        session.alloc(4);
    }
    session.free(id, 4);
    host.join();
}

#[test]
fn errors_of_the_node_keep_their_class_and_the_session() {
    let (session, _host) = start(Behaviour::default());
    let id = session.alloc(fake_host::POISONED_BYTES);
    let error = session.read(id, 0, &mut [0; 8]).unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::OutOfMemory as u8, "no room"));
    let mut large = vec![0; 200 << 10];
    assert_eq!(session.read(id, 0, &mut large).unwrap_err().code, ErrorCode::OutOfMemory as u8);
    session.synchronize().unwrap();
}

#[test]
fn a_reply_that_the_node_is_gone_ends_the_session() {
    let (session, _host) = start(Behaviour::default());
    let id = session.alloc(fake_host::LOST_BYTES);
    let error = session.read(id, 0, &mut [0; 8]).unwrap_err();
    assert_eq!(error.code, ErrorCode::NodeLost as u8);
    assert!(
        error.message.starts_with("the node is gone. ") && error.message.contains("genie.init()")
    );
    assert!(!session.is_live(), "so that genie.init() starts anew");
    assert_eq!(session.synchronize().unwrap_err(), error);
}

static INTERRUPT: AtomicBool = AtomicBool::new(false);
static INTERRUPTING: Hooks = Hooks {
    release: || 0,
    restore: |_| (),
    interrupted: || INTERRUPT.swap(false, Ordering::SeqCst),
};

#[test]
fn an_interrupted_read_leaves_the_session_usable() {
    let held = Behaviour { hold_reads: true, ..Behaviour::default() };
    let (session, host) = start_with(held, &INTERRUPTING);
    let sent = pattern(1 << 20, 3);
    let id = session.alloc(sent.len() as u64);
    session.upload(id, 0, &sent, Content::Part).unwrap();
    for len in [8, 1 << 20] {
        let mut back = vec![0; len];
        INTERRUPT.store(true, Ordering::SeqCst);
        assert!(session.read(id, 0, &mut back).unwrap_err().is_interrupt());
    }
    host.release_reads();
    let mut back = vec![0; sent.len()];
    session.read(id, 0, &mut back).unwrap();
    assert!(back == sent, "late answers of abandoned reads are dropped");
}

#[test]
fn outputs_of_a_run_are_handed_over() {
    let (session, host) = start(Behaviour::default());
    let input = session.alloc(16);
    let mut seen = None;
    session
        .run(Stage::Forward, PLAIN, &template(), &[input], &[7], 4, |first, body| {
            seen = Some((first, body.to_vec()))
        })
        .unwrap();
    // One storage of 16 bytes, no outputs, no scalars.
    assert_eq!(seen, Some((input + 1, vec![1, 16, 0, 0])));
    assert_eq!(session.alloc(1), input + 5, "the reserved ids are passed over");
    drop(session);
    host.join();
}

#[test]
fn a_slow_host_bounds_the_queue() {
    let (session, host) = start(Behaviour { stall: true, ..Behaviour::default() });
    let template = session.define(&template());
    let id = session.alloc(16);
    let scalars = [0u64; 1];
    let inputs = [id];
    // Enough to fill the socket and the queue; the host reads on when capturing has stalled.
    let mut released = false;
    for _ in 0..200_000 {
        session.op(Stage::Forward, PLAIN, template, &inputs, &scalars, 1);
        if !released && session.counters().stalls > 0 {
            host.release_reads();
            released = true;
        }
    }
    assert!(released, "capturing stalled before 200,000 operators were queued");
    session.synchronize().unwrap();
    drop(session);
    assert_eq!(host.join().ops, 200_000);
}

#[test]
fn a_refusal_says_why() {
    let (link, _host) = FakeHost::start(Behaviour { refuse: true, ..Behaviour::default() });
    let error =
        Session::open(Box::new(link), "the test's host".into(), &options(), &NO_INTERPRETER)
            .err()
            .expect("refused");
    assert_eq!(error.message, "the host at the test's host refused the session: too many sessions");
}

#[test]
fn a_refusal_before_the_hello_says_why() {
    let (link, host) = FakeHost::start(Behaviour { refuse_unasked: true, ..Behaviour::default() });
    host.join();
    let error =
        Session::open(Box::new(link), "the test's host".into(), &options(), &NO_INTERPRETER)
            .err()
            .expect("refused");
    assert_eq!(error.message, "the host at the test's host refused the session: too many sessions");
}

/// The host said why and closed; the client notices when it sends on.
#[test]
fn who_cannot_send_on_still_hears_why() {
    let (session, host) = start(Behaviour { refuse_at_op: true, ..Behaviour::default() });
    let template = session.define(&template());
    let id = session.alloc(16);
    session.op(Stage::Forward, PLAIN, template, &[id], &[0], 1);
    session.flush();
    host.join();
    while session.end().is_none() {
        session.op(Stage::Forward, PLAIN, template, &[id], &[0], 1);
    }
    let end = session.end().expect("seen above").message;
    assert!(end.ends_with("ended the session: too many sessions"), "{end}");
    assert!(!session.is_live());
}

#[test]
fn questions_wait_for_room() {
    let (session, host) = start(Behaviour { hold_reads: true, ..Behaviour::default() });
    let tokens: Vec<u64> = (0..TOKENS_MAX).map(|_| session.fence().expect("room")).collect();
    std::thread::scope(|scope| {
        let one_more = scope.spawn(|| session.fence());
        while !session.is_waiting() {
            std::thread::yield_now();
        }
        host.release_reads();
        session.wait_fence(one_more.join().unwrap().expect("room again")).unwrap();
    });
    for token in tokens {
        session.wait_fence(token).unwrap();
    }
    drop(session);
    assert!(host.join().most_held <= TOKENS_MAX);
}

#[test]
fn storages_are_counted_as_the_host_counts_them() {
    let (session, _host) = start(Behaviour::default());
    session.lock().storages_max = 4;
    let template_bytes = template();
    let template = session.define(&template_bytes);
    let run =
        |input| session.run(Stage::Forward, PLAIN, &template_bytes, &[input], &[0], 3, |_, _| {});
    let first = session.alloc(16);
    let ids: Vec<u64> =
        (0..3).map(|_| session.op(Stage::Forward, PLAIN, template, &[first], &[0], 1)).collect();
    assert!(!ids.contains(&NO_ROOM));
    assert_eq!(session.alloc(1), NO_ROOM);
    assert_eq!(session.op(Stage::Forward, PLAIN, template, &[first], &[0], 1), NO_ROOM);
    assert_eq!(run(first).unwrap_err().code, ErrorCode::OutOfMemory as u8);
    // Three are reserved, one is made: two remain.
    ids.iter().for_each(|id| session.free(*id, 16));
    run(first).unwrap();
    assert!([session.alloc(16), session.alloc(16)].iter().all(|id| *id != NO_ROOM));
    assert_eq!(session.alloc(16), NO_ROOM);
    session.synchronize().expect("nothing of it reached the host");
}

#[test]
fn names_without_end_cost_only_their_meaning() {
    let (session, host) = start(Behaviour::default());
    let long = "\u{e9}".repeat(STRING_BYTES_MAX);
    session.mark(MarkKind::PhaseEnter, &long);
    let template = session.define(&template());
    let id = session.alloc(16);
    session.op(Stage::Forward, PLAIN, template, &[id], &[0], 1);
    for step in 0..SYMBOLS_BYTES_MAX / STRING_BYTES_MAX + 10 {
        session.mark(MarkKind::PhaseExit, &format!("{step}{long}"));
    }
    session.op(Stage::Backward, PLAIN, template, &[id], &[0], 1);
    session.synchronize().expect("the session goes on");
    drop(session);
    let seen = host.join();
    assert_eq!(seen.symbols[0], long[..STRING_BYTES_MAX]);
    assert!(seen.symbols.iter().map(String::len).sum::<usize>() <= SYMBOLS_BYTES_MAX);
    assert_eq!(seen.symbols.last().map(String::as_str), Some("backward"), "stages have room");
}

#[test]
fn shutting_down_wakes_who_waits() {
    let (session, _host) = start(Behaviour { hold_reads: true, ..Behaviour::default() });
    let id = session.alloc(8);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| session.read(id, 0, &mut [0; 8]));
        while !session.is_waiting() {
            std::thread::yield_now();
        }
        session.close();
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::NodeLost as u8);
    });
}

#[test]
fn the_device_is_idle_once_it_answered_for_everything_before() {
    let (session, _host) = start(Behaviour::default());
    for _ in 0..2 {
        session.alloc(8);
        let begun = Instant::now();
        while !session.is_idle() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        let asked = session.counters().frames;
        assert!(session.is_idle());
        assert_eq!(session.counters().frames, asked, "nothing new to ask about");
    }
}

#[test]
fn fences_are_asked_without_waiting() {
    let (session, _host) = start(Behaviour::default());
    let token = session.fence().expect("room for a fence");
    let begun = Instant::now();
    while !session.is_reached(token) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    session.wait_fence(token).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| session.wait_fence(token).unwrap());
        }
    });
    session.drop_fence(token);
    session.wait_fence(token).unwrap();
    let status = session.status(PATIENCE).unwrap();
    let counters: Vec<_> = status.counters.iter().map(|each| (&*each.name, each.value)).collect();
    assert_eq!(counters, [("host.test", 7)]);
    assert_eq!(session.generator_state().unwrap(), [1, 2, 3]);
}
