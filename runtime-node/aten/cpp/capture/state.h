// What all of the capture shares: the tape, storages that live elsewhere, errors.
#pragma once
#include <ATen/ATen.h>
#include <torch/library.h>

#include <chrono>
#include <functional>

#include "../capture.h"
#include "../codec.h"

namespace genie {

constexpr auto kRemote = c10::DeviceType::PrivateUse1;

// The tape given to genie_capture_init.
const GenieTape& tape();

// Throws the exception that `error` stands for.
[[noreturn]] void raise(const GenieError& error);
inline void check(int code, const GenieError& error) {
  if (code != 0) raise(error);
}

// Makes sure a session exists.
void ensure();

// What a storage on the device points to instead of bytes. Its address, marked, is the storage's
// data pointer, so that storages rebuilt from a bare address (pickling) are still found; the mark
// makes it an address that no machine maps: a kernel of the CPU that gets hold of such a tensor
// (beside a CSR tensor, in torch 2.2) faults instead of writing over the heap.
struct RemoteStorage {
  static constexpr uintptr_t kMark = uintptr_t{1} << 54;
  static constexpr uint64_t kMagic = 0x67656e6965737467;  // "geniestg"
  uint64_t magic = kMagic;
  uint64_t id = 0;
  uint64_t session = 0;
  uint64_t bytes = 0;
  // Used by the encoder under the capture lock: the slot this storage has in operator `mark`.
  uint64_t mark = 0;
  uint32_t slot = 0;

  void* address() { return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(this) | kMark); }
  // The storage with this address; null for an address that is not one.
  static RemoteStorage* at(const void* address) {
    auto bits = reinterpret_cast<uintptr_t>(address);
    return bits & kMark ? reinterpret_cast<RemoteStorage*>(bits & ~kMark) : nullptr;
  }
};

// The remote storage behind a tensor or storage of this device; throws if its session ended.
RemoteStorage& remote(const c10::StorageImpl& storage);
inline RemoteStorage& remote(const at::Tensor& t) {
  return remote(*t.storage().unsafeGetStorageImpl());
}

// What the tape answers instead of a storage's id when the session holds as many as it may.
constexpr uint64_t kNoRoom = UINT64_MAX;
[[noreturn]] void too_many_storages();
// Throws what an allocation that fails throws, for storages larger than the wire's limit.
void check_storage_bytes(uint64_t bytes);

c10::Allocator* allocator();
// A storage for id `id` of the current session, made by the tape already.
c10::intrusive_ptr<c10::StorageImpl> make_storage(uint64_t id, uint64_t bytes);
// A tensor over a storage of this device.
at::Tensor make_tensor(c10::intrusive_ptr<c10::StorageImpl> storage, const Meta& meta);
// Grows or shrinks a storage, here and on the node.
void resize_storage(c10::StorageImpl& storage, uint64_t bytes);

inline bool is_remote(const at::Tensor& t) { return t.defined() && t.device().type() == kRemote; }

// Generators.
const at::Generator& default_generator();
at::Generator new_generator();
// Runs `draw` with the state of a generator that is not the default one.
void with_generator(const at::Generator& generator, const std::function<void()>& draw);

// Device bookkeeping.
int64_t device_count();
int64_t current_device();
void set_current_device(int64_t index);
void check_index(int64_t index);  // throws unless there is such a device
void register_device();

// Time in capture excludes waits: every wait runs under one of these.
struct Waiting {
  Waiting();
  ~Waiting();
  uint64_t start;
};
uint64_t waited_ticks();  // of this thread, so far
inline uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// Called in a new session: templates of the old one mean nothing to it.
void forget_templates();

void register_kernels(torch::Library& aten);

}  // namespace genie
