//! `genie._native`: what the Python package calls.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use genie_aten::capture;
use genie_wire::ErrorCode;
use genie_wire::control::{Counter, TraceQuestion, Word};
use genie_wire::record::MarkKind;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::client::{self, ClientError, Options, Session, Stage};
use crate::python::local::LocalLink;
use crate::python::{debug, ending, fallbacks, gil, state, tape};

/// How long the host may take to tell its counters.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the host may take to explain what ran.
const TRACE_TIMEOUT: Duration = Duration::from_secs(120);

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        autocast, begin_ending, begin_weights, capture_stats, connect, connect_local, counters,
        drop_fence, end_weights, fallbacks_by_op, fence, fence_reached, flush, generator_state,
        is_forked, is_idle, is_live, last_seed, lost, mark, memory, metas_imported, protocol,
        register, reset_accumulated_memory, reset_peak_memory, seed, session_number, set_autocast,
        set_error_type, set_generator_state, set_stage, shut_down, status, synchronize, trace,
        users, wait_fence, welcome,
    };
}

/// Registers the device with PyTorch, once, after `import torch`.
#[pyfunction]
#[pyo3(signature = (*, log_intercepts, meta_infer, aten_impl, debug_lines))]
fn register(
    log_intercepts: bool,
    meta_infer: bool,
    aten_impl: bool,
    debug_lines: bool,
) -> PyResult<()> {
    debug::switch(debug_lines);
    capture::configure(log_intercepts, meta_infer, aten_impl);
    capture::init(&tape::TAPE).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// `torch._dynamo` is imported: PyTorch's shape functions in Python cost little from now on.
#[pyfunction]
fn metas_imported() {
    capture::metas_imported();
}

/// The class that errors with this code become.
#[pyfunction]
#[pyo3(signature = (code, class_))]
fn set_error_type(code: u8, class_: Py<PyAny>) {
    tape::set_error_type(code, class_);
}

/// Joins the host at `path` and makes the session the current one.
#[pyfunction]
#[pyo3(signature = (path, *, torch, threads, device, upload_bytes, download_bytes, timeout_s))]
fn connect(
    py: Python<'_>,
    path: PathBuf,
    torch: String,
    threads: u32,
    device: u32,
    upload_bytes: u64,
    download_bytes: u64,
    timeout_s: f64,
) -> PyResult<()> {
    let options = Options {
        torch,
        threads,
        device,
        upload_bytes,
        download_bytes,
        welcome_timeout: Duration::from_secs_f64(timeout_s.clamp(0.1, 3600.0)),
    };
    let session =
        py.detach(|| Session::connect(&path, &options, &gil::HOOKS)).map_err(state::raise)?;
    // Not in mode `local`: there, sending is executing, which is the program's thread's to do.
    begin(session)?.send_what_lingers()?;
    Ok(())
}

/// Makes a session on the CPU of this process the current one.
#[pyfunction]
#[pyo3(signature = (*, torch, threads, budget_bytes, upload_bytes, download_bytes))]
fn connect_local(
    py: Python<'_>,
    torch: String,
    threads: u32,
    budget_bytes: u64,
    upload_bytes: u64,
    download_bytes: u64,
) -> PyResult<()> {
    let options = Options {
        torch: torch.clone(),
        threads,
        upload_bytes,
        download_bytes,
        ..Options::default()
    };
    let session = py
        .detach(|| {
            let link = LocalLink::new(torch, budget_bytes)
                .map_err(|why| ClientError::new(ErrorCode::Runtime, why))?;
            Session::open(Box::new(link), "this process".into(), &options, &gil::HOOKS)
        })
        .map_err(state::raise)?;
    begin(session)?;
    Ok(())
}

fn begin(session: Session) -> PyResult<Arc<Session>> {
    if state::current().is_some_and(|session| session.is_live()) {
        return Err(PyRuntimeError::new_err("a session is running; genie.shutdown() ends it"));
    }
    state::shut_down();
    capture::register().map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let session = state::install(session);
    // The shim's templates belong to the session before.
    capture::new_session();
    Ok(session)
}

/// The interpreter is ending: no session starts any more, and threads end quietly.
#[pyfunction]
fn begin_ending() {
    ending::begin();
}

/// Threads other than the main one that used the device: the kernel's number, and whether an error
/// of [`begin_ending`] has ended it.
#[pyfunction]
fn users() -> Vec<(u64, bool)> {
    ending::users()
}

/// Ends the session; the next use of the device starts another.
#[pyfunction]
fn shut_down(py: Python<'_>) {
    py.detach(state::shut_down);
}

#[pyfunction]
fn is_live() -> bool {
    state::current().is_some_and(|session| session.is_live())
}

#[pyfunction]
fn is_forked() -> bool {
    state::is_forked()
}

#[pyfunction]
fn session_number() -> u64 {
    state::number()
}

/// Why the current session is over: `(code, message)`, or None.
#[pyfunction]
fn lost() -> Option<(u8, String)> {
    state::current().and_then(|session| session.end()).map(|end| (end.code, end.message))
}

#[pyfunction]
fn protocol() -> u32 {
    genie_wire::PROTOCOL_VERSION
}

/// What the host said at the session's start, or None.
#[pyfunction]
fn welcome(py: Python<'_>) -> PyResult<Option<Bound<'_, PyDict>>> {
    let Some(session) = state::current() else {
        return Ok(None);
    };
    let welcome = session.welcome();
    let dict = PyDict::new(py);
    dict.set_item("software", &welcome.software)?;
    dict.set_item("torch", &welcome.torch)?;
    dict.set_item("session", welcome.session)?;
    dict.set_item("host_pid", welcome.pid)?;
    dict.set_item("node_pid", welcome.node_pid)?;
    dict.set_item("mode", &welcome.mode)?;
    dict.set_item("route", &welcome.route)?;
    dict.set_item("ops", session.op_count())?;
    let devices: Vec<_> = welcome
        .devices
        .iter()
        .map(|device| (&*device.kind, &*device.name, device.memory_bytes))
        .collect();
    dict.set_item("devices", devices)?;
    Ok(Some(dict))
}

/// The session's counters.
#[pyfunction]
fn counters(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    let Some(session) = state::current() else {
        return Ok(dict);
    };
    let counters = session.counters();
    for (name, value) in [
        ("ops", counters.ops),
        ("runs", counters.runs),
        ("marks", counters.marks),
        ("records", counters.records),
        ("scripts", counters.scripts),
        ("script_runs", counters.script_runs),
        ("frames", counters.frames),
        ("tape_bytes", counters.tape_bytes),
        ("payload_bytes_up", counters.payload_bytes_up),
        ("payload_bytes_down", counters.payload_bytes_down),
        ("weight_bytes_saved", counters.weight_bytes_saved),
        ("weights_bound", counters.weights_bound),
        ("weight_queries", counters.weight_queries),
        ("round_trips", counters.round_trips),
        ("stalls", counters.stalls),
    ] {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

/// The shim's counters, since the process began.
#[pyfunction]
fn capture_stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let stats = capture::stats();
    let dict = PyDict::new(py);
    dict.set_item("ops", stats.ops)?;
    dict.set_item("template_hits", stats.template_hits)?;
    dict.set_item("template_misses", stats.template_misses)?;
    dict.set_item("runs", stats.runs)?;
    dict.set_item("fallbacks", stats.fallbacks)?;
    dict.set_item("capture_ns", stats.capture_ns)?;
    Ok(dict)
}

/// Operators that ran on the client's CPU: name -> (count, reason).
#[pyfunction]
fn fallbacks_by_op(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (op, fallback) in fallbacks::all() {
        dict.set_item(op, (fallback.count, fallback.reason))?;
    }
    Ok(dict)
}

/// Counters of the host and the node, by dotted name.
#[pyfunction]
fn status(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    if let Some(session) = state::current() {
        let status = py.detach(|| session.status(STATUS_TIMEOUT)).map_err(state::raise)?;
        for Counter { name, value } in status.counters {
            dict.set_item(name, value)?;
        }
        for Word { name, value } in status.words {
            dict.set_item(name, value)?;
        }
    }
    Ok(dict)
}

/// Asks the host about what the session ran: 0 forget it, 1 explain it, 2 its graph (both JSON).
/// Empty without a session.
#[pyfunction]
fn trace<'py>(py: Python<'py>, question: u8) -> PyResult<Bound<'py, PyBytes>> {
    let question = TraceQuestion::try_from(i32::from(question))
        .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let Some(session) = state::current() else {
        return Ok(PyBytes::new(py, b""));
    };
    let answer = py.detach(|| session.trace(question, TRACE_TIMEOUT)).map_err(state::raise)?;
    Ok(PyBytes::new(py, &answer))
}

/// Waits until the device has done everything asked of it. Nothing to do without a session.
#[pyfunction]
fn synchronize(py: Python<'_>) -> PyResult<()> {
    let Some(session) = state::current() else {
        return Ok(());
    };
    py.detach(|| session.synchronize()).map_err(state::raise)
}

/// Sends what is pending, without waiting.
#[pyfunction]
fn flush(py: Python<'_>) {
    if let Some(session) = state::current() {
        py.detach(|| session.flush());
    }
}

/// Puts a fence behind everything so far; returns its token.
#[pyfunction]
fn fence(py: Python<'_>) -> PyResult<u64> {
    py.detach(|| state::ensure()?.fence()).map_err(state::raise)
}

#[pyfunction]
fn fence_reached(token: u64) -> bool {
    state::current().is_none_or(|session| session.is_reached(token))
}

#[pyfunction]
fn wait_fence(py: Python<'_>, token: u64) -> PyResult<Option<u64>> {
    let Some(session) = state::current() else {
        return Ok(None);
    };
    py.detach(|| session.wait_fence(token)).map_err(state::raise)
}

#[pyfunction]
fn drop_fence(token: u64) {
    if let Some(session) = state::current() {
        session.drop_fence(token);
    }
}

/// Whether the device has done everything asked of it. Nothing to ask without a session.
#[pyfunction]
fn is_idle() -> bool {
    state::current().is_none_or(|session| session.is_idle())
}

/// Mixed precision in this thread: whether it is on, and the number of its dtype.
#[pyfunction]
fn autocast() -> (bool, u8) {
    capture::autocast()
}

#[pyfunction]
#[pyo3(signature = (enabled, dtype))]
fn set_autocast(enabled: bool, dtype: u8) {
    capture::set_autocast(enabled, dtype);
}

/// Seeds the device's generator, now or at the session's start.
#[pyfunction]
fn seed(value: u64) {
    state::seed(value);
}

#[pyfunction]
fn last_seed() -> Option<u64> {
    state::last_seed()
}

#[pyfunction]
fn generator_state(py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
    let state = py
        .detach(|| state::ensure().and_then(|session| session.generator_state()))
        .map_err(state::raise)?;
    Ok(PyBytes::new(py, &state))
}

#[pyfunction]
fn set_generator_state(py: Python<'_>, generator_state: &[u8]) -> PyResult<()> {
    py.detach(|| state::ensure().and_then(|session| session.set_generator_state(generator_state)))
        .map_err(state::raise)
}

/// Bytes of storages that the program holds.
#[pyfunction]
fn memory(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let seen = state::current().map(|session| session.memory()).unwrap_or_default();
    let dict = PyDict::new(py);
    dict.set_item("live_bytes", seen.live_bytes)?;
    dict.set_item("live_storages", seen.live_storages)?;
    dict.set_item("peak_bytes", seen.peak_bytes)?;
    dict.set_item("peak_storages", seen.peak_storages)?;
    dict.set_item("allocations", seen.allocations)?;
    dict.set_item("allocated_bytes", seen.allocated_bytes)?;
    dict.set_item("frees", seen.frees)?;
    dict.set_item("freed_bytes", seen.freed_bytes)?;
    Ok(dict)
}

#[pyfunction]
fn reset_peak_memory() {
    if let Some(session) = state::current() {
        session.reset_peak_memory();
    }
}

#[pyfunction]
fn reset_accumulated_memory() {
    if let Some(session) = state::current() {
        session.reset_accumulated_memory();
    }
}

/// Marks the tape: kinds as in `genie.marks`. Nothing without a session.
#[pyfunction]
fn mark(kind: u8, text: &str) -> PyResult<()> {
    let kind = match kind {
        0 => MarkKind::ModuleEnter,
        1 => MarkKind::ModuleExit,
        2 => MarkKind::PhaseEnter,
        3 => MarkKind::PhaseExit,
        _ => {
            let text = format!("there is no mark of kind {kind}");
            return Err(state::raise(ClientError::new(ErrorCode::Value, text)));
        }
    };
    if let Some(session) = state::current() {
        if debug::is_on() {
            debug::note(kind, text);
        }
        session.mark(kind, text);
    }
    Ok(())
}

/// This thread is about to move these bytes to the device as weights: `(address, length)` of each,
/// in order. They stay as they are until [`end_weights`].
#[pyfunction]
fn begin_weights(places: Vec<(usize, usize)>) {
    // SAFETY: genie/_weights.py keeps each tensor's storage until it was uploaded.
    unsafe { client::begin_weights(places) };
}

#[pyfunction]
fn end_weights(py: Python<'_>) {
    py.detach(|| client::end_weights(state::current().as_deref()));
}

/// Whether this thread is inside an optimizer's step from here on.
#[pyfunction]
fn set_stage(optimizer: bool) {
    gil::set_stage(if optimizer { Stage::Optimizer } else { Stage::Forward });
}
