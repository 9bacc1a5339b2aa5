//! Operators that ran on the client's CPU: counted always, told once each.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::python::gil;

/// One operator that fell back.
#[derive(Clone)]
pub struct Fallback {
    pub count: u64,
    pub reason: String,
    told: bool,
}

static FALLBACKS: Mutex<BTreeMap<String, Fallback>> = Mutex::new(BTreeMap::new());

fn table() -> MutexGuard<'static, BTreeMap<String, Fallback>> {
    FALLBACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a fallback. The warning is given at once where this thread runs Python and warnings are no
/// errors; otherwise the interpreter's main thread gives it between two of its instructions.
pub fn count(op: &str, reason: &str) {
    let mut table = table();
    if let Some(known) = table.get_mut(op) {
        known.count += 1;
        return;
    }
    table.insert(op.into(), Fallback { count: 1, reason: reason.into(), told: false });
    drop(table);
    if let Ok(true) = gil::with(|py| warn_of_new(py, true)) {
        return;
    }
    // SAFETY: may be called without the interpreter lock; the function lives for ever. When the
    // queue is full, the next new fallback tells this one too.
    unsafe { ffi::Py_AddPendingCall(Some(tell), std::ptr::null_mut()) };
}

pub fn all() -> BTreeMap<String, Fallback> {
    table().clone()
}

/// Warns of what nobody was warned of; `false` when only a line of Python in this thread would do, and
/// there is none.
fn warn_of_new(py: Python<'_>, only_here: bool) -> PyResult<bool> {
    let errors = py.import("genie.errors")?;
    loop {
        let untold = table()
            .iter()
            .find(|(_, fallback)| !fallback.told)
            .map(|(op, fallback)| (op.clone(), fallback.reason.clone()));
        let Some((op, reason)) = untold else { return Ok(true) };
        if !errors.call_method1("warn_of_fallback", (&op, reason, only_here))?.extract::<bool>()? {
            return Ok(false);
        }
        table().entry(op).and_modify(|fallback| fallback.told = true);
    }
}

extern "C" fn tell(_: *mut c_void) -> c_int {
    gil::with(|py| match warn_of_new(py, false) {
        Ok(_) => 0,
        // Warnings may have been turned into errors; then they are raised here, once.
        Err(error) => {
            for fallback in table().values_mut() {
                fallback.told = true;
            }
            error.restore(py);
            -1
        }
    })
}
