//! Every bound of the wire, by name.

/// The largest body of one frame.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// The largest encoded template (a foreach optimizer over a thousand tensors takes ~100 KiB).
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Templates one session may have defined at a time; a client that needs more forgets all first.
pub const TEMPLATES_MAX: usize = 1 << 16;
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
pub const STORAGES_MAX: usize = 1 << 24;
/// Interned symbols (module paths, classes, phases) of one session.
pub const SYMBOLS_MAX: usize = 1 << 20;
/// Storage ids that one `Run` record may reserve for outputs whose number is not known.
pub const RUN_RESERVE_MAX: u64 = 1 << 12;
/// The largest serialized state of a random generator (mt19937 takes 5,056 bytes).
pub const GENERATOR_STATE_BYTES_MAX: usize = 16 << 10;
/// Weights that one question asks for.
pub const WANTED_MAX: usize = 1 << 13;
/// Shared regions one session may register.
pub const REGIONS_MAX: usize = 64;
/// The largest shared region.
pub const REGION_BYTES_MAX: u64 = 1 << 32;
