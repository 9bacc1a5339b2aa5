//! The end of the interpreter: no session starts any more, and daemon threads end quietly.
//!
//! The interpreter freezes daemon threads wherever they are, some time after `atexit` ended the
//! session. Until then they go on, and the next use of the device would start a host, or raise in a
//! thread whose traceback nobody asked for. So each of them is ended by an exception that the
//! interpreter does not print. Code of the main thread (other `atexit` functions) gets an error.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::ClientError;
use crate::python::gil;

/// The code of `SystemExit` (`genie.errors`); no peer sends it.
pub const PROGRAM_ENDS: u8 = 253;
/// The code of `genie.errors.StartFailed`; no peer sends it.
const START_FAILED: u8 = 254;

static ENDING: AtomicBool = AtomicBool::new(false);
static THREADS: Mutex<Option<Threads>> = Mutex::new(None);

thread_local! {
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Threads by the numbers that the kernel gives them.
#[derive(Default)]
struct Threads {
    /// Those that used the device.
    users: HashSet<u64>,
    /// Those that were ended.
    told: HashSet<u64>,
}

fn threads() -> MutexGuard<'static, Option<Threads>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the interpreter is ending.
pub fn begin() {
    ENDING.store(true, Ordering::Release);
}

pub fn is_ending() -> bool {
    ENDING.load(Ordering::Acquire)
}

/// Whether an error of this thread is to end the thread quietly.
pub fn ends_this_thread() -> bool {
    if !is_ending() || gil::is_main_thread() {
        return false;
    }
    if !TOLD.replace(true) {
        threads().get_or_insert_default().told.insert(own());
    }
    true
}

/// Notes that this thread uses the device; called once a thread.
pub fn note_user() {
    if !gil::is_main_thread() {
        threads().get_or_insert_default().users.insert(own());
    }
}

/// Threads other than the main one that used the device, each with whether it was ended.
pub fn users() -> Vec<(u64, bool)> {
    let threads = threads();
    let Some(threads) = threads.as_ref() else { return Vec::new() };
    threads.users.iter().map(|thread| (*thread, threads.told.contains(thread))).collect()
}

/// Why no session starts any more.
pub fn refused() -> ClientError {
    let text = "the interpreter is ending: no session of remote_accelerator starts any more. Use the \
                device before the program ends; an atexit function that needs it must be registered \
                after `import genie`, so that it runs before the session's end";
    ClientError { code: START_FAILED, message: text.to_owned() }
}

fn own() -> u64 {
    rustix::thread::gettid().as_raw_nonzero().get() as u64
}
