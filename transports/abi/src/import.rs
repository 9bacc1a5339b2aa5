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
    COMPLETIONS_MAX, Cause, Completion, Connection, Facts, Listener, Memory, MemoryKey, Options,
    PARTS_MAX, Part, Result, Transport, TransportError,
};

/// A transport behind a table.
#[derive(Clone, Copy)]
pub struct Imported {
    vtable: &'static Vtable,
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
        // SAFETY: it is as large as this type, and valid for ever.
        let vtable = unsafe { &*table };
        let imported = Imported { vtable };
        imported.try_facts().map_err(|error| ImportError::Facts(error.message))?;
        Ok(imported)
    }

    fn try_facts(&self) -> Result<Facts> {
        // SAFETY: the buffer is valid during the call.
        let json = text(|out| unsafe { (self.vtable.facts)(out) })?;
        serde_json::from_str(&json)
            .map_err(|error| TransportError::new(Cause::Protocol, format!("{json:?}: {error}")))
    }
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
        self.try_facts().expect("they were read when the table was taken")
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
        Ok(Box::new(ImportedListener { vtable: self.vtable, raw }))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        let json = json(options);
        let mut raw = std::ptr::null_mut();
        call(|error| {
            // SAFETY: as in `listen`.
            unsafe { (self.vtable.connect)(Slice::of(json.as_bytes()), &mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(nothing)?;
        Ok(Box::new(ImportedConnection::new(self.vtable, raw)))
    }
}

fn nothing() -> TransportError {
    TransportError::new(Cause::Internal, "the transport plugin reported success and gave nothing")
}

struct ImportedListener {
    vtable: &'static Vtable,
    raw: NonNull<RawListener>,
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
        // SAFETY: the listener lives.
        let fd = unsafe { (self.vtable.listener_event_fd)(self.raw.as_ptr()) };
        assert!(fd >= 0, "a transport plugin's listener has no event descriptor");
        // SAFETY: the ABI demands that the descriptor stays open while the listener lives.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        let mut raw = std::ptr::null_mut();
        call(|error| {
            // SAFETY: the listener lives; the result's place and the buffer are valid.
            unsafe { (self.vtable.listener_accept)(self.raw.as_ptr(), &mut raw, error) }
        })?;
        Ok(NonNull::new(raw)
            .map(|raw| Box::new(ImportedConnection::new(self.vtable, raw)) as Box<dyn Connection>))
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
    completions: Box<[RawCompletion]>,
}

// SAFETY: as for the listener.
unsafe impl Send for ImportedConnection {}

impl ImportedConnection {
    fn new(vtable: &'static Vtable, raw: NonNull<RawConnection>) -> Self {
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
        ImportedConnection { vtable, raw, completions }
    }
}

/// Takes back the reference that was lent as an owner.
unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: the pointer is the box made in `register`, and this is called once.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<dyn Any + Send + Sync>>()) });
}

impl Connection for ImportedConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the connection lives.
        let fd = unsafe { (self.vtable.connection_event_fd)(self.raw.as_ptr()) };
        assert!(fd >= 0, "a transport plugin's connection has no event descriptor");
        // SAFETY: the ABI demands that the descriptor stays open while the connection lives.
        unsafe { BorrowedFd::borrow_raw(fd) }
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
        let count = (count as usize).min(capacity);
        for raw in &self.completions[..count] {
            completions.push(take(raw)?);
        }
        Ok(())
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
        abi::FRAME => Completion::Frame {
            kind: u8::try_from(raw.frame_kind).map_err(|_| strange(raw.frame_kind))?,
            // SAFETY: lent until the next poll; copied here.
            body: unsafe { raw.body.as_bytes() }.to_vec(),
            memory: (raw.descriptor >= 0).then(|| {
                // SAFETY: the descriptor passes to us.
                unsafe { OwnedFd::from_raw_fd(raw.descriptor) }
            }),
        },
        kind => return Err(strange(kind)),
    })
}

fn strange(kind: u32) -> TransportError {
    let message = format!("the transport plugin returned a completion of the unknown kind {kind}");
    TransportError::new(Cause::Internal, message)
}
