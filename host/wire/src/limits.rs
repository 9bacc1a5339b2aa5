//! Every bound of the wire, by name.
//!
//! One place for all who keep them: host and node end a session that breaks one, so the client
//! knows each and never does. Where a legal program would, the client says so at the call, splits
//! the call, runs it on its own CPU or waits; `docs/reference/limits.md` tells which, and
//! `tests/e2e/test_wire_limits.py` tries every name here. The C++ shim gets them from its build
//! script.

/// The largest body of one frame.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// The largest encoded template (a foreach optimizer over a thousand tensors takes ~100 KiB).
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Templates one session may have defined at a time; a client that needs more forgets all first.
pub const TEMPLATES_MAX: usize = 1 << 15;
/// Encoded bytes of all templates that a session has defined; a client forgets before.
pub const TEMPLATES_BYTES_MAX: usize = 64 << 20;
/// The largest body of one script (a model of a thousand layers takes ~300 KiB).
pub const SCRIPT_BYTES_MAX: usize = 1 << 20;
/// Records of one script.
pub const SCRIPT_STEPS_MAX: usize = 1 << 17;
/// Storages of the program that one script may use.
pub const SCRIPT_EXTERNALS_MAX: usize = 1 << 15;
/// Scripts one session may have defined at a time; a client that needs more forgets all first.
pub const SCRIPTS_MAX: usize = 1 << 11;
/// Bytes of all scripts that a session has defined; a client forgets before.
pub const SCRIPTS_BYTES_MAX: usize = 16 << 20;
/// Records that the scripts run in one frame may stand for.
pub const FRAME_STEPS_MAX: usize = 2 * SCRIPT_STEPS_MAX;
/// Storage slots of one template.
pub const SLOTS_MAX: usize = 1 << 15;
/// Varying scalars of one template.
pub const SCALARS_MAX: usize = 1 << 12;
/// Outputs of one template.
pub const OUTPUTS_MAX: usize = 1 << 15;
/// Dimensions of one tensor.
pub const DIMS_MAX: usize = 64;
/// Elements of one encoded list argument.
pub const LIST_MAX: usize = 1 << 16;
/// Nesting of encoded arguments.
pub const NESTING_MAX: usize = 4;
/// The longest operator name, string argument or symbol.
pub const STRING_BYTES_MAX: usize = 16 << 10;
/// The largest upload or reply carried inside a frame; larger payloads go through a region.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// The largest storage (1 TiB).
pub const STORAGE_BYTES_MAX: u64 = 1 << 40;
/// Storages one session may hold.
pub const STORAGES_MAX: usize = 1 << 22;
/// Replies one session may wait for at a time.
pub const TOKENS_MAX: usize = 4096;
/// Status requests of one session that may wait for their answers.
pub const STATUS_WAITING_MAX: usize = 64;
/// Interned symbols (module paths, classes, phases) of one session.
pub const SYMBOLS_MAX: usize = 1 << 20;
/// Text of all symbols of a session.
pub const SYMBOLS_BYTES_MAX: usize = 64 << 20;
/// Storage ids that one `Run` record may reserve for outputs whose number is not known.
pub const RUN_RESERVE_MAX: u64 = 1 << 12;
/// The largest serialized state of a random generator (mt19937 takes 5,056 bytes).
pub const GENERATOR_STATE_BYTES_MAX: usize = 16 << 10;
/// Weights that one question asks for.
pub const WANTED_MAX: usize = 1 << 13;
/// The longest encoded settings of PyTorch (some forty, of two to eleven bytes each).
pub const SETTINGS_BYTES_MAX: usize = 1 << 10;
/// Shared regions one session may register.
pub const REGIONS_MAX: usize = 64;
/// The largest shared region.
pub const REGION_BYTES_MAX: u64 = 1 << 32;
