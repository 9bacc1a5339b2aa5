//! The session's behaviour, driven frame by frame: no I/O, no clock.

use std::sync::Arc;

use genie_engine::session::HostCounters;
use genie_engine::{Action, Limits, Session, SessionConfig};
use genie_wire::control::{
    Have, HaveAnswer, Hello, Refusal, Region, Released, Status, StatusRequest, WantedWeight,
    WeightStored, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::limits::{FRAME_STEPS_MAX, WANTED_MAX};
use genie_wire::record::{RegionSpan, StorageId};
use genie_wire::template::OutputSpec;
use genie_wire::{
    DType, ErrorCode, PROTOCOL_VERSION, PROTOCOL_WANTED, Reply, TapeWriter, Template, TensorMeta,
    Value,
};
use proptest::prelude::*;
use prost::Message;

struct NoCounters;

impl HostCounters for NoCounters {
    fn entries(&self) -> Vec<(String, u64)> {
        vec![("sessions".to_owned(), 1)]
    }
}

fn session_of(identity: &str) -> Session {
    let config = SessionConfig {
        id: 7,
        identity: identity.to_owned(),
        software: "genie-host test".to_owned(),
        pid: 1,
        limits: Limits {
            storages_max: 1000,
            template_bytes_max: 1 << 10,
            symbol_bytes_max: 1 << 10,
        },
        host: Arc::new(NoCounters),
        analyze: false,
        turned_away: None,
    };
    Session::new(config)
}

/// A running session.
fn running(identity: &str) -> Session {
    let mut session = session_of(identity);
    let hello = Hello { protocol: PROTOCOL_VERSION, threads: 2, ..Hello::default() };
    let actions = client(&mut session, FrameKind::Hello, &hello.encode_to_vec());
    assert!(matches!(&actions[..], [Action::ConnectNode(hello)]
        if hello.identity == identity && hello.threads == 2));
    let welcome = Welcome { protocol: PROTOCOL_VERSION, pid: 42, ..Welcome::default() };
    let actions = node(&mut session, FrameKind::Welcome, &welcome.encode_to_vec());
    let [Action::ToClient(FrameKind::Welcome, body)] = &actions[..] else { panic!("{actions:?}") };
    let welcome = Welcome::decode(&body[..]).unwrap();
    assert_eq!((welcome.node_pid, welcome.session, welcome.pid), (42, 7, 1));
    session
}

fn client(session: &mut Session, kind: FrameKind, body: &[u8]) -> Vec<Action> {
    let mut actions = Vec::new();
    session.client_frame(kind, body, &mut actions);
    session.settle(&mut Vec::new());
    actions
}

fn node(session: &mut Session, kind: FrameKind, body: &[u8]) -> Vec<Action> {
    let mut actions = Vec::new();
    session.node_frame(kind, body, &mut actions);
    actions
}

fn tape(session: &mut Session, tape: &mut TapeWriter) -> Vec<Action> {
    let bytes = tape.take(Vec::new());
    client(session, FrameKind::Tape, &bytes)
}

fn relu() -> Vec<u8> {
    let meta = TensorMeta::contiguous(DType::FLOAT32, &[4]);
    let mut bytes = Vec::new();
    Template {
        op: "aten::relu".to_owned(),
        slots: 1,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![16],
        args: vec![Value::Tensor { slot: 0, meta: meta.clone() }],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    }
    .encode(&mut bytes);
    bytes
}

/// relu of its one external, `times` times over, all but the last freed.
fn relu_script(relu: genie_wire::TemplateId, times: usize) -> Vec<u8> {
    let mut body = TapeWriter::of_script(1);
    let mut last = StorageId(0);
    for _ in 0..times {
        let next = body.op(relu, &[last.0], &[], 1);
        if last.0 != 0 {
            body.free(last);
        }
        last = next;
    }
    body.bytes().to_vec()
}

#[test]
fn what_a_script_stands_for_is_checked_and_counted() {
    let mut session = running("me");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(16);
    let template = writer.define(&relu());
    let script = writer.define_script(1, &relu_script(template, 10));
    writer.run_script(script, &[x.0], &[], 10);
    assert!(matches!(tape(&mut session, &mut writer)[..], [Action::ForwardToNode]));
    let counters = session.counters();
    assert_eq!((counters.ops, counters.script_runs, counters.records), (10, 1, 4));
    assert_eq!(session.live(), (2, 32));
    // An external that is gone.
    writer.free(x);
    writer.run_script(script, &[x.0], &[], 10);
    assert_refused(&tape(&mut session, &mut writer), "is not alive");
}

#[test]
fn the_records_that_scripts_of_a_frame_stand_for_are_bounded() {
    let mut session = running("me");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(16);
    let template = writer.define(&relu());
    let times = 10_000;
    let script = writer.define_script(1, &relu_script(template, times));
    for _ in 0..FRAME_STEPS_MAX / (2 * times) {
        let made = writer.run_script(script, &[x.0], &[], times as u64);
        writer.free(StorageId(made.0 + times as u64 - 1));
    }
    assert!(matches!(tape(&mut session, &mut writer)[..], [Action::ForwardToNode]));
    for _ in 0..FRAME_STEPS_MAX / (2 * times - 1) + 1 {
        let made = writer.run_script(script, &[x.0], &[], times as u64);
        writer.free(StorageId(made.0 + times as u64 - 1));
    }
    assert_refused(&tape(&mut session, &mut writer), "records of scripts in one frame");
}

fn assert_refused(actions: &[Action], part: &str) {
    let [Action::ToClient(FrameKind::Refusal, body), Action::End] = actions else {
        panic!("expected a refusal with {part:?}, got {actions:?}");
    };
    let refusal = Refusal::decode(&body[..]).unwrap();
    assert!(refusal.message.contains(part), "{:?} lacks {part:?}", refusal.message);
}

fn errors(actions: &[Action]) -> Vec<(u64, ErrorCode)> {
    let error = |action: &Action| match action {
        Action::ToClient(FrameKind::Reply, body) => match Reply::decode(body).unwrap() {
            (token, Reply::Error { code, .. }) => Some((token, code)),
            _ => None,
        },
        _ => None,
    };
    actions.iter().filter_map(error).collect()
}

fn reply(token: u64) -> Vec<u8> {
    let mut body = Vec::new();
    Reply::Done.encode(token, &mut body);
    body
}

#[test]
fn a_program_is_forwarded_and_counted() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let template = writer.define(&relu());
    for step in 0..3 {
        let x = writer.alloc(16);
        writer.upload_inline(x, 0, &[0; 16]);
        let y = writer.op(template, &[x.0], &[], 1);
        writer.read(step, y, 0, 16, None);
        writer.free(x);
        writer.free(y);
        assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
        assert_eq!(node(&mut session, FrameKind::Reply, &reply(step)), [Action::ForwardToClient]);
    }
    let counters = session.counters();
    assert_eq!((counters.ops, counters.reads, counters.round_trips), (3, 3, 3));
    assert_eq!((counters.segments_new, counters.segments_known), (1, 2));
    assert_eq!(session.live(), (0, 0));
    let (srg, plan) = session.segmenter().last().expect("the graph is remembered");
    assert_eq!(plan.placement.len(), srg.graph.node_count());
    assert_eq!(srg.graph.node_count(), 4);
}

#[test]
fn what_a_client_may_not_name_is_refused_and_never_forwarded() {
    type Case = (&'static str, fn(&mut TapeWriter));
    let cases: [Case; 10] = [
        ("not alive", |w| {
            let x = w.alloc(4);
            w.free(x);
            w.read(1, x, 0, 4, None);
        }),
        ("not alive", |w| {
            let x = w.alloc(4);
            w.free(x);
            w.free(x);
        }),
        ("not alive", |w| {
            w.skip(5);
            w.resize(StorageId(2), 8);
        }),
        ("not alive", |w| {
            w.skip(5);
            let template = w.define(&relu());
            w.op(template, &[3], &[], 1);
        }),
        ("was not registered", |w| {
            let x = w.alloc(4);
            w.upload(x, 0, 4, RegionSpan { region: 9, offset: 0 });
        }),
        ("lie outside", |w| {
            let x = w.alloc(4);
            w.read(1, x, 0, 4, Some(RegionSpan { region: 0, offset: 4093 }));
        }),
        ("already waits", |w| {
            w.fence(3);
            w.fence(3);
        }),
        ("live storages would reach 1001, the limit of a session", |w| {
            for _ in 0..1001 {
                w.alloc(1);
            }
        }),
        ("bytes of templates would reach", |w| {
            for _ in 0..=(1 << 10) / relu().len() {
                w.define(&relu());
            }
        }),
        ("bytes of symbols would reach", |w| {
            for _ in 0..11 {
                w.symbol(&"x".repeat(100));
            }
        }),
    ];
    for (part, write) in cases {
        let mut session = running("u");
        let region = Region { id: 0, bytes: 4096 }.encode_to_vec();
        assert_eq!(client(&mut session, FrameKind::Region, &region), [Action::ForwardToNode]);
        let mut writer = TapeWriter::new();
        write(&mut writer);
        assert_refused(&tape(&mut session, &mut writer), part);
        assert!(session.has_ended());
        assert_eq!(client(&mut session, FrameKind::Tape, &[]), []);
    }
}

#[test]
fn templates_that_are_forgotten_take_no_room() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    for _ in 0..100 {
        for _ in 0..(1 << 10) / relu().len() {
            writer.define(&relu());
        }
        writer.forget_templates();
        assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
    }
}

#[test]
fn frames_out_of_order_are_refused() {
    let tape = client(&mut session_of("u"), FrameKind::Tape, &[]);
    assert_refused(&tape, "before the hello");
    let hello = Hello { protocol: 0, ..Hello::default() }.encode_to_vec();
    let version = client(&mut session_of("u"), FrameKind::Hello, &hello);
    assert_refused(&version, "speaks protocol 0, this host speaks 1 to 3");
    let twice = client(&mut running("u"), FrameKind::Hello, &hello);
    assert_refused(&twice, "not expected");
    let reply = client(&mut running("u"), FrameKind::Reply, &reply(1));
    assert_refused(&reply, "not expected");
}

#[test]
fn the_lower_protocol_of_both_is_spoken() {
    for (theirs, spoken) in [(1, 1), (PROTOCOL_VERSION, PROTOCOL_VERSION), (99, PROTOCOL_VERSION)] {
        let mut session = session_of("u");
        let hello = Hello { protocol: theirs, ..Hello::default() }.encode_to_vec();
        let actions = client(&mut session, FrameKind::Hello, &hello);
        assert!(matches!(&actions[..], [Action::ConnectNode(_)]), "{theirs}: {actions:?}");
        let welcome = Welcome { protocol: PROTOCOL_VERSION, ..Welcome::default() };
        let actions = node(&mut session, FrameKind::Welcome, &welcome.encode_to_vec());
        let [Action::ToClient(FrameKind::Welcome, body)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(Welcome::decode(&body[..]).unwrap().protocol, spoken);
    }
}

#[test]
fn a_lost_node_fails_every_token_now_and_later() {
    let mut session = running("u");
    client(&mut session, FrameKind::Region, &Region { id: 0, bytes: 4096 }.encode_to_vec());
    let mut writer = TapeWriter::new();
    let x = writer.alloc(4);
    writer.upload(x, 0, 100, RegionSpan { region: 0, offset: 0 });
    writer.read(1, x, 0, 4, None);
    writer.fence(2);
    tape(&mut session, &mut writer);
    let mut actions = Vec::new();
    session.node_closed("killed", &mut actions);
    assert_eq!(errors(&actions), [(1, ErrorCode::NodeLost), (2, ErrorCode::NodeLost)]);
    let released = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::ToClient(FrameKind::Released, body) => {
                Some(Released::decode(&body[..]).unwrap().bytes)
            }
            _ => None,
        })
    };
    assert_eq!(released(&actions), Some(100), "upload memory comes back");
    writer.upload(x, 0, 50, RegionSpan { region: 0, offset: 100 });
    writer.run(3, &relu(), &[x.0], &[], 4);
    let actions = tape(&mut session, &mut writer);
    assert_eq!(errors(&actions), [(3, ErrorCode::NodeLost)]);
    assert_eq!(released(&actions), Some(50));
    assert!(!actions.contains(&Action::ForwardToNode));
    let actions = client(&mut session, FrameKind::Have, &question(5, &[(x.0, 0)]));
    assert_eq!(answer(&actions), Some((5, vec![false])));
    assert!(!session.has_ended());
}

#[test]
fn a_refusal_of_the_node_is_told_with_its_message() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    writer.fence(2);
    tape(&mut session, &mut writer);
    let refusal = Refusal { code: ErrorCode::OutOfMemory as u32, message: "full".to_owned() };
    let actions = node(&mut session, FrameKind::Refusal, &refusal.encode_to_vec());
    assert_eq!(errors(&actions), [(2, ErrorCode::OutOfMemory)]);
}

#[test]
fn a_node_that_breaks_the_protocol_is_lost() {
    for (kind, body) in
        [(FrameKind::Reply, reply(77)), (FrameKind::Tape, vec![]), (FrameKind::Reply, vec![])]
    {
        let mut session = running("u");
        let mut writer = TapeWriter::new();
        writer.fence(2);
        tape(&mut session, &mut writer);
        let actions = node(&mut session, kind, &body);
        assert_eq!(errors(&actions), [(2, ErrorCode::NodeLost)], "{kind:?}");
    }
}

#[test]
fn the_storages_of_a_synchronous_operator_live_after_its_reply() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(16);
    let first = writer.run(1, &relu(), &[x.0], &[], 4);
    tape(&mut session, &mut writer);
    let mut body = Vec::new();
    Reply::Outputs { storage_bytes: vec![16, 8], outputs: vec![], scalars: &[] }
        .encode(1, &mut body);
    node(&mut session, FrameKind::Reply, &body);
    assert_eq!(session.live(), (3, 40));
    writer.free(StorageId(first.0 + 1));
    assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
    writer.free(StorageId(first.0 + 2));
    assert_refused(&tape(&mut session, &mut writer), "not alive");
}

#[test]
fn more_outputs_than_reserved_lose_the_node() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(16);
    writer.run(1, &relu(), &[x.0], &[], 1);
    tape(&mut session, &mut writer);
    let mut body = Vec::new();
    Reply::Outputs { storage_bytes: vec![16, 8], outputs: vec![], scalars: &[] }
        .encode(1, &mut body);
    let actions = node(&mut session, FrameKind::Reply, &body);
    assert_eq!(errors(&actions), [(1, ErrorCode::NodeLost)]);
}

fn answer(actions: &[Action]) -> Option<(u64, Vec<bool>)> {
    actions.iter().find_map(|action| match action {
        Action::ToClient(FrameKind::HaveAnswer, body) => {
            let answer = HaveAnswer::decode(&body[..]).unwrap();
            Some((answer.token, answer.found))
        }
        _ => None,
    })
}

/// Asks for weights of 100 bytes: their storages and the bytes of their hashes.
fn question(token: u64, wanted: &[(u64, u8)]) -> Vec<u8> {
    let wanted = wanted.iter().map(|(storage, byte)| WantedWeight {
        storage: *storage,
        bytes: 100,
        hash: vec![*byte; 32],
    });
    Have { token, wanted: wanted.collect() }.encode_to_vec()
}

fn found(token: u64, found: &[bool]) -> Vec<u8> {
    HaveAnswer { token, found: found.to_vec() }.encode_to_vec()
}

#[test]
fn the_node_says_which_weights_there_are() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(100);
    writer.skip(2);
    tape(&mut session, &mut writer);
    let wanted = question(9, &[(x.0, 1), (x.0 + 1, 2), (x.0 + 2, 3)]);
    assert_eq!(client(&mut session, FrameKind::Have, &wanted), [Action::ForwardToNode]);
    assert_eq!(session.weights_asked(9).map(<[_]>::len), Some(3));
    let actions = node(&mut session, FrameKind::HaveAnswer, &found(9, &[true, true, false]));
    assert_eq!(actions, [Action::ForwardToClient]);
    assert_eq!((session.live().0, session.counters().weight_hits), (2, 2), "one came alive");
    assert_eq!(session.counters().weight_bytes_saved, 200);
    // What was found can be used and freed, what was not cannot.
    writer.free(StorageId(x.0 + 1));
    assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
    writer.free(StorageId(x.0 + 2));
    assert_refused(&tape(&mut session, &mut writer), "not alive");
}

#[test]
fn a_storage_that_is_freed_before_the_answer_stays_freed() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let x = writer.alloc(100);
    tape(&mut session, &mut writer);
    client(&mut session, FrameKind::Have, &question(9, &[(x.0, 1)]));
    writer.free(x);
    tape(&mut session, &mut writer);
    node(&mut session, FrameKind::HaveAnswer, &found(9, &[true]));
    assert_eq!(session.live(), (0, 0));
}

#[test]
fn a_node_of_before_is_not_asked() {
    let mut session = session_of("u");
    let hello = Hello { protocol: PROTOCOL_VERSION, ..Hello::default() };
    client(&mut session, FrameKind::Hello, &hello.encode_to_vec());
    let welcome = Welcome { protocol: PROTOCOL_WANTED - 1, ..Welcome::default() };
    node(&mut session, FrameKind::Welcome, &welcome.encode_to_vec());
    let mut writer = TapeWriter::new();
    let x = writer.alloc(100);
    tape(&mut session, &mut writer);
    let actions = client(&mut session, FrameKind::Have, &question(9, &[(x.0, 1)]));
    assert_eq!(answer(&actions), Some((9, vec![false])));
    // What a client of version 2 asks reads as a question for nothing.
    let actions = client(&mut session, FrameKind::Have, &question(8, &[]));
    assert_eq!(answer(&actions), Some((8, vec![])));
}

#[test]
fn questions_for_weights_are_checked_and_answers_too() {
    let mut writer = TapeWriter::new();
    let x = writer.alloc(100);
    let alloc = writer.take(Vec::new());
    let many = vec![(x.0, 1); WANTED_MAX + 1];
    let cases: [(&str, Vec<u8>); 4] = [
        ("not alive", question(1, &[(x.0 + 1, 1)])),
        ("at once", question(1, &many)),
        ("already waits", question(1 << 63, &[(x.0, 1)])),
        ("32 bytes", Have { token: 1, wanted: vec![WantedWeight::default()] }.encode_to_vec()),
    ];
    for (part, have) in cases {
        let mut session = running("u");
        client(&mut session, FrameKind::Tape, &alloc);
        assert_refused(&client(&mut session, FrameKind::Have, &have), part);
    }
    for wrong in [found(2, &[true]), found(1, &[]), found(1, &[true, true])] {
        let mut session = running("u");
        client(&mut session, FrameKind::Tape, &alloc);
        client(&mut session, FrameKind::Have, &question(1, &[(x.0, 1)]));
        writer.fence(7);
        tape(&mut session, &mut writer);
        let actions = node(&mut session, FrameKind::HaveAnswer, &wrong);
        assert_eq!(errors(&actions), [(7, ErrorCode::NodeLost)]);
    }
}

#[test]
fn stored_weights_are_counted_and_no_other() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    for (byte, refused) in [(1, ""), (2, "hash differs")] {
        let x = writer.alloc(100);
        writer.store_weight(x, &[byte; 32]);
        assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
        assert_eq!(stored(&mut session, byte, refused), []);
    }
    assert_eq!((session.counters().weights_stored, session.counters().weights_refused), (1, 1));
    writer.fence(7);
    tape(&mut session, &mut writer);
    assert_eq!(errors(&stored(&mut session, 3, "")), [(7, ErrorCode::NodeLost)]);
}

fn stored(session: &mut Session, byte: u8, refused: &str) -> Vec<Action> {
    let stored = WeightStored { hash: vec![byte; 32], bytes: 100, refused: refused.to_owned() };
    node(session, FrameKind::WeightStored, &stored.encode_to_vec())
}

#[test]
fn a_status_joins_the_counters_of_node_and_host() {
    let mut session = running("u");
    let request = StatusRequest { token: 3 }.encode_to_vec();
    assert_eq!(client(&mut session, FrameKind::StatusRequest, &request), [Action::ForwardToNode]);
    let from_node = Status {
        words: vec![],
        token: 3,
        counters: vec![genie_wire::control::Counter { name: "node.ops".to_owned(), value: 5 }],
    };
    let actions = node(&mut session, FrameKind::Status, &from_node.encode_to_vec());
    let [Action::ToClient(FrameKind::Status, body)] = &actions[..] else { panic!("{actions:?}") };
    let status = Status::decode(&body[..]).unwrap();
    assert_eq!(status.token, 3);
    for name in
        ["node.ops", "host.sessions", "host.session.bytes_to_node", "host.session.plan.one-node"]
    {
        assert!(status.counters.iter().any(|counter| counter.name == name), "{name}");
    }
}

#[test]
fn a_million_operators_without_a_read_stay_within_bounds() {
    let mut session = running("u");
    let mut writer = TapeWriter::new();
    let template = writer.define(&relu());
    let mut x = writer.alloc(16);
    for index in 0..1_000_000u32 {
        let y = writer.op(template, &[x.0], &[], 1);
        writer.free(x);
        x = y;
        if index % 1000 == 999 {
            assert_eq!(tape(&mut session, &mut writer), [Action::ForwardToNode]);
        }
    }
    assert_eq!(session.live(), (1, 16));
    assert!(session.counters().segments_known > 200);
}

#[derive(Debug, Clone)]
enum Step {
    Alloc(u64),
    Free(usize),
    Op(usize),
    Read(u64, usize),
    Skip(u64),
    Upload(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..100u64).prop_map(Step::Alloc),
        (0..50usize).prop_map(Step::Free),
        (0..50usize).prop_map(Step::Op),
        (0..50u64, 0..50usize).prop_map(|(token, index)| Step::Read(token, index)),
        (0..5u64).prop_map(Step::Skip),
        (0..50usize).prop_map(Step::Upload),
    ]
}

/// A tape in the wire's format whose records may name dead storages.
fn write(steps: &[Step]) -> Vec<u8> {
    let mut writer = TapeWriter::new();
    let template = writer.define(&relu());
    writer.alloc(16);
    for step in steps {
        let next = writer.next_storage().0;
        let pick = |index: &usize| StorageId(*index as u64 % next);
        match step {
            Step::Alloc(bytes) => {
                writer.alloc(*bytes);
            }
            Step::Free(index) => writer.free(pick(index)),
            Step::Op(index) => {
                writer.op(template, &[pick(index).0], &[], 1);
            }
            Step::Read(token, index) => writer.read(*token, pick(index), 0, 4, None),
            Step::Skip(count) => writer.skip(*count),
            Step::Upload(index) => writer.upload_inline(pick(index), 0, &[1, 2, 3]),
        }
    }
    writer.bytes().to_vec()
}

/// A frame is forwarded as it is, or refused with an end: nothing in between.
fn assert_forwarded_or_refused(actions: &[Action]) {
    match actions {
        [Action::ForwardToNode] => {}
        [Action::ToClient(FrameKind::Refusal, body), Action::End] => {
            let refusal = Refusal::decode(&body[..]).unwrap();
            assert_eq!(refusal.code, ErrorCode::Protocol as u32);
            assert!(!refusal.message.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn any_bytes_are_forwarded_or_refused(frames: Vec<Vec<u8>>) {
        let mut session = running("u");
        for frame in frames {
            let actions = client(&mut session, FrameKind::Tape, &frame);
            if session.has_ended() && actions.is_empty() {
                break;
            }
            assert_forwarded_or_refused(&actions);
        }
    }

    #[test]
    fn a_spoilt_tape_is_forwarded_or_refused(
        steps in prop::collection::vec(step(), 0..40),
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut bytes = write(&steps);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let mut session = running("u");
        assert_forwarded_or_refused(&client(&mut session, FrameKind::Tape, &bytes));
    }

    #[test]
    fn any_control_message_is_answered(kind in 0u8..=255, body: Vec<u8>, greeted: bool) {
        let mut session = if greeted { running("u") } else { session_of("u") };
        if let Some(kind) = FrameKind::from_u8(kind) {
            client(&mut session, kind, &body);
        }
    }

    #[test]
    fn any_bytes_from_the_node_keep_the_session_answerable(kind in 128u8..140, body: Vec<u8>) {
        let mut session = running("u");
        let mut writer = TapeWriter::new();
        writer.fence(u64::from(u32::MAX));
        tape(&mut session, &mut writer);
        if let Some(kind) = FrameKind::from_u8(kind) {
            node(&mut session, kind, &body);
        }
        let mut actions = Vec::new();
        session.node_closed("test", &mut actions);
        prop_assert_eq!(session.waiting(), 0);
    }

    /// Whatever one session has alive, another session that made nothing can name none of it.
    #[test]
    fn sessions_cannot_name_each_others_storages(
        steps in prop::collection::vec(step(), 0..40), id in 0u64..200,
    ) {
        let mut one = running("u");
        client(&mut one, FrameKind::Tape, &write(&steps));
        let mut other = running("u");
        let mut writer = TapeWriter::new();
        writer.skip(200);
        writer.read(1, StorageId(id), 0, 4, None);
        assert_refused(&tape(&mut other, &mut writer), "not alive");
    }

    /// Live storages and bytes follow the tape exactly.
    #[test]
    fn live_storages_follow_the_tape(steps in prop::collection::vec(step(), 0..60)) {
        let mut session = running("u");
        client(&mut session, FrameKind::Tape, &write(&steps));
        if !session.has_ended() {
            let made = 1 + steps.iter().filter(|s| matches!(s, Step::Alloc(_) | Step::Op(_))).count();
            let freed = steps.iter().filter(|step| matches!(step, Step::Free(_))).count();
            prop_assert_eq!(session.live().0, (made - freed) as u64);
        }
    }
}
