//! The table of functions that the shim calls.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

use genie_aten::GenieError;
use genie_aten::capture::{self, KeepScriptFn, Memory, NotedScript, ReplyFn, Tape};
use genie_wire::ErrorCode;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::client::{ClientError, Content, INTERRUPTED, Settings};
use crate::python::ending::{self, PROGRAM_ENDS};
use crate::python::state::Held;
use crate::python::{debug, fallbacks, gil, state};

/// Filled once, lives for ever.
pub static TAPE: Tape = Tape {
    ensure,
    device_count,
    device_kind,
    node_has_op,
    session,
    carries_settings,
    define,
    forget_templates,
    op,
    run,
    alloc,
    free,
    note_new,
    resize,
    upload,
    read,
    synchronize,
    fence,
    fence_reached,
    wait_fence,
    drop_fence,
    is_idle,
    is_live,
    memory,
    device_memory,
    reset_peak_memory,
    reset_accumulated_memory,
    flush,
    seed,
    generator_state,
    set_generator_state,
    fell_back,
    error_type,
    must_propagate,
    script_begin,
    script_end,
    script_abandon,
    script_drop,
    script_run,
};

/// Storage ids handed out when there is no session any more: no session ever knows them, and the
/// next read says what happened.
const NO_STORAGE: u64 = u64::MAX >> 1;

/// Reports an outcome the way C++ wants it.
///
/// # Safety
/// `error` must point to a `GenieError` that C++ owns.
unsafe fn outcome(result: Result<(), ClientError>, error: *mut GenieError) -> i32 {
    let Err(mut failure) = result else { return 0 };
    if failure.is_interrupt() {
        failure.message = gil::raised_text().unwrap_or_default();
    }
    // SAFETY: the caller vouches for `error`.
    unsafe { (*error).set(failure.code, &failure.message) };
    i32::from(failure.code)
}

/// A slice from C++, which may pass null for an empty one.
///
/// # Safety
/// `pointer` must be valid for `len` elements during the call, or `len` must be 0.
unsafe fn slice<'a, T>(pointer: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for the range.
    unsafe { std::slice::from_raw_parts(pointer, len) }
}

unsafe extern "C" fn ensure(error: *mut GenieError) -> i32 {
    if debug::is_on() {
        debug::look();
    }
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(state::ensure().map(drop), error) }
}

/// One device a session, as long as the host plans for one.
extern "C" fn device_count() -> u32 {
    1
}

extern "C" fn device_kind() -> u8 {
    let is_cuda = |session: Held| {
        session.welcome().devices.first().is_some_and(|device| device.kind == "cuda")
    };
    state::current().is_some_and(is_cuda).into()
}

extern "C" fn node_has_op(schema_hash: u64) -> u8 {
    state::current().is_some_and(|session| session.node_has_op(schema_hash)).into()
}

extern "C" fn session() -> u64 {
    state::number()
}

extern "C" fn carries_settings() -> u8 {
    state::current().is_some_and(|session| session.carries_settings()).into()
}

/// What C++ captured an operator under.
///
/// # Safety
/// `settings` must be valid during the call.
unsafe fn settings<'a>(settings: *const capture::Settings) -> Settings<'a> {
    // SAFETY: the caller vouches for it and for the bytes it names.
    unsafe {
        let capture::Settings { hash, threads, bytes, len } = *settings;
        Settings { hash, threads, bytes: slice(bytes, len) }
    }
}

unsafe extern "C" fn define(bytes: *const u8, len: usize) -> u32 {
    // SAFETY: C++ passes a valid range.
    let encoded = unsafe { slice(bytes, len) };
    state::current().map_or(u32::MAX, |session| session.define(encoded))
}

extern "C" fn forget_templates() {
    if let Some(session) = state::current() {
        session.forget_templates();
    }
}

unsafe extern "C" fn op(
    under: *const capture::Settings,
    template: u32,
    inputs: *const u64,
    n_inputs: usize,
    scalars: *const u64,
    n_scalars: usize,
    n_new: u32,
) -> u64 {
    // SAFETY: C++ passes valid ranges.
    let (inputs, scalars) = unsafe { (slice(inputs, n_inputs), slice(scalars, n_scalars)) };
    // SAFETY: as above.
    let under = unsafe { settings(under) };
    match state::current() {
        Some(session) => {
            let append =
                || session.op(gil::stage(), under, template, inputs, scalars, n_new.into());
            if debug::is_on() { debug::with_line(&session, append) } else { append() }
        }
        None => NO_STORAGE,
    }
}

unsafe extern "C" fn run(
    under: *const capture::Settings,
    encoded: *const u8,
    len: usize,
    inputs: *const u64,
    n_inputs: usize,
    scalars: *const u64,
    n_scalars: usize,
    reserve: u64,
    first_new: *mut u64,
    reply: ReplyFn,
    context: *mut c_void,
    error: *mut GenieError,
) -> i32 {
    // SAFETY: C++ passes valid ranges.
    let (encoded, inputs, scalars) =
        unsafe { (slice(encoded, len), slice(inputs, n_inputs), slice(scalars, n_scalars)) };
    // SAFETY: as above.
    let under = unsafe { settings(under) };
    let result = state::ensure().and_then(|session| {
        session.run(gil::stage(), under, encoded, inputs, scalars, reserve, |first, body| {
            // SAFETY: `first_new` is an out pointer of C++; `reply` takes the body and the
            // context that C++ passed with it.
            unsafe {
                *first_new = first;
                reply(context, body.as_ptr(), body.len());
            }
        })
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

extern "C" fn alloc(bytes: u64) -> u64 {
    state::current().map_or(NO_STORAGE, |session| session.alloc(bytes))
}

extern "C" fn free(id: u64, bytes: u64, session: u64) {
    if session == state::number()
        && let Some(current) = state::current()
    {
        current.free(id, bytes);
    }
}

extern "C" fn note_new(id: u64, bytes: u64) {
    if let Some(session) = state::current() {
        session.note_new(id, bytes);
    }
}

extern "C" fn resize(id: u64, old_bytes: u64, new_bytes: u64) {
    if let Some(session) = state::current() {
        session.resize(id, old_bytes, new_bytes);
    }
}

unsafe extern "C" fn upload(
    id: u64,
    offset: u64,
    from: *const c_void,
    len: u64,
    content: u8,
    error: *mut GenieError,
) -> i32 {
    // SAFETY: C++ passes a valid range, which the caller's tensor keeps alive.
    let from = unsafe { slice(from.cast::<u8>(), len as usize) };
    let content = match content {
        0 => Content::Part,
        1 => Content::Whole,
        _ => Content::Weight,
    };
    let result = state::ensure().and_then(|session| session.upload(id, offset, from, content));
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

unsafe extern "C" fn read(
    id: u64,
    offset: u64,
    to: *mut c_void,
    len: u64,
    error: *mut GenieError,
) -> i32 {
    let result = state::ensure().and_then(|session| {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: C++ passes a writable range that nothing else uses during the call.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), len as usize) };
        session.read(id, offset, to).map_err(debug::explain)
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

unsafe extern "C" fn synchronize(error: *mut GenieError) -> i32 {
    let result = match state::current() {
        Some(session) => session.synchronize(),
        None => Ok(()),
    };
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

unsafe extern "C" fn fence(
    start: u8,
    token: *mut u64,
    number: *mut u64,
    error: *mut GenieError,
) -> i32 {
    let put = || {
        let live = state::current().filter(|session| session.is_live());
        let session = match live {
            None if start == 0 => return Ok((0, 0)),
            None => state::ensure()?,
            Some(session) => session,
        };
        Ok((session.fence()?, state::number()))
    };
    let result = put().map(|put| {
        // SAFETY: both are out pointers of C++.
        unsafe { (*token, *number) = put };
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

/// The session with this number, while it is the current one.
fn numbered(number: u64) -> Option<Held> {
    state::current().filter(|_| number == state::number())
}

extern "C" fn fence_reached(token: u64, session: u64) -> u8 {
    numbered(session).is_none_or(|session| session.is_reached(token)).into()
}

unsafe extern "C" fn wait_fence(
    token: u64,
    session: u64,
    at_ns: *mut u64,
    error: *mut GenieError,
) -> i32 {
    let waited = numbered(session).map_or(Ok(None), |session| session.wait_fence(token));
    let result = waited.map(|at| {
        // SAFETY: an out pointer of C++.
        unsafe { *at_ns = at.unwrap_or(0) };
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

extern "C" fn drop_fence(token: u64, session: u64) {
    if let Some(session) = numbered(session) {
        session.drop_fence(token);
    }
}

extern "C" fn is_idle() -> u8 {
    state::current().is_none_or(|session| session.is_idle()).into()
}

extern "C" fn is_live() -> u8 {
    state::current().is_some_and(|session| session.is_live()).into()
}

unsafe extern "C" fn memory(out: *mut Memory) {
    let seen = state::current().map(|session| session.memory()).unwrap_or_default();
    let memory = Memory {
        live_bytes: seen.live_bytes,
        peak_bytes: seen.peak_bytes,
        allocated_bytes: seen.allocated_bytes,
        freed_bytes: seen.freed_bytes,
        live_storages: seen.live_storages,
        peak_storages: seen.peak_storages,
        allocated_storages: seen.allocations,
        freed_storages: seen.frees,
    };
    // SAFETY: an out pointer of C++.
    unsafe { *out = memory };
}

unsafe extern "C" fn device_memory(total: *mut u64, error: *mut GenieError) -> i32 {
    let result = state::ensure().map(|session| {
        let bytes = session.welcome().devices.first().map_or(0, |device| device.memory_bytes);
        // SAFETY: an out pointer of C++.
        unsafe { *total = bytes };
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

extern "C" fn reset_peak_memory() {
    if let Some(session) = state::current() {
        session.reset_peak_memory();
    }
}

extern "C" fn reset_accumulated_memory() {
    if let Some(session) = state::current() {
        session.reset_accumulated_memory();
    }
}

extern "C" fn flush() {
    if let Some(session) = state::current() {
        session.flush();
    }
}

extern "C" fn seed(seed: u64) {
    state::seed(seed);
}

unsafe extern "C" fn generator_state(out: *mut u8, len: *mut usize, error: *mut GenieError) -> i32 {
    let result = state::ensure().and_then(|session| session.generator_state()).and_then(|state| {
        // SAFETY: `len` holds the capacity of `out`, both of C++.
        unsafe {
            if state.len() > *len {
                let text = format!("a generator state of {} bytes does not fit", state.len());
                return Err(ClientError::new(ErrorCode::Runtime, text));
            }
            std::ptr::copy_nonoverlapping(state.as_ptr(), out, state.len());
            *len = state.len();
        }
        Ok(())
    });
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

unsafe extern "C" fn set_generator_state(
    state: *const u8,
    len: usize,
    error: *mut GenieError,
) -> i32 {
    // SAFETY: C++ passes a valid range.
    let state = unsafe { slice(state, len) };
    let result = state::ensure().and_then(|session| session.set_generator_state(state));
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

unsafe extern "C" fn fell_back(op: *const c_char, reason: *const c_char) {
    // SAFETY: C++ passes terminated strings.
    let (op, reason) = unsafe { (CStr::from_ptr(op), CStr::from_ptr(reason)) };
    fallbacks::count(&op.to_string_lossy(), &reason.to_string_lossy());
}

unsafe extern "C" fn script_begin(
    under: *const capture::Settings,
    externals: *const u64,
    n_externals: usize,
) -> u8 {
    // SAFETY: C++ passes a valid range and valid settings.
    let (under, externals) = unsafe { (settings(under), slice(externals, n_externals)) };
    state::current()
        .is_some_and(|session| session.begin_script(gil::stage(), under, externals))
        .into()
}

unsafe extern "C" fn script_end(
    outputs: *const u64,
    n_outputs: usize,
    keep: KeepScriptFn,
    context: *mut c_void,
    error: *mut GenieError,
) -> i32 {
    // SAFETY: C++ passes a valid range.
    let outputs = unsafe { slice(outputs, n_outputs) };
    let noted = match state::current() {
        Some(session) => session.end_script(outputs),
        None => Err("the session is over"),
    };
    let result = noted.map(|script| {
        let made: Vec<i64> =
            script.outputs.iter().map(|made| made.map_or(-1, |made| made as i64)).collect();
        let description = NotedScript {
            handle: script.handle,
            bytes: script.bytes,
            constants: script.constants.as_ptr(),
            n_constants: script.constants.len(),
            outputs: made.as_ptr(),
            frees: script.frees.as_ptr(),
            n_frees: script.frees.len(),
        };
        // SAFETY: `keep` copies what it is shown and takes the context that came with it.
        unsafe { keep(context, &description) };
    });
    let result = result.map_err(|why| ClientError::new(ErrorCode::Runtime, why));
    // SAFETY: C++ passes a valid error.
    unsafe { outcome(result, error) }
}

extern "C" fn script_abandon() {
    if let Some(session) = state::current() {
        session.abandon_script();
    }
}

extern "C" fn script_drop(handle: u64) {
    if let Some(session) = state::current() {
        session.drop_script(handle);
    }
}

unsafe extern "C" fn script_run(
    under: *const capture::Settings,
    handle: u64,
    externals: *const u64,
    n_externals: usize,
    frees: *const bool,
    n_frees: usize,
) -> u64 {
    // SAFETY: C++ passes valid ranges.
    let (externals, frees) = unsafe { (slice(externals, n_externals), slice(frees, n_frees)) };
    // SAFETY: as above.
    let under = unsafe { settings(under) };
    state::current()
        .and_then(|session| session.run_script(gil::stage(), under, handle, externals, frees))
        .unwrap_or(NO_STORAGE)
}

/// Python classes by error code. Each is kept for the life of the process.
static ERROR_TYPES: Mutex<[usize; 256]> = Mutex::new([0; 256]);

/// Names the class of an error code.
pub fn set_error_type(code: u8, class: Py<PyAny>) {
    if let Ok(mut types) = ERROR_TYPES.lock() {
        types[usize::from(code)] = class.into_ptr() as usize;
    }
}

unsafe extern "C" fn must_propagate(python_class: *mut c_void) -> u8 {
    if python_class.is_null() {
        return 0;
    }
    gil::with(|py| {
        // SAFETY: C++ passes the class of an exception that it holds.
        let class = unsafe { Bound::from_borrowed_ptr(py, python_class.cast()) };
        let ordinary = class
            .cast::<PyType>()
            .is_ok_and(|class| class.is_subclass_of::<PyException>().unwrap_or(true));
        u8::from(!ordinary)
    })
}

extern "C" fn error_type(code: u8) -> *mut c_void {
    if code == INTERRUPTED {
        let Some(raised) = gil::take_raised() else {
            return std::ptr::null_mut();
        };
        // Exception classes are as good as immortal; one reference a signal is kept for C++.
        return gil::with(|py| raised.get_type(py).into_ptr()).cast();
    }
    let code = if ending::ends_this_thread() { PROGRAM_ENDS } else { code };
    let types = ERROR_TYPES.lock();
    types.map_or(0, |types| types[usize::from(code)]) as *mut c_void
}
