// The device: storages without bytes, allocator, guard with streams and events, generator, hooks.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <chrono>
#include <functional>

#include "../python_error.h"
#include "state.h"
#include "../torch_version.h"
#if GENIE_TORCH_AT_LEAST(2, 9)
#include <c10/core/CachingDeviceAllocator.h>
#endif

namespace genie {

namespace {

thread_local uint64_t waited = 0;
thread_local int64_t device = 0;

std::string text(const GenieError& error) { return error.message; }

void free_remote(void* context) {
  auto* storage = static_cast<RemoteStorage*>(context);
  tape().free(storage->id, storage->bytes, storage->session);
  storage->magic = 0;
  delete storage;
}

c10::DataPtr data_pointer(uint64_t id, uint64_t bytes) {
  auto* storage = new RemoteStorage;
  storage->id = id;
  storage->bytes = bytes;
  storage->session = tape().session();
  tape().note_new(id, bytes);
  return {storage->address(), storage, &free_remote, c10::Device(kRemote, 0)};
}

#if GENIE_TORCH_AT_LEAST(2, 9)
// `torch.accelerator`'s functions about memory ask the allocator.
using Allocator = c10::DeviceAllocator;
#else
using Allocator = c10::Allocator;
#endif

struct RemoteAllocator final : Allocator {
#if GENIE_TORCH_AT_LEAST(2, 3)
  c10::DataPtr allocate(size_t bytes) override {
#else
  c10::DataPtr allocate(size_t bytes) const override {
#endif
    check_storage_bytes(bytes);
    ensure();
    uint64_t id = tape().alloc(bytes);
    if (C10_UNLIKELY(id == kNoRoom)) too_many_storages();
    return data_pointer(id, bytes);
  }
#if GENIE_TORCH_AT_LEAST(2, 3)
  void copy_data(void*, const void*, size_t) const override {
    TORCH_CHECK(false, "remote_accelerator: storages are copied by operators, not by address");
  }
#endif
#if GENIE_TORCH_AT_LEAST(2, 9)
  bool initialized() override { return tape().is_live() != 0; }
  // There is no cache of free memory on this side: what is freed goes to the node.
  void emptyCache(c10::MempoolId_t) override { tape().flush(); }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    check_index(index);
    GenieMemory memory{};
    tape().memory(&memory);
    auto fill = [](c10::CachingAllocator::StatArray& kinds, uint64_t current, uint64_t peak,
                   uint64_t allocated, uint64_t freed) {
      // Storages are not pooled by size.
      auto& all = kinds[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
      all.current = static_cast<int64_t>(current);
      all.peak = static_cast<int64_t>(peak);
      all.allocated = static_cast<int64_t>(allocated);
      all.freed = static_cast<int64_t>(freed);
    };
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* count : {&stats.allocation, &stats.active})
      fill(*count, memory.live_storages, memory.peak_storages, memory.allocated_storages,
           memory.freed_storages);
    for (auto* bytes : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes,
                        &stats.requested_bytes})
      fill(*bytes, memory.live_bytes, memory.peak_bytes, memory.allocated_bytes,
           memory.freed_bytes);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex index) override {
    check_index(index);
    tape().reset_accumulated_memory();
  }
  void resetPeakStats(c10::DeviceIndex index) override {
    check_index(index);
    tape().reset_peak_memory();
  }
  // Overrides from torch 2.10 on. Free is what this program leaves; others may use the device too.
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) {
    check_index(index);
    uint64_t total = 0;
    GenieError error;
    check(tape().device_memory(&total, &error), error);
    GenieMemory memory{};
    tape().memory(&memory);
    return {total > memory.live_bytes ? total - memory.live_bytes : 0, total};
  }
#endif
};

// What an event of PyTorch is made of: the fence it was last recorded as.
struct RemoteEvent {
  uint64_t token = 0, session = 0;

  ~RemoteEvent() { drop(); }
  void record(bool timed) {
    drop();
    GenieError error;
    Waiting waiting;
    // An event with timing is the node's clock, so it needs a session.
    check(tape().fence(timed, &token, &session, &error), error);
  }
  bool query() const { return session == 0 || tape().fence_reached(token, session); }
  // The node's clock when it was here.
  uint64_t synchronize() const {
    uint64_t at_ns = 0;
    if (session != 0) {
      GenieError error;
      Waiting waiting;
      check(tape().wait_fence(token, session, &at_ns, &error), error);
    }
    return at_ns;
  }
  void drop() {
    if (session != 0) tape().drop_fence(token, session);
    session = 0;
  }
  static RemoteEvent& at(void* event) { return *static_cast<RemoteEvent*>(event); }
};

struct RemoteGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kRemote; }
  c10::Device exchangeDevice(c10::Device d) const override {
    c10::Device old = getDevice();
    setDevice(d);
    return old;
  }
  c10::Device getDevice() const override {
    return {kRemote, static_cast<c10::DeviceIndex>(device)};
  }
  void setDevice(c10::Device d) const override {
    if (d.has_index()) set_current_device(d.index());
  }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.has_index()) device = d.index();
  }
  // One in-order stream: the tape.
  c10::Stream getStream(c10::Device d) const GENIE_STREAM_NOEXCEPT override {
    return c10::Stream(c10::Stream::DEFAULT, d);
  }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::DEFAULT, d);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    return c10::Stream(c10::Stream::DEFAULT, d);
  }
  // Overrides from torch 2.3 on.
  c10::Stream getNewStream(c10::Device d, int) const {
    return c10::Stream(c10::Stream::DEFAULT, d.has_index() ? d : getDevice());
  }
  c10::Stream exchangeStream(c10::Stream s) const GENIE_STREAM_NOEXCEPT override {
    return c10::Stream(c10::Stream::DEFAULT, s.device());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(tape().device_count());
  }
  bool queryStream(const c10::Stream&) const override { return tape().is_idle() != 0; }
  void synchronizeStream(const c10::Stream&) const override { synchronize(); }
#if GENIE_TORCH_AT_LEAST(2, 6)
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronize(); }
#endif
  // Overrides in those versions that have them (from 2.9 and 2.10 on).
  void* getStreamNativeHandle(const c10::Stream) const { return nullptr; }
#if __has_include(<c10/core/DeviceCapability.h>)
  c10::DeviceCapability getDeviceCapability(c10::Device) const {
    c10::DeviceCapability all;  // but quantized tensors
    auto& types = all.capability_data.supported_scalar_types;
    types.has_QInt8 = types.has_QUInt8 = types.has_QInt32 = 0;
    types.has_QUInt4x2 = types.has_QUInt2x4 = 0;
    return all;
  }
#endif

  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<RemoteEvent*>(event);
  }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag flag) const override {
    if (!*event) *event = new RemoteEvent;
    RemoteEvent::at(*event).record(flag == c10::EventFlag::BACKEND_DEFAULT);
  }
  // Whatever comes later on the only stream runs after the event.
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void* event) const override { return !event || RemoteEvent::at(event).query(); }
  // Override from torch 2.4 on.
  void synchronizeEvent(void* event) const {
    if (event) RemoteEvent::at(event).synchronize();
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const {
    auto &from = RemoteEvent::at(start), &to = RemoteEvent::at(end);
    TORCH_CHECK(from.session == to.session && from.session == tape().session(),
                "remote_accelerator: the session in which an event was recorded has ended; record "
                "both events anew");
    auto begin = from.synchronize(), until = to.synchronize();
    TORCH_CHECK(begin != 0 && until != 0, "remote_accelerator: the node is of an older version "
                "and does not tell when it reached an event; install the same version there");
    return (static_cast<double>(until) - static_cast<double>(begin)) * 1e-6;
  }

  static void synchronize() {
    GenieError error;
    Waiting waiting;
    check(tape().synchronize(&error), error);
  }
};

// The default generator's state lives on the node; others keep theirs here between operators.
struct RemoteGenerator final : c10::GeneratorImpl {
  RemoteGenerator(bool is_default)
      : c10::GeneratorImpl(c10::Device(kRemote, 0),
                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        is_default_(is_default) {}

  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    state_.clear();
    if (is_default_) tape().seed(seed);
  }
  // The state holds everything; but PyTorch pickles an offset of each generator that is not the CPU's.
  void set_offset(uint64_t offset) override {
    TORCH_CHECK(offset == 0, "remote_accelerator: generators have no offset; use set_state");
  }
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return seed_;
  }
  void set_state(const c10::TensorImpl& state) override {
    at::Tensor bytes(c10::intrusive_ptr<c10::TensorImpl>::unsafe_reclaim_from_nonowning(
        const_cast<c10::TensorImpl*>(&state)));
    bytes = bytes.to(at::kCPU).contiguous();
    TORCH_CHECK_TYPE(bytes.scalar_type() == at::kByte, "a generator state is a uint8 tensor");
    ensure();
    // A state is sent without an answer: what eager refuses is refused here, in its words.
    if (tape().device_kind() == 0) at::detail::createCPUGenerator().set_state(bytes);
    auto* data = bytes.const_data_ptr<uint8_t>();
    state_.assign(data, data + bytes.numel());
    if (is_default_) write(state_);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto* self = const_cast<RemoteGenerator*>(this);
    if (is_default_)
      self->state_ = read();
    else if (state_.empty())
      with_generator(at::Generator(c10::intrusive_ptr<c10::GeneratorImpl>::reclaim_copy(self)),
                     [] {});
    auto out = at::empty({static_cast<int64_t>(state_.size())}, at::kByte);
    memcpy(out.mutable_data_ptr(), state_.data(), state_.size());
    return out.getIntrusivePtr();
  }

  static std::vector<uint8_t> read() {
    ensure();
    std::vector<uint8_t> state(kGeneratorStateMax);
    size_t len = state.size();
    GenieError error;
    Waiting waiting;
    check(tape().generator_state(state.data(), &len, &error), error);
    state.resize(len);
    return state;
  }
  static void write(const std::vector<uint8_t>& state) {
    ensure();
    GenieError error;
    check(tape().set_generator_state(state.data(), state.size(), &error), error);
  }
  // Runs `draw` as the node's generator.
  void lend(const std::function<void()>& draw) {
    auto saved = read();
    if (state_.empty())
      tape().seed(seed_);
    else
      write(state_);
    struct Restore {
      RemoteGenerator* self;
      std::vector<uint8_t>& saved;
      ~Restore() noexcept(false) {
        self->state_ = read();
        write(saved);
      }
    } restore{this, saved};
    draw();
  }

  bool is_default() const { return is_default_; }

 private:
  c10::GeneratorImpl* clone_impl() const override {
    auto* copy = new RemoteGenerator(false);
    copy->seed_ = seed_;
    copy->state_ = is_default_ ? read() : state_;
    return copy;
  }
  bool is_default_;
  uint64_t seed_ = c10::default_rng_seed_val;
  std::vector<uint8_t> state_;
};

struct RemoteHooks final : at::PrivateUse1HooksInterface {
#if GENIE_TORCH_AT_LEAST(2, 6)
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isPinnedPtr(const void* data) const override {
    return at::globalContext().hasCUDA() && at::detail::getCUDAHooks().isPinnedPtr(data);
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
#endif
#if GENIE_TORCH_AT_LEAST(2, 3)
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
#else
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) override {
#endif
    TORCH_CHECK(index < device_count(), "remote_accelerator: there is no device ", int(index));
    return default_generator();
  }
#if GENIE_TORCH_AT_LEAST(2, 3)
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Device getDeviceFromPtr(void*) const override { return {kRemote, 0}; }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    // Uploads copy out of any memory at the same speed, so pinned memory is ordinary memory. But
    // PyTorch asks here, too, for a program that pins memory for its CUDA device.
    if (at::globalContext().hasCUDA()) return at::detail::getCUDAHooks().getPinnedMemoryAllocator();
    return c10::GetAllocator(at::kCPU);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(*storage.unsafeGetStorageImpl(), bytes);
  }
#endif
#if GENIE_TORCH_AT_LEAST(2, 5)
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(genie::device_count());
  }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device());
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    auto old = getCurrentDevice();
    set_current_device(index);
    return old;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? getCurrentDevice() : exchangeDevice(index);
  }
#endif
};

RemoteAllocator& the_allocator() {
  static RemoteAllocator instance;
  return instance;
}

}  // namespace

Waiting::Waiting() : start(ticks()) {}
Waiting::~Waiting() { waited += ticks() - start; }
uint64_t waited_ticks() { return waited; }

void raise(const GenieError& error) {
  if (tape().error_type)
    if (void* type = tape().error_type(error.code)) throw PythonError(type, text(error));
  c10::SourceLocation here{__func__, __FILE__, static_cast<uint32_t>(__LINE__)};
  switch (error.code) {
    case kOutOfMemory: throw c10::OutOfMemoryError(here, text(error));
    case kIndex: throw c10::IndexError(here, text(error));
    case kValue: throw c10::ValueError(here, text(error));
    case kType: throw c10::TypeError(here, text(error));
    case kNotImplemented: throw c10::NotImplementedError(here, text(error));
    case kLinalg: throw c10::LinAlgError(here, text(error));
    default: throw c10::Error(here, text(error));
  }
}

void ensure() {
  GenieError error;
  int code = tape().ensure(&error);
  if (code != 0) raise(error);
}

void too_many_storages() {
  TORCH_CHECK_WITH(OutOfMemoryError, false, "remote_accelerator out of memory. The session holds ",
                   kStoragesMax, " storages, as many as it may: free tensors that are not used "
                   "any more");
}

void check_storage_bytes(uint64_t bytes) {
  TORCH_CHECK_WITH(OutOfMemoryError, bytes <= kStorageBytesMax,
                   "remote_accelerator out of memory. Tried to allocate ", bytes,
                   " bytes, and one storage holds at most ", kStorageBytesMax);
}

RemoteStorage& remote(const c10::StorageImpl& storage) {
  const auto& pointer = storage.data_ptr();
  auto* found = RemoteStorage::at(pointer.get());
  TORCH_CHECK(found && found->magic == RemoteStorage::kMagic,
              "remote_accelerator: this tensor's storage was not made by this device");
  if (found->session != tape().session()) {
    GenieError error;
    error.code = kNodeLost;
    snprintf(error.message, sizeof error.message,
             "this tensor belonged to a session that has ended: its node or host is gone. Move "
             "the model and its inputs to the device again");
    raise(error);
  }
  return *found;
}

c10::Allocator* allocator() { return &the_allocator(); }

c10::intrusive_ptr<c10::StorageImpl> make_storage(uint64_t id, uint64_t bytes) {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                               static_cast<size_t>(bytes),
                                               data_pointer(id, bytes), allocator(),
                                               /*resizable=*/true);
}

at::Tensor make_tensor(c10::intrusive_ptr<c10::StorageImpl> storage, const Meta& meta) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::scalarTypeToTypeMeta(meta.dtype));
  auto* impl = tensor.unsafeGetTensorImpl();
  if (meta.sizes.size() != 1 || meta.sizes[0] != 0 || meta.strides[0] != 1 || meta.offset != 0)
    impl->set_sizes_and_strides(meta.sizes, meta.strides, meta.offset);
  return tensor;
}

void resize_storage(c10::StorageImpl& storage, uint64_t bytes) {
  auto& r = remote(storage);
  if (r.bytes == bytes) return;
  check_storage_bytes(bytes);
  tape().resize(r.id, r.bytes, bytes);
  r.bytes = bytes;
  storage.set_nbytes(bytes);
}

const at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<RemoteGenerator>(true);
  return generator;
}

at::Generator new_generator() { return at::make_generator<RemoteGenerator>(false); }

void with_generator(const at::Generator& generator, const std::function<void()>& draw) {
  auto* impl = dynamic_cast<RemoteGenerator*>(generator.unsafeGetGeneratorImpl());
  TORCH_CHECK(impl, "Expected a 'remote_accelerator' device type for generator but found '",
              generator.device().type(), "'");
  if (impl->is_default())
    draw();
  else
    impl->lend(draw);
}

int64_t device_count() { return tape().device_count(); }
int64_t current_device() { return device; }

void check_index(int64_t index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "remote_accelerator: there is no device ",
              index, ", device_count() is ", device_count());
}

void set_current_device(int64_t index) {
  if (index == device) return;
  check_index(index);
  device = index;
}

void register_device() {
  static c10::impl::DeviceGuardImplRegistrar guard(kRemote, new RemoteGuard);
  c10::SetAllocator(kRemote, allocator());
  at::RegisterPrivateUse1HooksInterface(new RemoteHooks);
#if !GENIE_TORCH_AT_LEAST(2, 6)
  static at::_GeneratorRegister generators([](c10::DeviceIndex) { return new_generator(); });
#endif
}

}  // namespace genie
