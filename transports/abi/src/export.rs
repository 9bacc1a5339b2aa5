//! A Rust transport as a plugin: [`export_transport!`](crate::export_transport).
//!
//! Each function of the table checks nothing that the trait promises to check, catches panics, and
//! turns errors into codes and text.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::abi::{self, RawCompletion, RawConnection, RawListener, RawMemory, Slice, Text, Vtable};
use crate::transport::{
    Cause, Completion, Connection, Listener, Memory, MemoryKey, MemoryKind, Options, PARTS_MAX,
    Part, Result, Transport, TransportError,
};

/// Makes the entry symbol of a plugin from an expression of type `&'static impl Transport`.
#[macro_export]
macro_rules! export_transport {
    ($transport:expr) => {
        /// The entry of this plugin; see `genie_transport::abi`.
        #[unsafe(no_mangle)]
        pub extern "C" fn genie_transport_v1() -> *const $crate::abi::Vtable {
            struct Exported;
            impl $crate::export::Exported for Exported {
                fn transport() -> &'static dyn $crate::transport::Transport {
                    $transport
                }
            }
            &const { $crate::export::vtable::<Exported>() }
        }
    };
}

/// Names the transport that a table is for.
pub trait Exported {
    fn transport() -> &'static dyn Transport;
}

struct ExportedListener(Box<dyn Listener>);

struct ExportedConnection {
    connection: Box<dyn Connection>,
    /// Completions not handed out yet, and an error that came behind them.
    pending: VecDeque<Completion>,
    failed: Option<TransportError>,
    scratch: Vec<Completion>,
    /// Bodies lent to the caller until the next poll.
    lent: Vec<Vec<u8>>,
}

/// The table of a transport.
pub const fn vtable<E: Exported>() -> Vtable {
    Vtable {
        size: size_of::<Vtable>() as u32,
        major: abi::MAJOR,
        minor: abi::MINOR,
        facts: facts::<E>,
        probe: probe::<E>,
        listen: listen::<E>,
        connect: connect::<E>,
        listener_address,
        listener_event_fd,
        listener_accept,
        listener_drop,
        connection_event_fd,
        connection_arm,
        connection_poll,
        connection_send_frame,
        connection_queued_bytes,
        connection_register,
        connection_unregister,
        connection_offer,
        connection_withdraw,
        connection_write,
        connection_export_secret,
        connection_peer_identity,
        connection_peer_address,
        connection_statistics,
        connection_close,
        connection_drop,
    }
}

/// Runs `call`; a panic becomes `Internal`, an error its code, with the text in `error`.
///
/// # Safety
/// `error` must be null or a valid text buffer.
unsafe fn guarded(error: *mut Text, call: impl FnOnce() -> Result<i32>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure,
        Err(panic) => TransportError::new(Cause::Internal, describe_panic(&*panic)),
    };
    // SAFETY: passed on from the caller.
    unsafe { write_text(error, &failure.message) };
    failure.cause as i32
}

fn describe_panic(panic: &(dyn Any + Send)) -> String {
    let what = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "for an unknown reason",
    };
    format!("the transport failed inside: {what}")
}

/// # Safety
/// `out` must be null or a valid text buffer.
unsafe fn write_text(out: *mut Text, text: &str) {
    if out.is_null() {
        return;
    }
    // SAFETY: the caller vouches for the buffer; `capacity` bytes at `data` are its own.
    unsafe {
        let mut bytes = text.len().min((*out).capacity);
        while !text.is_char_boundary(bytes) {
            bytes -= 1;
        }
        if bytes > 0 {
            std::ptr::copy_nonoverlapping(text.as_ptr(), (*out).data, bytes);
        }
        (*out).bytes = bytes;
    }
}

/// # Safety
/// The bytes must be valid during the call.
unsafe fn options(json: Slice) -> Result<Options> {
    // SAFETY: passed on from the caller.
    let bytes = unsafe { json.as_bytes() };
    serde_json::from_slice(bytes).map_err(|error| {
        TransportError::new(Cause::Invalid, format!("the options are not understood: {error}"))
    })
}

/// # Safety
/// `out` must be valid.
unsafe extern "C" fn facts<E: Exported>(out: *mut Text) -> i32 {
    // SAFETY: the caller passes a valid buffer, which `guarded` and `write_text` need.
    unsafe {
        guarded(out, || {
            let json = serde_json::to_string(&E::transport().facts()).expect("facts are plain");
            write_text(out, &json);
            Ok(0)
        })
    }
}

unsafe extern "C" fn probe<E: Exported>(json: Slice, out: *mut Text) -> i32 {
    // SAFETY: the caller passes valid options and a valid buffer.
    unsafe {
        guarded(out, || {
            let found = E::transport().probe(&options(json)?)?;
            write_text(out, &found);
            Ok(0)
        })
    }
}

unsafe extern "C" fn listen<E: Exported>(
    json: Slice,
    out: *mut *mut RawListener,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes valid options, a place for the result and a valid buffer.
    unsafe {
        guarded(error, || {
            let listener = E::transport().listen(&options(json)?)?;
            *out = Box::into_raw(Box::new(ExportedListener(listener))).cast();
            Ok(0)
        })
    }
}

unsafe extern "C" fn connect<E: Exported>(
    json: Slice,
    out: *mut *mut RawConnection,
    error: *mut Text,
) -> i32 {
    // SAFETY: as in `listen`.
    unsafe {
        guarded(error, || {
            *out = exported(E::transport().connect(&options(json)?)?);
            Ok(0)
        })
    }
}

fn exported(connection: Box<dyn Connection>) -> *mut RawConnection {
    let (pending, scratch, lent) = (VecDeque::new(), Vec::new(), Vec::new());
    let exported = ExportedConnection { connection, pending, failed: None, scratch, lent };
    Box::into_raw(Box::new(exported)).cast()
}

/// # Safety
/// `listener` must come from `listen` and not have been dropped; nobody else uses it now.
unsafe fn listener<'a>(listener: *mut RawListener) -> &'a mut dyn Listener {
    // SAFETY: the caller vouches that this is the box made by `listen`.
    unsafe { (*listener.cast::<ExportedListener>()).0.as_mut() }
}

/// # Safety
/// `connection` must come from `exported` and not have been dropped; nobody else uses it now.
unsafe fn connection<'a>(connection: *mut RawConnection) -> &'a mut ExportedConnection {
    // SAFETY: the caller vouches that this is the box made by `exported`.
    unsafe { &mut *connection.cast::<ExportedConnection>() }
}

unsafe extern "C" fn listener_address(raw: *mut RawListener, out: *mut Text) -> i32 {
    // SAFETY: the caller passes a living listener and a valid buffer.
    unsafe {
        guarded(out, || {
            write_text(out, &listener(raw).address());
            Ok(0)
        })
    }
}

unsafe extern "C" fn listener_event_fd(raw: *mut RawListener) -> i32 {
    // SAFETY: the caller passes a living listener.
    unsafe { guarded(std::ptr::null_mut(), || Ok(listener(raw).event_fd().as_raw_fd())) }
}

unsafe extern "C" fn listener_accept(
    raw: *mut RawListener,
    out: *mut *mut RawConnection,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living listener, a place for the result and a valid buffer.
    unsafe {
        guarded(error, || {
            *out = listener(raw).accept()?.map_or(std::ptr::null_mut(), exported);
            Ok(0)
        })
    }
}

unsafe extern "C" fn listener_drop(raw: *mut RawListener) {
    // SAFETY: the caller gives the listener up; it was made by `listen`.
    unsafe {
        guarded(std::ptr::null_mut(), || {
            drop(Box::from_raw(raw.cast::<ExportedListener>()));
            Ok(0)
        });
    }
}

unsafe extern "C" fn connection_event_fd(raw: *mut RawConnection) -> i32 {
    // SAFETY: the caller passes a living connection.
    unsafe {
        guarded(std::ptr::null_mut(), || Ok(connection(raw).connection.event_fd().as_raw_fd()))
    }
}

unsafe extern "C" fn connection_arm(raw: *mut RawConnection, error: *mut Text) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe {
        guarded(error, || {
            let this = connection(raw);
            if !this.pending.is_empty() || this.failed.is_some() {
                return Ok(1);
            }
            this.connection.arm().map(i32::from)
        })
    }
}

unsafe extern "C" fn connection_poll(
    raw: *mut RawConnection,
    completions: *mut RawCompletion,
    capacity: usize,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, room for `capacity` completions and a valid
    // buffer.
    unsafe {
        guarded(error, || {
            let this = connection(raw);
            this.lent.clear();
            if this.pending.is_empty() {
                if let Some(failed) = &this.failed {
                    return Err(failed.clone());
                }
                let polled = this.connection.poll(&mut this.scratch);
                this.pending.extend(this.scratch.drain(..));
                if let Err(failed) = polled {
                    if this.pending.is_empty() {
                        return Err(failed);
                    }
                    this.failed = Some(failed);
                }
            }
            let count = this.pending.len().min(capacity);
            for index in 0..count {
                let completion = this.pending.pop_front().expect("counted above");
                completions.add(index).write(lend(completion, &mut this.lent));
            }
            Ok(count as i32)
        })
    }
}

/// The C form of a completion; a frame's body is kept in `lent`.
fn lend(completion: Completion, lent: &mut Vec<Vec<u8>>) -> RawCompletion {
    let mut raw = RawCompletion {
        kind: abi::WRITABLE,
        window: 0,
        message: 0,
        offset: 0,
        bytes: 0,
        body: Slice::of(&[]),
        frame_kind: 0,
        descriptor: -1,
    };
    match completion {
        Completion::Connected => raw.kind = abi::CONNECTED,
        Completion::Writable => {}
        Completion::Written { message } => {
            raw.kind = abi::WRITTEN;
            raw.message = message;
        }
        Completion::Placed { message, window, offset, bytes } => {
            raw = RawCompletion { kind: abi::PLACED, window, message, offset, bytes, ..raw };
        }
        Completion::Frame { kind, body, memory } => {
            raw.kind = abi::FRAME;
            raw.frame_kind = kind.into();
            raw.descriptor = memory.map_or(-1, IntoRawFd::into_raw_fd);
            // The vector's buffer stays where it is when the vector moves.
            raw.body = Slice::of(&body);
            lent.push(body);
        }
    }
    raw
}

unsafe extern "C" fn connection_send_frame(
    raw: *mut RawConnection,
    kind: u32,
    parts: *const Slice,
    count: usize,
    descriptor: i32,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, `count` valid slices, a descriptor that stays
    // open during the call or -1, and a valid buffer.
    unsafe {
        guarded(error, || {
            let kind = u8::try_from(kind)
                .map_err(|_| TransportError::new(Cause::Invalid, "a frame's kind is one byte"))?;
            if count > PARTS_MAX {
                return Err(too_many_parts(count));
            }
            let mut slices = [&[][..]; PARTS_MAX];
            for (index, slice) in slices[..count].iter_mut().enumerate() {
                *slice = (*parts.add(index)).as_bytes();
            }
            let memory = (descriptor >= 0).then(|| BorrowedFd::borrow_raw(descriptor));
            connection(raw).connection.send_frame(kind, &slices[..count], memory)?;
            Ok(0)
        })
    }
}

fn too_many_parts(count: usize) -> TransportError {
    let message = format!("a list has {count} parts, {PARTS_MAX} are allowed");
    TransportError::new(Cause::Invalid, message)
}

unsafe extern "C" fn connection_queued_bytes(raw: *mut RawConnection) -> u64 {
    // SAFETY: the caller passes a living connection.
    let queued = || unsafe { connection(raw).connection.queued_bytes() };
    catch_unwind(AssertUnwindSafe(queued)).unwrap_or(0)
}

/// An owner on the other side of the boundary.
struct ForeignOwner {
    owner: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: the ABI demands that `release` may be called from any thread, and the pointer is only
// ever passed to it.
unsafe impl Send for ForeignOwner {}
// SAFETY: as above; a shared reference gives no access to the pointer.
unsafe impl Sync for ForeignOwner {}

impl Drop for ForeignOwner {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: called once, with the owner it came with.
            unsafe { release(self.owner) };
        }
    }
}

unsafe extern "C" fn connection_register(
    raw: *mut RawConnection,
    memory: *const RawMemory,
    key: *mut u64,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, a valid description whose memory lives until
    // its owner is released, a place for the key and a valid buffer.
    unsafe {
        guarded(error, || {
            let RawMemory { address, bytes, kind, device, descriptor, owner, release } =
                memory.read();
            let owner = Arc::new(ForeignOwner { owner, release });
            let kind = match kind {
                0 => MemoryKind::Host,
                1 => MemoryKind::Pinned,
                2 => MemoryKind::Gpu,
                3 => MemoryKind::DmaBuf,
                _ => {
                    let message = format!("memory of the unknown kind {kind}");
                    return Err(TransportError::new(Cause::Unsupported, message));
                }
            };
            let memory = Memory::from_raw(address, bytes, kind, device, descriptor, owner);
            *key = connection(raw).connection.register(memory)?.0;
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_unregister(
    raw: *mut RawConnection,
    key: u64,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe { guarded(error, || connection(raw).connection.unregister(MemoryKey(key)).map(|()| 0)) }
}

unsafe extern "C" fn connection_offer(
    raw: *mut RawConnection,
    window: u32,
    part: *const Part,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, a valid part and a valid buffer.
    unsafe { guarded(error, || connection(raw).connection.offer(window, *part).map(|()| 0)) }
}

unsafe extern "C" fn connection_withdraw(
    raw: *mut RawConnection,
    window: u32,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe { guarded(error, || connection(raw).connection.withdraw(window).map(|()| 0)) }
}

unsafe extern "C" fn connection_write(
    raw: *mut RawConnection,
    message: u64,
    parts: *const Part,
    count: usize,
    window: u32,
    offset: u64,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, `count` valid parts and a valid buffer.
    unsafe {
        guarded(error, || {
            if count > PARTS_MAX {
                return Err(too_many_parts(count));
            }
            let parts = match count {
                0 => &[],
                _ => std::slice::from_raw_parts(parts, count),
            };
            connection(raw).connection.write(message, parts, window, offset).map(|()| 0)
        })
    }
}

unsafe extern "C" fn connection_export_secret(
    raw: *mut RawConnection,
    label: Slice,
    out: *mut u8,
    error: *mut Text,
) -> i32 {
    // SAFETY: the caller passes a living connection, a valid label, room for 32 bytes and a valid
    // buffer.
    unsafe {
        guarded(error, || {
            let secret = connection(raw).connection.export_secret(label.as_bytes())?;
            std::ptr::copy_nonoverlapping(secret.as_ptr(), out, secret.len());
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_peer_identity(raw: *mut RawConnection, out: *mut Text) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe {
        guarded(out, || {
            write_text(out, &connection(raw).connection.peer_identity());
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_peer_address(raw: *mut RawConnection, out: *mut Text) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe {
        guarded(out, || {
            write_text(out, &connection(raw).connection.peer_address());
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_statistics(raw: *mut RawConnection, out: *mut Text) -> i32 {
    // SAFETY: the caller passes a living connection and a valid buffer.
    unsafe {
        guarded(out, || {
            let counters = connection(raw).connection.statistics();
            let json: serde_json::Map<String, serde_json::Value> =
                counters.into_iter().map(|(name, value)| (name, value.into())).collect();
            write_text(out, &serde_json::Value::Object(json).to_string());
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_close(raw: *mut RawConnection, reason: Slice) -> i32 {
    // SAFETY: the caller passes a living connection and valid bytes.
    unsafe {
        guarded(std::ptr::null_mut(), || {
            connection(raw).connection.close(&String::from_utf8_lossy(reason.as_bytes()));
            Ok(0)
        })
    }
}

unsafe extern "C" fn connection_drop(raw: *mut RawConnection) {
    // SAFETY: the caller gives the connection up; it was made by `exported`.
    unsafe {
        guarded(std::ptr::null_mut(), || {
            drop(Box::from_raw(raw.cast::<ExportedConnection>()));
            Ok(0)
        });
    }
}
