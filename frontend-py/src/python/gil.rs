//! The interpreter lock, around waits that may begin with or without it.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::{PyErr, ffi};

use crate::client::{Hooks, Stage};
use crate::python::ending;

/// Waits of the client in this process.
pub static HOOKS: Hooks = Hooks { release, restore, interrupted };

thread_local! {
    /// What a signal handler raised during the last wait of this thread.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
    static STAGE: Cell<Option<Stage>> = const { Cell::new(None) };
}

fn release() -> usize {
    if !is_held() {
        return 0;
    }
    // SAFETY: this thread holds the interpreter lock; `restore` gives the state back.
    unsafe { ffi::PyEval_SaveThread() as usize }
}

fn restore(state: usize) {
    if state != 0 {
        stay_if_finalizing();
        // SAFETY: `state` came from `PyEval_SaveThread` on this thread.
        unsafe { ffi::PyEval_RestoreThread(state as *mut ffi::PyThreadState) };
    }
}

/// Only the main thread runs signal handlers.
fn interrupted() -> bool {
    if !is_main_thread() {
        return false;
    }
    with(|py| match py.check_signals() {
        Ok(()) => false,
        Err(raised) => {
            keep_raised(raised);
            true
        }
    })
}

/// Runs `work` with the interpreter, also where this thread released it by hand (which PyO3 does
/// not see). Never call it with a lock held that a thread with the interpreter may wait for.
pub fn with<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    stay_if_finalizing();
    // SAFETY: the interpreter is initialised (this code is loaded by it); released below.
    let state = unsafe { ffi::PyGILState_Ensure() };
    let result = Python::attach(work);
    // SAFETY: gives back what was taken above, on the same thread.
    unsafe { ffi::PyGILState_Release(state) };
    result
}

/// The text of the exception that ended this thread's last wait.
pub fn raised_text() -> Option<String> {
    RAISED.with(|slot| {
        let raised = slot.borrow();
        raised.as_ref().map(|raised| with(|py| raised.value(py).to_string()))
    })
}

/// Keeps an exception for whoever turns this thread's error into one.
pub fn keep_raised(raised: PyErr) {
    RAISED.with(|slot| *slot.borrow_mut() = Some(raised));
}

/// The exception that ended this thread's last wait.
pub fn take_raised() -> Option<PyErr> {
    RAISED.with(|slot| slot.borrow_mut().take())
}

pub fn is_held() -> bool {
    static CHECK: OnceLock<Option<Check>> = OnceLock::new();
    let check = CHECK.get_or_init(|| find(c"PyGILState_Check"));
    // SAFETY: may be called by any thread at any time after the interpreter's start.
    check.is_some_and(|check| unsafe { check() } != 0)
}

/// A question to CPython that takes nothing and answers with a truth.
type Check = unsafe extern "C" fn() -> c_int;

/// One that is not in the limited API, but exported by every CPython.
fn find(name: &CStr) -> Option<Check> {
    // SAFETY: looks a symbol up by a terminated name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: CPython declares `int NAME(void)` for the names that are asked for here.
    Some(unsafe { std::mem::transmute::<*mut c_void, Check>(symbol) })
}

/// Who asks a finalizing interpreter for its lock is ended by it in the middle of this code's frames
/// (before Python 3.14), which aborts the process. Such a thread stays here instead, as from 3.14 on.
fn stay_if_finalizing() {
    static CHECK: OnceLock<Option<Check>> = OnceLock::new();
    let check =
        CHECK.get_or_init(|| find(c"Py_IsFinalizing").or_else(|| find(c"_Py_IsFinalizing")));
    // SAFETY: as in `is_held`.
    while !is_main_thread() && check.is_some_and(|check| unsafe { check() } != 0) {
        std::thread::park();
    }
}

pub fn is_main_thread() -> bool {
    // SAFETY: both calls only read the caller's ids.
    unsafe { libc::gettid() == libc::getpid() }
}

/// Which part of a training step this thread is in: the optimizer's step says so itself, threads
/// of the autograd engine are known by their name, everything else is forward.
#[inline]
pub fn stage() -> Stage {
    STAGE.get().unwrap_or_else(find_stage)
}

pub fn set_stage(stage: Stage) {
    if STAGE.replace(Some(stage)).is_none() {
        ending::note_user();
    }
}

#[cold]
fn find_stage() -> Stage {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, terminated.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let stage = if name.starts_with(b"pt_autograd") { Stage::Backward } else { Stage::Forward };
    STAGE.set(Some(stage));
    ending::note_user();
    stage
}
