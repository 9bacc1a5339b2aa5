//! `GENIE_DEBUG=1`: each operator carries the program's source line, for errors that appear late.
//!
//! The line travels as a module of its own around the operator, which the node names in errors.
//! It costs some microseconds an operator and a symbol a line.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use genie_wire::ErrorCode;
use genie_wire::record::MarkKind;
use pyo3::prelude::*;

use crate::client::{ClientError, INTERRUPTED, Session};
use crate::python::gil;

static ON: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Modules entered by this thread, as their marks name them.
    static MODULES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The line that called the operator at hand.
    static LINE: RefCell<Option<String>> = const { RefCell::new(None) };
}

pub fn switch(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Follows the module marks of this thread.
pub fn note(kind: MarkKind, text: &str) {
    MODULES.with_borrow_mut(|modules| match kind {
        MarkKind::ModuleEnter => modules.push(text.into()),
        MarkKind::ModuleExit => {
            if let Some(depth) = modules.iter().rposition(|entered| entered == text) {
                modules.truncate(depth);
            }
        }
        _ => {}
    });
}

/// Looks at the program's stack. Called before the shim takes its locks, because it needs the
/// interpreter.
#[cold]
pub fn look() {
    LINE.set(gil::with(line_of_program));
}

/// Appends records with the program's line around them, where there is one.
#[cold]
pub fn with_line<T>(session: &Session, append: impl FnOnce() -> T) -> T {
    let Some(line) = LINE.take() else {
        return append();
    };
    let module = MODULES.with_borrow(|modules| modules.last().cloned()).unwrap_or_default();
    let (path, class) = module.split_once('\0').unwrap_or(("", ""));
    let path = if class.is_empty() { "(none)" } else { path };
    let text = format!("{path}, called by {line}\0{class}");
    session.mark(MarkKind::ModuleEnter, &text);
    let result = append();
    session.mark(MarkKind::ModuleExit, &text);
    result
}

fn line_of_program(py: Python<'_>) -> Option<String> {
    let line = py.import("genie.marks").ok()?.call_method0("line_of_program").ok()?;
    line.extract().ok()
}

/// Says how to find the line of an operator that failed before the read that raises.
pub fn explain(mut error: ClientError) -> ClientError {
    const NOT_OF_AN_OPERATOR: [u8; 4] = [
        ErrorCode::NodeLost as u8,
        ErrorCode::Protocol as u8,
        ErrorCode::WeightMissing as u8,
        INTERRUPTED,
    ];
    if !is_on() && !NOT_OF_AN_OPERATOR.contains(&error.code) {
        error.message.push_str(
            " (the operator ran before the line that raises this; run the program with \
             GENIE_DEBUG=1 to see the line that called it)",
        );
    }
    error
}
