// Running templates on libtorch: the node's side of the shim.
//
// Pointers returned here are owned by the caller until given back to the matching `_free`.
// No function throws. Functions that can fail return 0 or an error code and fill `error`.
// One thread at a time may use one device's objects.
#pragma once
#include "status.h"

extern "C" {

typedef struct GenieTemplate GenieTemplate;
typedef struct GenieStorage GenieStorage;      // an owned reference to a c10::StorageImpl
typedef struct GenieGenerator GenieGenerator;  // a session's random generator state

struct GenieDevice {
  uint8_t kind;   // 0 = cpu, 1 = cuda
  uint8_t index;
};

// Once per process, before anything else. Sets the intra-op thread count.
int genie_execute_init(GenieError* error);
// Counts the CPU memory that libtorch allocates from now on (memory.h). Not for a process of somebody
// else. Without it the next two do nothing, and tell 0.
void genie_execute_count_memory();
// Refuses allocations beyond so many bytes in use, until it is called again.
void genie_execute_limit_memory(uint64_t bytes);
void genie_execute_scrub_memory();
void genie_execute_borrow_memory(uint64_t* in_use, const uint64_t* lease, bool (*more)(uint64_t));
void genie_execute_memory_in_use(uint64_t* now, uint64_t* peak);
// Gives warnings of operators to `tell`, which must live for ever, instead of stderr; for threads that
// enter from now on.
void genie_execute_tell_warnings(void (*tell)(const char*));
// Makes `threads` the intra-op thread count of this thread (0: as it is), and `settings`
// (settings.h) those of the process and this thread, until the thread enters again or leaves.
// Settings belong to the process, and the threads of all devices share it: while others run under
// other settings, this waits. A thread that failed to enter leaves too.
int genie_execute_enter(const uint8_t* settings, size_t len, uint32_t threads, GenieError* error);
// Lets others set what they need. `restore`: the process is not the node's own; it gets back what
// it had before.
int genie_execute_leave(uint8_t restore, GenieError* error);
// Opens libtorch_cuda at run time; returns the number of CUDA devices (0 and a reason when none).
uint32_t genie_execute_cuda_devices(GenieError* reason);
// Total bytes of a device's memory (for the CPU: 0, the caller decides).
uint64_t genie_execute_device_memory(GenieDevice device);
// Name of the device ("NVIDIA H100"), NUL-terminated, into `out`.
void genie_execute_device_name(GenieDevice device, char* out, size_t out_bytes);
const char* genie_execute_torch_version();

// Calls `visit` with the name ("aten::add.Tensor") and schema hash of every operator that PyTorch
// knows, and why this device does not run it: "" when it does.
void genie_execute_ops(GenieDevice device,
                       void (*visit)(void* context, const char* name, uint64_t schema_hash,
                                     const char* why_not),
                       void* context);
// Leaves an operator to the clients from now on: "aten::tanh" with all its overloads, or
// "aten::tanh.out".
void genie_execute_withhold(const char* name);

// `bytes` is an encoded genie_wire::Template.
int genie_template_new(const uint8_t* bytes, size_t len, GenieDevice device, GenieTemplate** out,
                       GenieError* error);
void genie_template_free(GenieTemplate* tmpl);

int genie_storage_new(GenieDevice device, uint64_t bytes, GenieStorage** out, GenieError* error);
// Over memory of others on the CPU; `let_go(owner)` is called once, when nothing uses it any more.
int genie_storage_over(void* data, uint64_t bytes, void* owner, void (*let_go)(void*),
                       GenieStorage** out, GenieError* error);
void genie_storage_free(GenieStorage* storage);
uint64_t genie_storage_bytes(const GenieStorage* storage);
// Host pointer of a CPU storage, or nullptr.
uint8_t* genie_storage_data(GenieStorage* storage);
int genie_storage_copy_in(GenieStorage* storage, uint64_t offset, const void* from, uint64_t len,
                          GenieError* error);
int genie_storage_copy_out(const GenieStorage* storage, uint64_t offset, void* to, uint64_t len,
                           GenieError* error);
int genie_storage_clone(const GenieStorage* storage, GenieStorage** out, GenieError* error);
int genie_storage_resize(GenieStorage* storage, uint64_t bytes, GenieError* error);

// Runs a template. `inputs` holds one storage per slot, `scalars` the varying words; on success
// `outputs` receives one owned storage per new storage of the template. The node's first run of
// each template checks the outputs against it (code 9, TemplateMismatch); later runs check that
// the storages are large enough. `generator` may be null for templates that are not random.
int genie_template_run(GenieTemplate* tmpl, GenieStorage* const* inputs, const uint64_t* scalars,
                       GenieGenerator* generator, GenieStorage** outputs, GenieError* error);

// Runs a template whose outputs are not declared. `reply` receives, through `write`, the body of
// genie_wire::Reply::Outputs (without token and kind byte); `outputs` receives at most `reserve`
// owned storages and `*n_outputs` their number.
int genie_template_run_dynamic(GenieTemplate* tmpl, GenieStorage* const* inputs,
                               const uint64_t* scalars, GenieGenerator* generator,
                               GenieStorage** outputs, uint64_t reserve, uint64_t* n_outputs,
                               void (*write)(void* context, const uint8_t* bytes, size_t len),
                               void* context, GenieError* error);

// A generator state of its own for each session, seeded like torch's default.
int genie_generator_new(GenieDevice device, GenieGenerator** out, GenieError* error);
void genie_generator_free(GenieGenerator* generator);
int genie_generator_seed(GenieGenerator* generator, uint64_t seed, GenieError* error);
// Writes the state (5,056 bytes for the CPU, 16 for CUDA); `*len` holds the capacity, then the
// length.
int genie_generator_state(GenieGenerator* generator, uint8_t* out, size_t* len, GenieError* error);
int genie_generator_set_state(GenieGenerator* generator, const uint8_t* state, size_t len,
                              GenieError* error);

// Waits until the device has finished everything given to it (nothing to do for the CPU).
int genie_execute_synchronize(GenieDevice device, GenieError* error);

}
