// Capturing PyTorch operators: the front end's side of the shim.
//
// The C++ side registers the device `remote_accelerator` (PrivateUse1), infers shapes, interns
// templates and calls the tape through this table; the tape (Rust) owns ids, bytes and the
// connection. Functions of the table may be called from any thread, with or without the GIL, and
// never throw; those that can fail return 0 or an error code and fill `error`.
#pragma once
#include "status.h"

extern "C" {

// Storages that the program holds, in bytes and in number: now, at most, made and freed since the
// session began. The last two, and the peaks, can be set back.
struct GenieMemory {
  uint64_t live_bytes, peak_bytes, allocated_bytes, freed_bytes;
  uint64_t live_storages, peak_storages, allocated_storages, freed_storages;
};

// Settings that an operator is captured under (settings.h); valid during a call.
struct GenieSettings {
  uint64_t hash;         // of `bytes`; 0 for none
  uint32_t threads;      // CPU threads one operator uses
  const uint8_t* bytes;  // those that are not PyTorch's own, encoded
  size_t len;
};

// The id of a storage of no session.
constexpr uint64_t kNoStorage = UINT64_MAX >> 1;

// What became of the notes between `script_begin` and `script_end`. The ranges live during the call.
struct GenieNotedScript {
  uint64_t handle;
  uint64_t bytes;  // of its definition
  // Storages made and filled from the client inside: every run names them behind the externals.
  const uint64_t* constants;
  size_t n_constants;
  // For each output: its number among the storages that a run makes, or -1 for an external.
  const int64_t* outputs;
  // Externals that the script frees, in order.
  const uint32_t* frees;
  size_t n_frees;
};

struct GenieTape {
  // Makes sure a session exists (starts or joins a host on first use). Called before the first
  // storage is made, and cheap afterwards. Fails in a forked child and after a lost node.
  int (*ensure)(GenieError* error);
  // Number of devices; starts nothing if the answer is known, else may start the session.
  uint32_t (*device_count)();
  // Kind of the node's device: 0 = cpu, 1 = cuda. After `ensure`.
  uint8_t (*device_kind)();
  // Whether the node runs the operator with this schema hash. After `ensure`.
  uint8_t (*node_has_op)(uint64_t schema_hash);
  // Whether `session` (as returned by `session`) is the current one.
  uint64_t (*session)();

  // Whether host and node know settings other than PyTorch's own. After `ensure`.
  uint8_t (*carries_settings)();

  // Defines a template (encoded genie_wire::Template); returns its id.
  uint32_t (*define)(const uint8_t* bytes, size_t len);
  // Forgets every template; the next one defined gets id 0.
  void (*forget_templates)();
  // Appends an operator record; returns the id of its first new storage. UINT64_MAX: nothing was
  // appended, the session holds as many storages as it may.
  uint64_t (*op)(const GenieSettings* settings, uint32_t tmpl, const uint64_t* inputs,
                 size_t n_inputs, const uint64_t* scalars,
                 size_t n_scalars, uint32_t n_new);
  // Runs an operator synchronously; `encoded` is a Template without outputs. On success calls
  // `reply` once with the body of genie_wire::Reply::Outputs and `*first_new` set.
  int (*run)(const GenieSettings* settings, const uint8_t* encoded, size_t len, const uint64_t* inputs, size_t n_inputs,
             const uint64_t* scalars, size_t n_scalars, uint64_t reserve, uint64_t* first_new,
             void (*reply)(void* context, const uint8_t* bytes, size_t len), void* context,
             GenieError* error);
  // Makes a storage of `bytes` uninitialised bytes; UINT64_MAX as above.
  uint64_t (*alloc)(uint64_t bytes);
  // The storage `id` of `bytes` bytes is no longer referenced by the program. Never blocks for
  // long and never fails: called from destructors.
  void (*free)(uint64_t id, uint64_t bytes, uint64_t session);
  // A storage of `bytes` bytes now belongs to the program (for the live-byte counters).
  void (*note_new)(uint64_t id, uint64_t bytes);
  void (*resize)(uint64_t id, uint64_t old_bytes, uint64_t new_bytes);
  // Copies host memory into a storage: 0 a part of it, 1 all of it, so that its content may be
  // shared by hash, 2 all of it and it is a parameter. Returns after the source was read.
  int (*upload)(uint64_t id, uint64_t offset, const void* from, uint64_t len, uint8_t content,
                GenieError* error);
  // Copies `len` bytes of a storage into host memory; waits (GIL released, interruptible).
  int (*read)(uint64_t id, uint64_t offset, void* to, uint64_t len, GenieError* error);
  int (*synchronize)(GenieError* error);

  // Fences: places in the tape that the device comes to. Puts one behind everything so far. Without
  // a session there is nothing to wait for: `*session` is 0, unless `start` is set.
  int (*fence)(uint8_t start, uint64_t* token, uint64_t* session, GenieError* error);
  // Whether the device came to it; so it is in a session that has ended.
  uint8_t (*fence_reached)(uint64_t token, uint64_t session);
  // Waits for it (GIL released, interruptible); `*at_ns` is the node's clock when it was there, 0
  // where the node does not tell. May be asked again until the fence is dropped.
  int (*wait_fence)(uint64_t token, uint64_t session, uint64_t* at_ns, GenieError* error);
  // Nobody asks for it any more. Every fence ends so.
  void (*drop_fence)(uint64_t token, uint64_t session);
  // Whether the device has done everything asked of it. Never waits, starts nothing.
  uint8_t (*is_idle)();

  // Whether a session runs.
  uint8_t (*is_live)();
  // What the program holds on the device; all zero without a session.
  void (*memory)(GenieMemory* out);
  // Bytes of the device's memory, of all programs together. Starts the session.
  int (*device_memory)(uint64_t* total, GenieError* error);
  void (*reset_peak_memory)();
  void (*reset_accumulated_memory)();
  // Sends what is pending, without waiting.
  void (*flush)();

  void (*seed)(uint64_t seed);
  int (*generator_state)(uint8_t* out, size_t* len, GenieError* error);
  int (*set_generator_state)(const uint8_t* state, size_t len, GenieError* error);
  // An operator ran on the client's CPU instead; `reason` says why. Warns once per operator.
  void (*fell_back)(const char* op, const char* reason);
  // The Python class (a PyObject* that lives for ever) that an error with this code must become,
  // or null: then the code's c10 error class says it. Not null for NodeLost (genie.NodeLost) and
  // for code 255, a wait that a signal handler ended (KeyboardInterrupt, usually). Throw
  // genie::PythonError of python_error.h with it, on the thread that got the error.
  void* (*error_type)(uint8_t code);
  // Whether this Python class is no `Exception`: KeyboardInterrupt, SystemExit. Such must reach
  // the program whatever was being tried.
  uint8_t (*must_propagate)(void* python_class);

  // Begins to note what this thread appends, as a script over these storages. 0: host or node know
  // no scripts, or the thread takes notes already.
  uint8_t (*script_begin)(const GenieSettings* settings, const uint64_t* externals, size_t n_externals);
  // Ends the notes. `outputs` are the storages that live on. On success calls `keep` once; an error
  // says why the notes make no script.
  int (*script_end)(const uint64_t* outputs, size_t n_outputs,
                    void (*keep)(void* context, const GenieNotedScript* script), void* context,
                    GenieError* error);
  // Ends the notes without a script; nothing without notes.
  void (*script_abandon)();
  // The script is not run any more.
  void (*script_drop)(uint64_t handle);
  // Runs a script on its externals and constants; `frees` says for each external that the script
  // frees whether this run frees it. Returns the id of the first storage it makes, or
  // `kNoStorage` when the session knows no such script.
  uint64_t (*script_run)(const GenieSettings* settings, uint64_t handle,
                         const uint64_t* externals, size_t n_externals,
                         const bool* frees, size_t n_frees);
};

// Counters of the capture, since the process began.
struct GenieCaptureStats {
  uint64_t ops;            // records appended for operators
  uint64_t template_hits;
  uint64_t template_misses;
  uint64_t runs;           // synchronous runs on the node
  uint64_t fallbacks;
  uint64_t capture_ns;     // time in boxed kernels, waits excluded
};

// Registers the device and what makes its tensors: no more than a program that never uses it has to
// wait for. Once per process, after `import torch`; `tape` must live for ever.
int genie_capture_init(const GenieTape* tape, GenieError* error);
// Registers the device's operators, once. Called before a session begins.
int genie_capture_register(GenieError* error);
void genie_capture_stats(GenieCaptureStats* out);
// Forgets every template: ids of the old session mean nothing to a new one.
void genie_capture_new_session();
// Log every intercepted operator to stderr (GENIE_LOG_INTERCEPTS).
void genie_capture_log_intercepts(uint8_t on);
// Shape inference through PyTorch's Python metas (GENIE_ENABLE_META_INFER); off: run on the node.
void genie_capture_meta_infer(uint8_t on);
// What those metas import (torch._dynamo, some seconds) is imported: from now on they cost no more.
void genie_capture_metas_imported();
// Kernels at PrivateUse1 (GENIE_ENABLE_ATEN_IMPL); off: every operator falls back to the CPU.
void genie_capture_aten_impl(uint8_t on);
// Mixed precision in this thread: whether it is on, and its dtype (a c10::ScalarType).
void genie_capture_autocast(uint8_t* enabled, uint8_t* dtype);
void genie_capture_set_autocast(uint8_t enabled, uint8_t dtype);

}
