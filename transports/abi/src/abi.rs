//! The C ABI of a transport plugin: one entry symbol that returns a table of functions.
//!
//! `include/genie_transport.h` is the same for authors in C. Everything is `extern "C"`, no type
//! of Rust crosses, no function unwinds. The meaning of each function is that of the trait's
//! function of the same name in [`crate::transport`].
//!
//! Versions: `major` must be equal. A table of a smaller `minor` is accepted: functions behind its
//! `size` are absent. The functions of 1.0 are all required.

use std::ffi::c_void;

use crate::transport::Part;

pub const MAJOR: u16 = 1;
pub const MINOR: u16 = 0;
/// The symbol a plugin exports: `extern "C" fn() -> *const Vtable`, valid for ever.
pub const ENTRY: &str = "genie_transport_v1";
/// Bytes of a text buffer that callers pass for errors, addresses and identities.
pub const TEXT_BYTES: usize = 4 << 10;
/// Bytes of the buffer for statistics.
pub const STATISTICS_BYTES: usize = 64 << 10;

/// The type of the entry symbol.
pub type Entry = unsafe extern "C" fn() -> *const Vtable;

/// Bytes lent for a call.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Slice {
    pub data: *const u8,
    pub bytes: usize,
}

impl Slice {
    pub fn of(bytes: &[u8]) -> Self {
        Slice { data: bytes.as_ptr(), bytes: bytes.len() }
    }

    /// # Safety
    /// The bytes must stay valid and unchanged for `'a`.
    pub unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for the range.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

/// A buffer of the caller's for UTF-8 text. What does not fit is cut off.
#[derive(Debug)]
#[repr(C)]
pub struct Text {
    pub data: *mut u8,
    pub capacity: usize,
    /// Set by the plugin.
    pub bytes: usize,
}

/// Memory to register; `release(owner)` is called once when the plugin gives the memory up.
#[derive(Debug)]
#[repr(C)]
pub struct RawMemory {
    pub address: *mut u8,
    pub bytes: u64,
    pub kind: u32,
    pub device: i32,
    pub descriptor: i32,
    pub owner: *mut c_void,
    pub release: Option<unsafe extern "C" fn(*mut c_void)>,
}

pub const CONNECTED: u32 = 1;
pub const FRAME: u32 = 2;
pub const WRITTEN: u32 = 3;
pub const PLACED: u32 = 4;
pub const WRITABLE: u32 = 5;

/// One completion. Fields that a kind does not have are zero; `body` is lent until the next poll
/// of the connection; a descriptor passes to the caller.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawCompletion {
    /// One of the constants above.
    pub kind: u32,
    pub window: u32,
    pub message: u64,
    pub offset: u64,
    pub bytes: u64,
    pub body: Slice,
    pub frame_kind: u32,
    /// -1 for none.
    pub descriptor: i32,
}

/// Opaque, made and dropped by the plugin.
#[repr(C)]
pub struct RawListener {
    _private: [u8; 0],
}

/// Opaque, made and dropped by the plugin.
#[repr(C)]
pub struct RawConnection {
    _private: [u8; 0],
}

/// The table. Functions return 0 (or a count) for success and a negative
/// [`Cause`](crate::transport::Cause) otherwise, with the message in `error`.
#[repr(C)]
pub struct Vtable {
    /// Bytes of this table as the plugin was built.
    pub size: u32,
    pub major: u16,
    pub minor: u16,
    /// Writes the JSON of [`Facts`](crate::transport::Facts).
    pub facts: unsafe extern "C" fn(out: *mut Text) -> i32,
    /// `options` is the JSON of [`Options`](crate::transport::Options), here and below.
    pub probe: unsafe extern "C" fn(options: Slice, out: *mut Text) -> i32,
    pub listen:
        unsafe extern "C" fn(options: Slice, out: *mut *mut RawListener, error: *mut Text) -> i32,
    pub connect:
        unsafe extern "C" fn(options: Slice, out: *mut *mut RawConnection, error: *mut Text) -> i32,

    pub listener_address: unsafe extern "C" fn(*mut RawListener, out: *mut Text) -> i32,
    pub listener_event_fd: unsafe extern "C" fn(*mut RawListener) -> i32,
    /// Leaves null in `out` when no connection waits.
    pub listener_accept: unsafe extern "C" fn(
        *mut RawListener,
        out: *mut *mut RawConnection,
        error: *mut Text,
    ) -> i32,
    pub listener_drop: unsafe extern "C" fn(*mut RawListener),

    pub connection_event_fd: unsafe extern "C" fn(*mut RawConnection) -> i32,
    /// 1: poll again before sleeping.
    pub connection_arm: unsafe extern "C" fn(*mut RawConnection, error: *mut Text) -> i32,
    /// Returns how many of `capacity` completions were written.
    pub connection_poll: unsafe extern "C" fn(
        *mut RawConnection,
        completions: *mut RawCompletion,
        capacity: usize,
        error: *mut Text,
    ) -> i32,
    /// `descriptor` is lent, -1 for none.
    pub connection_send_frame: unsafe extern "C" fn(
        *mut RawConnection,
        kind: u32,
        parts: *const Slice,
        count: usize,
        descriptor: i32,
        error: *mut Text,
    ) -> i32,
    pub connection_queued_bytes: unsafe extern "C" fn(*mut RawConnection) -> u64,
    /// Takes the owner over, also when it fails.
    pub connection_register: unsafe extern "C" fn(
        *mut RawConnection,
        memory: *const RawMemory,
        key: *mut u64,
        error: *mut Text,
    ) -> i32,
    pub connection_unregister:
        unsafe extern "C" fn(*mut RawConnection, key: u64, error: *mut Text) -> i32,
    pub connection_offer: unsafe extern "C" fn(
        *mut RawConnection,
        window: u32,
        part: *const Part,
        error: *mut Text,
    ) -> i32,
    pub connection_withdraw:
        unsafe extern "C" fn(*mut RawConnection, window: u32, error: *mut Text) -> i32,
    pub connection_write: unsafe extern "C" fn(
        *mut RawConnection,
        message: u64,
        parts: *const Part,
        count: usize,
        window: u32,
        offset: u64,
        error: *mut Text,
    ) -> i32,
    /// Writes 32 bytes.
    pub connection_export_secret: unsafe extern "C" fn(
        *mut RawConnection,
        label: Slice,
        out: *mut u8,
        error: *mut Text,
    ) -> i32,
    pub connection_peer_identity: unsafe extern "C" fn(*mut RawConnection, out: *mut Text) -> i32,
    pub connection_peer_address: unsafe extern "C" fn(*mut RawConnection, out: *mut Text) -> i32,
    /// Writes a JSON object of counters.
    pub connection_statistics: unsafe extern "C" fn(*mut RawConnection, out: *mut Text) -> i32,
    pub connection_close: unsafe extern "C" fn(*mut RawConnection, reason: Slice) -> i32,
    pub connection_drop: unsafe extern "C" fn(*mut RawConnection),
}
