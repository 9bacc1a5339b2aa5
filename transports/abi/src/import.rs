//! A plugin's table as a transport: the safe side of the boundary.
//!
//! What a plugin says is checked as far as it can be: texts for UTF-8, codes, counts. Its pointers
//! have to be trusted: a native plugin is trusted code (docs/reference/transports.md).

use std::any::Any;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::abi::{self, RawCompletion, RawConnection, RawListener, RawMemory, Slice, Text, Vtable};
use crate::transport::{
    COMPLETIONS_MAX, Cause, Completion, Connection, FRAME_BYTES_MAX, Facts, Listener, Memory,
    MemoryKey, Options, PARTS_MAX, Part, Result, Transport, TransportError,
};

/// Bytes of a plugin's name, and of its version.
const NAME_BYTES_MAX: usize = 64;

/// A transport behind a table.
#[derive(Clone)]
pub struct Imported {
    vtable: &'static Vtable,
    facts: Facts,
}

/// Why a table was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    #[error("its entry returned no table")]
    NoTable,
    #[error(
        "it speaks version {major}.{minor} of the transport ABI, this program speaks {}.{}; get a \
         build of the plugin for this version of Genie",
        abi::MAJOR,
        abi::MINOR
    )]
    Version { major: u16, minor: u16 },
    #[error("its table has {have} bytes, version 1.0 has {}; it is damaged", size_of::<Vtable>())]
    Size { have: u32 },
    #[error("function {0} of its table is null; it is damaged")]
    NullFunction(usize),
    #[error("it does not say who it is: {0}")]
    Facts(String),
}

impl Imported {
    /// Checks the head of a table.
    ///
    /// # Safety
    /// `table` must be null or point to a table (at least its first 8 bytes) that stays valid for
    /// ever and whose functions keep the contract of [`crate::abi`].
    pub unsafe fn new(table: *const Vtable) -> std::result::Result<Self, ImportError> {
        if table.is_null() {
            return Err(ImportError::NoTable);
        }
        // SAFETY: the caller vouches for the first 8 bytes, which are these three fields.
        let (size, major, minor) = unsafe { ((*table).size, (*table).major, (*table).minor) };
        if major != abi::MAJOR {
            return Err(ImportError::Version { major, minor });
        }
        if (size as usize) < size_of::<Vtable>() {
            return Err(ImportError::Size { have: size });
        }
        let functions = (size_of::<Vtable>() - HEAD_BYTES) / size_of::<usize>();
        for index in 0..functions {
            // SAFETY: the table is as large as the type, whose head is followed by pointers only.
            let function = unsafe { table.byte_add(HEAD_BYTES).cast::<usize>().add(index).read() };
            if function == 0 {
                return Err(ImportError::NullFunction(index + 1));
            }
        }
        // SAFETY: it is as large as this type, no function is null, and it is valid for ever.
        let vtable = unsafe { &*table };
        let facts = facts(vtable).map_err(|error| ImportError::Facts(error.message))?;
        Ok(Imported { vtable, facts })
    }
}

/// Bytes of a table before its functions.
const HEAD_BYTES: usize = std::mem::offset_of!(Vtable, facts);

fn facts(vtable: &Vtable) -> Result<Facts> {
    // SAFETY: the buffer is valid during the call.
    let json = text(|out| unsafe { (vtable.facts)(out) })?;
    let strange = |why: String| TransportError::new(Cause::Protocol, why);
    let facts: Facts =
        serde_json::from_str(&json).map_err(|error| strange(format!("{json:?}: {error}")))?;
    if !is_name(&facts.name) {
        return Err(strange(format!("{:?} is no name: give a word of a-z, 0-9, _, -", facts.name)));
    }
    if facts.version.len() > NAME_BYTES_MAX || facts.version.chars().any(char::is_control) {
        return Err(strange(format!("{:?} is no version", facts.version)));
    }
    Ok(facts)
}

/// Whether a transport may be called this: a short word of lower case that begins with a letter.
pub fn is_name(name: &str) -> bool {
    let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-".contains(&c);
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(fine)
        && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
}

/// Calls with a buffer for text; the text is the result or the error's message.
fn text(call: impl FnOnce(*mut Text) -> i32) -> Result<String> {
    sized_text(abi::TEXT_BYTES, call)
}

fn sized_text(capacity: usize, call: impl FnOnce(*mut Text) -> i32) -> Result<String> {
    let mut buffer = vec![0u8; capacity];
    let mut text = Text { data: buffer.as_mut_ptr(), capacity, bytes: 0 };
    let code = call(&mut text);
    buffer.truncate(text.bytes.min(capacity));
    let said = String::from_utf8_lossy(&buffer).into_owned();
    check(code, said.clone()).map(|_| said)
}

/// Calls with a buffer for an error's message; only a failure touches it.
fn call(call: impl FnOnce(*mut Text) -> i32) -> Result<i32> {
    let mut buffer = [0u8; 1024];
    let mut text = Text { data: buffer.as_mut_ptr(), capacity: buffer.len(), bytes: 0 };
    let code = call(&mut text);
    if code >= 0 {
        return Ok(code);
    }
    let bytes = text.bytes.min(buffer.len());
    check(code, String::from_utf8_lossy(&buffer[..bytes]).into_owned())
}

fn check(code: i32, message: String) -> Result<i32> {
    if code >= 0 {
        return Ok(code);
    }
    let cause = Cause::from_i32(code).unwrap_or(Cause::Internal);
    let message = match message.is_empty() {
        true => format!("the transport plugin failed with code {code} and no message"),
        false => message,
    };
    Err(TransportError { cause, message })
}

fn json(options: &Options) -> String {
    serde_json::to_string(options).expect("options are plain values")
}

impl Transport for Imported {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn probe(&self, options: &Options) -> Result<String> {
        let json = json(options);
        // SAFETY: options and buffer are valid during the call.
        text(|out| unsafe { (self.vtable.probe)(Slice::of(json.as_bytes()), out) })
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        let json = json(options);
        let mut raw = std::ptr::null_mut();
        call(|error| {
            // SAFETY: options, the place for the result and the buffer are valid during the call.
            unsafe { (self.vtable.listen)(Slice::of(json.as_bytes()), &mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(nothing)?;
        // SAFETY: the listener was just made.
        let fd = unsafe { (self.vtable.listener_event_fd)(raw.as_ptr()) };
        let listener = ImportedListener { vtable: self.vtable, raw, fd };
        check_descriptor(fd)?;
        Ok(Box::new(listener))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        let json = json(options);
        let mut raw = std::ptr::null_mut();
        call(|error| {
            // SAFETY: as in `listen`.
            unsafe { (self.vtable.connect)(Slice::of(json.as_bytes()), &mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(nothing)?;
        Ok(Box::new(ImportedConnection::new(self.vtable, raw)?))
    }
}

fn nothing() -> TransportError {
    TransportError::new(Cause::Internal, "the transport plugin reported success and gave nothing")
}

/// Whether a plugin's number is an open descriptor.
fn check_descriptor(fd: i32) -> Result<()> {
    if fd >= 0 {
        // SAFETY: only asks whether it is open; nothing is done with it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if rustix::io::fcntl_getfd(borrowed).is_ok() {
            return Ok(());
        }
    }
    let message = format!("the transport plugin returned {fd}, which is no open descriptor");
    Err(TransportError::new(Cause::Internal, message))
}

struct ImportedListener {
    vtable: &'static Vtable,
    raw: NonNull<RawListener>,
    /// The event descriptor, which stays the same while the listener lives.
    fd: i32,
}

// SAFETY: the ABI demands that a listener may move between threads; it is used by one at a time.
unsafe impl Send for ImportedListener {}

impl Listener for ImportedListener {
    fn address(&self) -> String {
        // SAFETY: the listener lives, the buffer is valid during the call.
        text(|out| unsafe { (self.vtable.listener_address)(self.raw.as_ptr(), out) })
            .unwrap_or_default()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it was open when the listener was made, and the ABI demands that it stays open
        // while the listener lives.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        let mut raw = std::ptr::null_mut();
        call(|error| {
            // SAFETY: the listener lives; the result's place and the buffer are valid.
            unsafe { (self.vtable.listener_accept)(self.raw.as_ptr(), &mut raw, error) }
        })?;
        match NonNull::new(raw) {
            Some(raw) => Ok(Some(Box::new(ImportedConnection::new(self.vtable, raw)?))),
            None => Ok(None),
        }
    }
}

impl Drop for ImportedListener {
    fn drop(&mut self) {
        // SAFETY: the listener is given up and not used after.
        unsafe { (self.vtable.listener_drop)(self.raw.as_ptr()) }
    }
}

struct ImportedConnection {
    vtable: &'static Vtable,
    raw: NonNull<RawConnection>,
    /// The event descriptor, which stays the same while the connection lives.
    fd: i32,
    completions: Box<[RawCompletion]>,
}

// SAFETY: as for the listener.
unsafe impl Send for ImportedConnection {}

impl ImportedConnection {
    fn new(vtable: &'static Vtable, raw: NonNull<RawConnection>) -> Result<Self> {
        let empty = RawCompletion {
            kind: 0,
            window: 0,
            message: 0,
            offset: 0,
            bytes: 0,
            body: Slice::of(&[]),
            frame_kind: 0,
            descriptor: -1,
        };
        let completions = vec![empty; COMPLETIONS_MAX].into_boxed_slice();
        // SAFETY: the connection was just made.
        let fd = unsafe { (vtable.connection_event_fd)(raw.as_ptr()) };
        let connection = ImportedConnection { vtable, raw, fd, completions };
        check_descriptor(fd)?;
        Ok(connection)
    }
}

/// Takes back the reference that was lent as an owner.
unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: the pointer is the box made in `register`, and this is called once.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<dyn Any + Send + Sync>>()) });
}

impl Connection for ImportedConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it was open when the connection was made, and the ABI demands that it stays open
        // while the connection lives.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    fn arm(&mut self) -> Result<bool> {
        // SAFETY: the connection lives, the buffer is valid during the call (here and below).
        call(|error| unsafe { (self.vtable.connection_arm)(self.raw.as_ptr(), error) })
            .map(|pending| pending > 0)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        let (out, capacity) = (self.completions.as_mut_ptr(), self.completions.len());
        let count = call(|error| {
            // SAFETY: there is room for `capacity` completions.
            unsafe { (self.vtable.connection_poll)(self.raw.as_ptr(), out, capacity, error) }
        })?;
        let Some(polled) = self.completions.get(..count as usize) else {
            let message =
                format!("the transport plugin returned {count} completions where {capacity} fit");
            return Err(TransportError::new(Cause::Internal, message));
        };
        let mut result = Ok(());
        for raw in polled {
            // After a strange one the rest is still taken, so that no descriptor is left open.
            match take(raw) {
                Ok(completion) if result.is_ok() => completions.push(completion),
                Ok(_) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        if parts.len() > PARTS_MAX {
            return self.send_frame(kind, &[&parts.concat()], memory);
        }
        let mut slices = [Slice::of(&[]); PARTS_MAX];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = Slice::of(part);
        }
        let descriptor = memory.map_or(-1, |fd| fd.as_raw_fd());
        call(|error| {
            // SAFETY: slices and descriptor are valid during the call.
            unsafe {
                (self.vtable.connection_send_frame)(
                    self.raw.as_ptr(),
                    kind.into(),
                    slices.as_ptr(),
                    parts.len(),
                    descriptor,
                    error,
                )
            }
        })
        .map(drop)
    }

    fn queued_bytes(&self) -> u64 {
        // SAFETY: the connection lives.
        unsafe { (self.vtable.connection_queued_bytes)(self.raw.as_ptr()) }
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        let raw = RawMemory {
            address: memory.address(),
            bytes: memory.bytes(),
            kind: memory.kind() as u32,
            device: memory.device(),
            descriptor: memory.descriptor(),
            owner: Box::into_raw(Box::new(memory.owner().clone())).cast(),
            release: Some(release),
        };
        let mut key = 0;
        call(|error| {
            // SAFETY: the description is valid during the call; the plugin takes the owner over.
            unsafe { (self.vtable.connection_register)(self.raw.as_ptr(), &raw, &mut key, error) }
        })?;
        Ok(MemoryKey(key))
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        call(|error| {
            // SAFETY: see `arm`.
            unsafe { (self.vtable.connection_unregister)(self.raw.as_ptr(), key.0, error) }
        })
        .map(drop)
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        call(|error| {
            // SAFETY: see `arm`; the part is valid during the call.
            unsafe { (self.vtable.connection_offer)(self.raw.as_ptr(), window, &part, error) }
        })
        .map(drop)
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        call(|error| {
            // SAFETY: see `arm`.
            unsafe { (self.vtable.connection_withdraw)(self.raw.as_ptr(), window, error) }
        })
        .map(drop)
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        call(|error| {
            // SAFETY: see `arm`; the parts are valid during the call.
            unsafe {
                (self.vtable.connection_write)(
                    self.raw.as_ptr(),
                    message,
                    parts.as_ptr(),
                    parts.len(),
                    window,
                    offset,
                    error,
                )
            }
        })
        .map(drop)
    }

    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        let mut secret = [0; 32];
        call(|error| {
            // SAFETY: see `arm`; label and room for 32 bytes are valid during the call.
            unsafe {
                (self.vtable.connection_export_secret)(
                    self.raw.as_ptr(),
                    Slice::of(label),
                    secret.as_mut_ptr(),
                    error,
                )
            }
        })?;
        Ok(secret)
    }

    fn peer_identity(&self) -> String {
        // SAFETY: see `arm`.
        text(|out| unsafe { (self.vtable.connection_peer_identity)(self.raw.as_ptr(), out) })
            .unwrap_or_default()
    }

    fn peer_address(&self) -> String {
        // SAFETY: see `arm`.
        text(|out| unsafe { (self.vtable.connection_peer_address)(self.raw.as_ptr(), out) })
            .unwrap_or_default()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let said = sized_text(abi::STATISTICS_BYTES, |out| {
            // SAFETY: see `arm`.
            unsafe { (self.vtable.connection_statistics)(self.raw.as_ptr(), out) }
        });
        let counters = said.ok().and_then(|json| {
            serde_json::from_str::<std::collections::BTreeMap<String, u64>>(&json).ok()
        });
        counters.unwrap_or_default().into_iter().collect()
    }

    fn close(&mut self, reason: &str) {
        // SAFETY: see `arm`; the reason is valid during the call. There is nothing to do about a
        // connection that cannot be closed: the next poll fails.
        unsafe {
            (self.vtable.connection_close)(self.raw.as_ptr(), Slice::of(reason.as_bytes()));
        }
    }
}

impl Drop for ImportedConnection {
    fn drop(&mut self) {
        // SAFETY: the connection is given up and not used after.
        unsafe { (self.vtable.connection_drop)(self.raw.as_ptr()) }
    }
}

/// The Rust form of a completion that a poll has just returned.
fn take(raw: &RawCompletion) -> Result<Completion> {
    Ok(match raw.kind {
        abi::CONNECTED => Completion::Connected,
        abi::WRITABLE => Completion::Writable,
        abi::WRITTEN => Completion::Written { message: raw.message },
        abi::PLACED => Completion::Placed {
            message: raw.message,
            window: raw.window,
            offset: raw.offset,
            bytes: raw.bytes,
        },
        abi::FRAME => frame(raw)?,
        kind => return Err(strange(format!("a completion of the unknown kind {kind}"))),
    })
}

fn frame(raw: &RawCompletion) -> Result<Completion> {
    let memory = match raw.descriptor {
        ..0 => None,
        fd => {
            check_descriptor(fd)?;
            // SAFETY: it is open, and the ABI demands that it passes to us.
            Some(unsafe { OwnedFd::from_raw_fd(fd) })
        }
    };
    let kind = raw.frame_kind;
    let kind = u8::try_from(kind).map_err(|_| strange(format!("a frame of the kind {kind}")))?;
    let bytes = raw.body.bytes;
    if bytes > FRAME_BYTES_MAX || (bytes > 0 && raw.body.data.is_null()) {
        return Err(strange(format!("a frame of {bytes} bytes at {:?}", raw.body.data)));
    }
    // SAFETY: not null and of a sane size; lent until the next poll, copied here.
    let body = unsafe { raw.body.as_bytes() }.to_vec();
    Ok(Completion::Frame { kind, body, memory })
}

fn strange(what: String) -> TransportError {
    TransportError::new(Cause::Internal, format!("the transport plugin returned {what}"))
}
