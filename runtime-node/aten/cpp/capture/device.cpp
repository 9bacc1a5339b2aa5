// The device: storages without bytes, allocator, guard, generator, hooks.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <chrono>
#include <functional>

#include "../python_error.h"
#include "state.h"
#include "../torch_version.h"

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

struct RemoteAllocator final : c10::Allocator {
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
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { synchronize(); }
#if GENIE_TORCH_AT_LEAST(2, 6)
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronize(); }
#endif
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }

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
  void set_offset(uint64_t) override {
    TORCH_CHECK(false, "remote_accelerator: generators have no offset");
  }
  uint64_t get_offset() const override {
    TORCH_CHECK(false, "remote_accelerator: generators have no offset");
  }
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
    // Uploads copy out of any memory at the same speed, so pinned memory is ordinary memory.
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

void set_current_device(int64_t index) {
  if (index == device) return;
  TORCH_CHECK(index >= 0 && index < device_count(), "remote_accelerator: there is no device ",
              index, ", the session has ", device_count());
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
