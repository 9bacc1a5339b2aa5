//! What this process knows of its session: at most one is current.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use arc_swap::{ArcSwapOption, Guard};
use genie_wire::ErrorCode;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::client::{ClientError, Session};
use crate::python::ending::{self, PROGRAM_ENDS};
use crate::python::gil;

/// The current session; none before the first.
static CURRENT: ArcSwapOption<Session> = ArcSwapOption::const_empty();
/// Whether there is one: for a forked child, which may use atomics only.
static HAS_SESSION: AtomicBool = AtomicBool::new(false);
/// Counts sessions; the number of the current one.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// Whether this is a child forked from a process with a session.
static FORKED: AtomicBool = AtomicBool::new(false);
/// The session's descriptors, for the forked child to close.
static DESCRIPTORS: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];
/// The last seed, for the sessions to come.
static SEED: Mutex<Option<u64>> = Mutex::new(None);

/// A session that was the current one; a thread in the middle of a call keeps it.
pub struct Held(Guard<Option<Arc<Session>>>);

impl Deref for Held {
    type Target = Session;

    #[inline]
    fn deref(&self) -> &Session {
        self.0.as_deref().expect("`current` holds no absent session")
    }
}

/// The current session, over or not.
#[inline]
pub fn current() -> Option<Held> {
    if FORKED.load(Ordering::Relaxed) {
        return None;
    }
    let session = CURRENT.load();
    session.is_some().then_some(Held(session))
}

pub fn number() -> u64 {
    NUMBER.load(Ordering::Acquire)
}

pub fn is_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// The live session, starting one at first use. Fails in a forked child and, until the program
/// says otherwise, after a lost node.
#[inline]
pub fn ensure() -> Result<Held, ClientError> {
    match current() {
        Some(session) if session.is_live() => Ok(session),
        _ => begin(),
    }
}

#[cold]
fn begin() -> Result<Held, ClientError> {
    if is_forked() {
        return Err(ClientError::new(
            ErrorCode::Runtime,
            "remote_accelerator cannot be used in a forked child: its session belongs to the \
             parent. Use the start method \"spawn\" (multiprocessing.get_context(\"spawn\"))",
        ));
    }
    if let Some(end) = current().and_then(|session| session.end()) {
        return Err(end);
    }
    if ending::is_ending() {
        return Err(ending::refused());
    }
    // Python chooses the mode and starts processes; it comes back through `install`.
    gil::with(|py| {
        py.import("genie._session")?.call_method0("start_at_first_use")?;
        Ok(())
    })
    .map_err(|error: PyErr| error_of(&error))?;
    current().ok_or_else(|| ClientError::protocol("genie._session started no session"))
}

/// A Python exception on its way through C++.
fn error_of(error: &PyErr) -> ClientError {
    gil::with(|py| {
        if !error.is_instance_of::<PyException>(py) {
            gil::keep_raised(error.clone_ref(py));
            return ClientError::interrupted();
        }
        let message = error.value(py).to_string();
        let code = error
            .value(py)
            .getattr("code")
            .and_then(|code| code.extract::<u8>())
            .unwrap_or(ErrorCode::Runtime as u8);
        ClientError { code, message }
    })
}

/// Makes `session` the current one. The caller made sure that the last is over.
pub fn install(session: Session) -> Arc<Session> {
    watch_forks();
    let session = Arc::new(session);
    if let Some(seed) = *SEED.lock().unwrap_or_else(PoisonError::into_inner) {
        session.seed(seed);
    }
    let descriptors = session.descriptors();
    for (slot, fd) in DESCRIPTORS.iter().zip(descriptors) {
        slot.store(fd, Ordering::Relaxed);
    }
    // First: a fork in between leaves a child that knows it has a session of its parent.
    HAS_SESSION.store(true, Ordering::Release);
    CURRENT.store(Some(session.clone()));
    NUMBER.fetch_add(1, Ordering::AcqRel);
    session
}

/// Ends the current session and forgets it, so that the next use starts a new one.
pub fn shut_down() {
    let Some(session) = current() else { return };
    for slot in &DESCRIPTORS {
        slot.store(-1, Ordering::Relaxed);
    }
    session.close();
    CURRENT.store(None);
    HAS_SESSION.store(false, Ordering::Release);
    // Storages of the old session are strangers to the next.
    NUMBER.fetch_add(1, Ordering::AcqRel);
}

/// Seeds the device's generator, now or as soon as there is a session.
pub fn seed(seed: u64) {
    *SEED.lock().unwrap_or_else(PoisonError::into_inner) = Some(seed);
    if let Some(session) = current() {
        session.seed(seed);
    }
}

pub fn last_seed() -> Option<u64> {
    *SEED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only uses atomics and close(2), which a forked child may call.
        unsafe { libc::pthread_atfork(None, None, Some(in_forked_child)) };
    });
}

/// The child must not keep the parent's session open, nor touch it.
extern "C" fn in_forked_child() {
    if !HAS_SESSION.load(Ordering::Relaxed) {
        return;
    }
    FORKED.store(true, Ordering::Relaxed);
    for slot in &DESCRIPTORS {
        let fd = slot.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: the child's copy of a descriptor that nothing in the child uses from now on
            // (`current` answers None).
            unsafe { libc::close(fd) };
        }
    }
}

/// Raises a client's error in Python.
pub fn raise(error: ClientError) -> PyErr {
    if error.is_interrupt()
        && let Some(raised) = gil::take_raised()
    {
        return raised;
    }
    let code = if ending::ends_this_thread() { PROGRAM_ENDS } else { error.code };
    gil::with(|py| {
        let made = py
            .import("genie.errors")
            .and_then(|module| module.call_method1("from_code", (code, &*error.message)));
        match made {
            Ok(exception) => PyErr::from_value(exception),
            Err(failure) => failure,
        }
    })
}
