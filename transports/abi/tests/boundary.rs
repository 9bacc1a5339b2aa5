//! Whatever a plugin's functions return, the caller gets a value or a typed error: random codes,
//! counts, completions and texts through a real table.

use std::cell::RefCell;
use std::os::fd::{IntoRawFd, OwnedFd};

use genie_transport::abi::*;
use genie_transport::import::{ImportError, Imported};
use genie_transport::transport::{
    COMPLETIONS_MAX, Cause, Completion, Connection, FRAME_BYTES_MAX, Memory, MemoryKey, Options,
    Part, Transport,
};
use proptest::prelude::*;

/// What the functions of the table return next.
#[derive(Debug, Clone)]
struct Answers {
    code: i32,
    text: Vec<u8>,
    text_bytes: usize,
    completions: Vec<RawCompletion>,
    descriptor: i32,
    /// Whether `listen` and `connect` give something, and register takes its owner.
    gives: bool,
}

// SAFETY of the tests: the pointers in the completions are static or null.
thread_local! {
    static NEXT: RefCell<Answers> = RefCell::new(calm());
}

fn calm() -> Answers {
    let text = br#"{"name":"random","version":"1","capabilities":3}"#.to_vec();
    let text_bytes = text.len();
    Answers { code: 0, text, text_bytes, completions: vec![], descriptor: 0, gives: true }
}

static BODY: [u8; 64] = [7; 64];

fn text(out: *mut Text) -> i32 {
    NEXT.with_borrow(|next| {
        // SAFETY: callers pass a valid buffer or null; no more than fits is written.
        unsafe {
            if !out.is_null() {
                let bytes = next.text.len().min((*out).capacity);
                std::ptr::copy_nonoverlapping(next.text.as_ptr(), (*out).data, bytes);
                (*out).bytes = next.text_bytes;
            }
        }
        next.code
    })
}

unsafe extern "C" fn facts(out: *mut Text) -> i32 {
    text(out)
}

unsafe extern "C" fn probe(_: Slice, out: *mut Text) -> i32 {
    text(out)
}

unsafe extern "C" fn listen(_: Slice, out: *mut *mut RawListener, error: *mut Text) -> i32 {
    let gives = NEXT.with_borrow(|next| next.gives);
    // SAFETY: the caller passes a place; the value is only handed back to the functions here.
    unsafe { *out = if gives { std::ptr::dangling_mut() } else { std::ptr::null_mut() } };
    text(error)
}

unsafe extern "C" fn connect(_: Slice, out: *mut *mut RawConnection, error: *mut Text) -> i32 {
    let gives = NEXT.with_borrow(|next| next.gives);
    // SAFETY: as in `listen`.
    unsafe { *out = if gives { std::ptr::dangling_mut() } else { std::ptr::null_mut() } };
    text(error)
}

unsafe extern "C" fn listener_text(_: *mut RawListener, out: *mut Text) -> i32 {
    text(out)
}

unsafe extern "C" fn listener_fd(_: *mut RawListener) -> i32 {
    NEXT.with_borrow(|next| next.descriptor)
}

unsafe extern "C" fn accept(
    _: *mut RawListener,
    out: *mut *mut RawConnection,
    error: *mut Text,
) -> i32 {
    let gives = NEXT.with_borrow(|next| next.gives);
    // SAFETY: as in `listen`.
    unsafe { *out = if gives { std::ptr::dangling_mut() } else { std::ptr::null_mut() } };
    text(error)
}

unsafe extern "C" fn listener_drop(_: *mut RawListener) {}

unsafe extern "C" fn fd(_: *mut RawConnection) -> i32 {
    NEXT.with_borrow(|next| next.descriptor)
}

unsafe extern "C" fn conn_text(_: *mut RawConnection, out: *mut Text) -> i32 {
    text(out)
}

unsafe extern "C" fn poll(
    _: *mut RawConnection,
    out: *mut RawCompletion,
    capacity: usize,
    error: *mut Text,
) -> i32 {
    NEXT.with_borrow(|next| {
        for (index, completion) in next.completions.iter().take(capacity).enumerate() {
            // SAFETY: there is room for `capacity`.
            unsafe { out.add(index).write(*completion) };
        }
    });
    text(error)
}

unsafe extern "C" fn send_frame(
    _: *mut RawConnection,
    _: u32,
    _: *const Slice,
    _: usize,
    _: i32,
    error: *mut Text,
) -> i32 {
    text(error)
}

unsafe extern "C" fn queued(_: *mut RawConnection) -> u64 {
    u64::MAX
}

unsafe extern "C" fn register(
    _: *mut RawConnection,
    memory: *const RawMemory,
    _: *mut u64,
    error: *mut Text,
) -> i32 {
    // SAFETY: the description is valid; its owner is released once.
    unsafe {
        if let Some(release) = (*memory).release {
            release((*memory).owner);
        }
    }
    text(error)
}

unsafe extern "C" fn with_key(_: *mut RawConnection, _: u64, error: *mut Text) -> i32 {
    text(error)
}

unsafe extern "C" fn offer(_: *mut RawConnection, _: u32, _: *const Part, error: *mut Text) -> i32 {
    text(error)
}

unsafe extern "C" fn withdraw(_: *mut RawConnection, _: u32, error: *mut Text) -> i32 {
    text(error)
}

unsafe extern "C" fn write(
    _: *mut RawConnection,
    _: u64,
    _: *const Part,
    _: usize,
    _: u32,
    _: u64,
    error: *mut Text,
) -> i32 {
    text(error)
}

unsafe extern "C" fn secret(_: *mut RawConnection, _: Slice, _: *mut u8, error: *mut Text) -> i32 {
    text(error)
}

unsafe extern "C" fn close(_: *mut RawConnection, _: Slice) -> i32 {
    NEXT.with_borrow(|next| next.code)
}

unsafe extern "C" fn drop_it(_: *mut RawConnection) {}

static TABLE: Vtable = Vtable {
    size: size_of::<Vtable>() as u32,
    major: MAJOR,
    minor: MINOR,
    facts,
    probe,
    listen,
    connect,
    listener_address: listener_text,
    listener_event_fd: listener_fd,
    listener_accept: accept,
    listener_drop,
    connection_event_fd: fd,
    connection_arm: conn_text,
    connection_poll: poll,
    connection_send_frame: send_frame,
    connection_queued_bytes: queued,
    connection_register: register,
    connection_unregister: with_key,
    connection_offer: offer,
    connection_withdraw: withdraw,
    connection_write: write,
    connection_export_secret: secret,
    connection_peer_identity: conn_text,
    connection_peer_address: conn_text,
    connection_statistics: conn_text,
    connection_close: close,
    connection_drop: drop_it,
};

fn import() -> Result<Imported, ImportError> {
    // SAFETY: the table is static and its functions keep the parts of the contract that the caller
    // cannot check: pointers.
    unsafe { Imported::new(&TABLE) }
}

/// Sets what comes next, and passes on what was made before it.
fn answer(next: Answers) {
    NEXT.with_borrow_mut(|slot| *slot = next);
}

fn connection() -> Box<dyn Connection> {
    answer(calm());
    import().expect("calm").connect(&Options::default()).expect("calm")
}

fn texts() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let json =
        r#"\{"(name|version|x)":("?[a-z0-9\\u]{0,9}"?|-?[0-9]{1,22}|null)(,"version":"1")?\}?"#;
    let said = prop_oneof![bytes, json.prop_map(String::into_bytes)];
    said.prop_flat_map(|said| {
        let len = said.len();
        (Just(said), prop_oneof![Just(len), any::<usize>(), 0..=len])
    })
}

fn codes() -> impl Strategy<Value = i32> {
    prop_oneof![any::<i32>(), -12..=12i32, Just(i32::MIN), Just(i32::MAX)]
}

/// Body and descriptor as (which, length): pointers that are real or null, never wild.
fn completions() -> impl Strategy<Value = Vec<(u32, u32, u32, usize, i32)>> {
    let kind = prop_oneof![0u32..8, any::<u32>()];
    let frame_kind = prop_oneof![0u32..300, any::<u32>()];
    let body = prop_oneof![0usize..65, any::<usize>(), Just(FRAME_BYTES_MAX + 1)];
    let descriptor = prop_oneof![-3..3i32, Just(1_000_000), Just(i32::MIN)];
    let one = (kind, frame_kind, 0u32..3, body, descriptor);
    prop::collection::vec(one, 0..8)
}

/// `PROPTEST_CASES` or these.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn polls_return_completions_or_typed_errors(
        raw in completions(),
        count in prop_oneof![0..10i32, codes()],
        (said, bytes) in texts(),
    ) {
        let mut connection = connection();
        let completions: Vec<RawCompletion> = raw
            .iter()
            .zip(0i32..)
            .map(|((kind, frame_kind, which, len, descriptor), index)| RawCompletion {
                kind: *kind,
                window: *which,
                message: *len as u64,
                offset: u64::MAX,
                bytes: u64::MAX,
                body: match which {
                    // Real bytes; no more than there are, unless the length is one that must be
                    // refused before they are looked at.
                    0 if *len <= BODY.len() || *len > FRAME_BYTES_MAX => {
                        Slice { data: BODY.as_ptr(), bytes: *len }
                    }
                    _ => Slice { data: std::ptr::null(), bytes: *len },
                },
                frame_kind: *frame_kind,
                // An open one is passed on: it must be one that the caller may close.
                descriptor: match descriptor {
                    // What is not handed out would stay open for ever.
                    0..3 if *kind != FRAME || index >= count || count > 8 => -1,
                    0..3 => OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into_raw_fd(),
                    other => *other,
                },
            })
            .collect();
        let given = completions.len();
        answer(Answers { code: count, text: said, text_bytes: bytes, completions, ..calm() });
        let mut done = Vec::new();
        let polled = connection.poll(&mut done);
        prop_assert!(done.len() <= COMPLETIONS_MAX);
        if count < 0 {
            prop_assert!(done.is_empty() && !polled.unwrap_err().message.is_empty());
        } else if count as usize > COMPLETIONS_MAX {
            prop_assert_eq!(polled.unwrap_err().cause, Cause::Internal);
        } else if count as usize <= given {
            for completion in &done {
                if let Completion::Frame { body, .. } = completion {
                    prop_assert!(body.len() <= BODY.len());
                }
            }
            let polled_all = done.len() == count as usize;
            prop_assert_eq!(polled.is_ok(), polled_all);
        }
    }

    #[test]
    fn facts_are_whole_or_refused((said, bytes) in texts(), code in codes()) {
        answer(Answers { code, text: said, text_bytes: bytes, ..calm() });
        match import() {
            Ok(imported) => prop_assert!(genie_transport::import::is_name(&imported.facts().name)),
            Err(error) => prop_assert!(matches!(error, ImportError::Facts(_))),
        }
    }

    #[test]
    fn every_call_returns_a_value_or_a_typed_error((said, bytes) in texts(), code in codes()) {
        let mut connection = connection();
        answer(Answers { code, text: said, text_bytes: bytes, ..calm() });
        let fails = code < 0;
        let key = MemoryKey(1);
        let part = Part { key, offset: u64::MAX, bytes: u64::MAX };
        prop_assert_eq!(connection.arm().is_err(), fails);
        prop_assert_eq!(connection.send_frame(1, &[&b"x"[..]; 200], None).is_err(), fails);
        let (memory, shared) = Memory::allocate(4_096).unwrap();
        prop_assert_eq!(connection.register(memory).is_err(), fails);
        prop_assert_eq!(std::sync::Arc::strong_count(&shared), 1, "the owner came back once");
        prop_assert_eq!(connection.unregister(key).is_err(), fails);
        prop_assert_eq!(connection.offer(1, part).is_err(), fails);
        prop_assert_eq!(connection.withdraw(1).is_err(), fails);
        prop_assert_eq!(connection.write(1, &[part], 1, u64::MAX).is_err(), fails);
        let secret = connection.export_secret(b"label");
        prop_assert_eq!(secret.is_err(), fails);
        connection.peer_identity();
        connection.peer_address();
        connection.statistics();
        connection.close("over");
    }

    #[test]
    fn descriptors_that_are_none_are_refused(
        descriptor in prop_oneof![i32::MIN..0, 100_000..i32::MAX],
        gives: bool,
    ) {
        answer(calm());
        let imported = import().unwrap();
        answer(Answers { descriptor, gives, ..calm() });
        let causes = [
            imported.connect(&Options::default()).err().map(|error| error.cause),
            imported.listen(&Options::default()).err().map(|error| error.cause),
        ];
        prop_assert_eq!(causes, [Some(Cause::Internal); 2]);
    }
}
