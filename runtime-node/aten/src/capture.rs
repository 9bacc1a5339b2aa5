//! Capturing PyTorch operators (the front end's half of the shim).
//!
//! The front end fills a [`Tape`] with functions and calls [`init`] once; from then on every
//! operator on `remote_accelerator` arrives through it. `cpp/capture.h` documents each field.

use std::ffi::{c_char, c_void};

use crate::{AtenError, GenieError};

pub type ReplyFn = unsafe extern "C" fn(context: *mut c_void, bytes: *const u8, len: usize);

/// What the program holds on the device, as `GenieMemory` of `cpp/capture.h` lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub live_bytes: u64,
    pub peak_bytes: u64,
    pub allocated_bytes: u64,
    pub freed_bytes: u64,
    pub live_storages: u64,
    pub peak_storages: u64,
    pub allocated_storages: u64,
    pub freed_storages: u64,
}

/// Settings that an operator is captured under, as `GenieSettings` of `cpp/capture.h` lays them out.
#[repr(C)]
pub struct Settings {
    /// Of `bytes`; 0 for none.
    pub hash: u64,
    /// CPU threads one operator uses.
    pub threads: u32,
    /// Those that are not PyTorch's own, encoded.
    pub bytes: *const u8,
    pub len: usize,
}

/// A script that was noted, as `GenieNotedScript` of `cpp/capture.h` lays it out.
#[repr(C)]
pub struct NotedScript {
    pub handle: u64,
    pub bytes: u64,
    pub constants: *const u64,
    pub n_constants: usize,
    pub outputs: *const i64,
    pub frees: *const u32,
    pub n_frees: usize,
}

pub type KeepScriptFn = unsafe extern "C" fn(context: *mut c_void, script: *const NotedScript);

/// The tape's functions, as `GenieTape` of `cpp/capture.h` lays them out.
#[repr(C)]
pub struct Tape {
    pub ensure: unsafe extern "C" fn(error: *mut GenieError) -> i32,
    pub device_count: unsafe extern "C" fn() -> u32,
    pub device_kind: unsafe extern "C" fn() -> u8,
    pub node_has_op: unsafe extern "C" fn(schema_hash: u64) -> u8,
    pub session: unsafe extern "C" fn() -> u64,
    pub carries_settings: unsafe extern "C" fn() -> u8,
    pub define: unsafe extern "C" fn(bytes: *const u8, len: usize) -> u32,
    pub forget_templates: extern "C" fn(),
    pub op: unsafe extern "C" fn(
        settings: *const Settings,
        template: u32,
        inputs: *const u64,
        n_inputs: usize,
        scalars: *const u64,
        n_scalars: usize,
        n_new: u32,
    ) -> u64,
    pub run: unsafe extern "C" fn(
        settings: *const Settings,
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
    ) -> i32,
    pub alloc: unsafe extern "C" fn(bytes: u64) -> u64,
    pub free: unsafe extern "C" fn(id: u64, bytes: u64, session: u64),
    pub note_new: unsafe extern "C" fn(id: u64, bytes: u64),
    pub resize: unsafe extern "C" fn(id: u64, old_bytes: u64, new_bytes: u64),
    pub upload: unsafe extern "C" fn(
        id: u64,
        offset: u64,
        from: *const c_void,
        len: u64,
        content: u8,
        error: *mut GenieError,
    ) -> i32,
    pub read: unsafe extern "C" fn(
        id: u64,
        offset: u64,
        to: *mut c_void,
        len: u64,
        error: *mut GenieError,
    ) -> i32,
    pub synchronize: unsafe extern "C" fn(error: *mut GenieError) -> i32,
    pub fence: unsafe extern "C" fn(
        start: u8,
        token: *mut u64,
        session: *mut u64,
        error: *mut GenieError,
    ) -> i32,
    pub fence_reached: extern "C" fn(token: u64, session: u64) -> u8,
    pub wait_fence: unsafe extern "C" fn(
        token: u64,
        session: u64,
        at_ns: *mut u64,
        error: *mut GenieError,
    ) -> i32,
    pub drop_fence: extern "C" fn(token: u64, session: u64),
    pub is_idle: extern "C" fn() -> u8,
    pub is_live: extern "C" fn() -> u8,
    pub memory: unsafe extern "C" fn(out: *mut Memory),
    pub device_memory: unsafe extern "C" fn(total: *mut u64, error: *mut GenieError) -> i32,
    pub reset_peak_memory: extern "C" fn(),
    pub reset_accumulated_memory: extern "C" fn(),
    pub flush: extern "C" fn(),
    pub seed: unsafe extern "C" fn(seed: u64),
    pub generator_state:
        unsafe extern "C" fn(out: *mut u8, len: *mut usize, error: *mut GenieError) -> i32,
    pub set_generator_state:
        unsafe extern "C" fn(state: *const u8, len: usize, error: *mut GenieError) -> i32,
    pub fell_back: unsafe extern "C" fn(op: *const c_char, reason: *const c_char),
    pub error_type: unsafe extern "C" fn(code: u8) -> *mut c_void,
    pub must_propagate: unsafe extern "C" fn(python_class: *mut c_void) -> u8,
    pub script_begin: unsafe extern "C" fn(
        settings: *const Settings,
        externals: *const u64,
        n_externals: usize,
    ) -> u8,
    pub script_end: unsafe extern "C" fn(
        outputs: *const u64,
        n_outputs: usize,
        keep: KeepScriptFn,
        context: *mut c_void,
        error: *mut GenieError,
    ) -> i32,
    pub script_abandon: extern "C" fn(),
    pub script_drop: extern "C" fn(handle: u64),
    pub script_run: unsafe extern "C" fn(
        settings: *const Settings,
        handle: u64,
        externals: *const u64,
        n_externals: usize,
        frees: *const bool,
        n_frees: usize,
    ) -> u64,
}

/// Counters of the capture, since the process began.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    pub ops: u64,
    pub template_hits: u64,
    pub template_misses: u64,
    pub runs: u64,
    pub fallbacks: u64,
    /// Nanoseconds inside boxed kernels, waits excluded.
    pub capture_ns: u64,
}

/// Registers the device with PyTorch. Call once, after `import torch`.
pub fn init(tape: &'static Tape) -> Result<(), AtenError> {
    // SAFETY: the table lives for ever and `check` passes a valid error.
    AtenError::check(|error| unsafe { genie_capture_init(tape, error) })
}

/// Registers the device's operators, once. Call it before a session begins.
pub fn register() -> Result<(), AtenError> {
    // SAFETY: `check` passes a valid error.
    AtenError::check(|error| unsafe { genie_capture_register(error) })
}

pub fn stats() -> Stats {
    let mut stats = Stats::default();
    // SAFETY: `stats` has the layout of GenieCaptureStats.
    unsafe { genie_capture_stats(&mut stats) };
    stats
}

/// Forgets every template, for a session that starts anew.
pub fn new_session() {
    // SAFETY: takes nothing; C++ locks its own state.
    unsafe { genie_capture_new_session() }
}

/// Switches that the environment sets (see `docs/`).
pub fn configure(log_intercepts: bool, meta_infer: bool, aten_impl: bool) {
    // SAFETY: plain values.
    unsafe {
        genie_capture_log_intercepts(log_intercepts.into());
        genie_capture_meta_infer(meta_infer.into());
        genie_capture_aten_impl(aten_impl.into());
    }
}

/// What PyTorch's Python metas import is imported: asking them costs little from now on.
pub fn metas_imported() {
    // SAFETY: takes nothing.
    unsafe { genie_capture_metas_imported() }
}

/// Mixed precision in this thread: whether it is on, and its dtype (a `c10::ScalarType`).
pub fn autocast() -> (bool, u8) {
    let (mut enabled, mut dtype) = (0, 0);
    // SAFETY: both places are valid for a write.
    unsafe { genie_capture_autocast(&mut enabled, &mut dtype) };
    (enabled != 0, dtype)
}

pub fn set_autocast(enabled: bool, dtype: u8) {
    // SAFETY: plain values.
    unsafe { genie_capture_set_autocast(enabled.into(), dtype) }
}

unsafe extern "C" {
    fn genie_capture_autocast(enabled: *mut u8, dtype: *mut u8);
    fn genie_capture_set_autocast(enabled: u8, dtype: u8);
    fn genie_capture_init(tape: *const Tape, error: *mut GenieError) -> i32;
    fn genie_capture_register(error: *mut GenieError) -> i32;
    fn genie_capture_stats(out: *mut Stats);
    fn genie_capture_new_session();
    fn genie_capture_log_intercepts(on: u8);
    fn genie_capture_meta_infer(on: u8);
    fn genie_capture_metas_imported();
    fn genie_capture_aten_impl(on: u8);
}
