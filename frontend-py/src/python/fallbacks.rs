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

/// Counts a fallback. Called anywhere, so the warning is left to the interpreter's main thread,
/// which gives it between two of its instructions.
pub fn count(op: &str, reason: &str) {
    let mut table = table();
    if let Some(known) = table.get_mut(op) {
        known.count += 1;
        return;
    }
    table.insert(op.into(), Fallback { count: 1, reason: reason.into(), told: false });
    drop(table);
    // SAFETY: may be called without the interpreter lock; the function lives for ever. When the
    // queue is full, the next new fallback tells this one too.
    unsafe { ffi::Py_AddPendingCall(Some(tell), std::ptr::null_mut()) };
}

pub fn all() -> BTreeMap<String, Fallback> {
    table().clone()
}

extern "C" fn tell(_: *mut c_void) -> c_int {
    let mut new = Vec::new();
    for (op, fallback) in &mut *table() {
        if !std::mem::replace(&mut fallback.told, true) {
            new.push((op.clone(), fallback.reason.clone()));
        }
    }
    gil::with(|py| {
        let told = py.import("genie.errors").and_then(|errors| {
            new.into_iter()
                .try_for_each(|each| errors.call_method1("warn_of_fallback", each).map(drop))
        });
        match told {
            Ok(()) => 0,
            // Warnings may have been turned into errors; then they are raised here.
            Err(error) => {
                error.restore(py);
                -1
            }
        }
    })
}
