// Running templates on libtorch: decode once, then per record patch the stack and call the boxed
// kernel.
#include "execute.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ScalarOps.h>
#include <ATen/Version.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/enum_tag.h>
#include <ATen/native/Resize.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "codec.h"
#include "denied.h"
#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "torch_version.h"

using namespace genie;

namespace {

using StoragePtr = c10::intrusive_ptr<c10::StorageImpl>;

c10::StorageImpl* impl(GenieStorage* s) { return reinterpret_cast<c10::StorageImpl*>(s); }
const c10::StorageImpl* impl(const GenieStorage* s) {
  return reinterpret_cast<const c10::StorageImpl*>(s);
}
GenieStorage* handle(StoragePtr storage) {
  return reinterpret_cast<GenieStorage*>(storage.release());
}

at::Device torch_device(GenieDevice device) {
  return device.kind == 0 ? at::Device(at::kCPU)
                          : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device.index));
}

// How one argument is put on the stack. Constants are built once; the rest is patched per record.
struct Argument {
  uint8_t tag = kNone;
  uint32_t slot = 0;     // tensors
  uint32_t scalar = 0;   // varying values
  bool wrapped = false;  // scalar tensors
  bool optional_tensors = false;
  Meta meta;
  at::ScalarType dtype = at::kFloat;
  c10::IValue constant;
  std::vector<Argument> items;  // lists that hold tensors or varying values
};

struct Output {
  OutputKind kind = kOutputUndefined;
  uint32_t index = 0;  // new storage or slot
  Meta meta;
};

bool varies(const Argument& a) {
  switch (a.tag) {
    case kTensor:
    case kUndefinedTensor:
    case kScalarTensor:
    case kVaryingDouble:
    case kVaryingInt:
    case kVaryingComplex:
    case kGenerator:
      return true;
    default:
      return !a.items.empty();
  }
}

}  // namespace

struct GenieTemplate {
  GenieTemplate(c10::OperatorHandle op, std::string name, at::Device device)
      : op(op), name(std::move(name)), device(device) {}
  c10::OperatorHandle op;
  std::string name;
  at::Device device;
  uint32_t slots = 0;
  uint32_t scalars = 0;
  bool random = false;
  std::vector<Argument> args;
  // Tensors that the operator writes and does not return: `outputs` says nothing of their sizes.
  std::vector<uint32_t> unreturned;
  std::vector<uint64_t> new_storages;
  std::vector<Output> outputs;
};

// A session's generator. The one in use is swapped into the device's default generator, so that
// operators without a generator argument draw from it too.
struct GenieGenerator {
  at::Device device;
  at::Generator own;
};

namespace {

const at::Generator& default_generator(at::Device device) {
  return at::globalContext().defaultGenerator(device);
}

struct SwapGenerator {
  explicit SwapGenerator(GenieGenerator* generator) : generator_(generator) {
    if (!generator_) return;
    Unlimited state_is_small;
    auto current = default_generator(generator_->device);
    std::lock_guard<std::mutex> lock(current.mutex());
    saved_ = current.get_state();
    current.set_state(generator_->own.get_state());
  }
  ~SwapGenerator() {
    if (!generator_) return;
    Unlimited must_not_fail;
    auto current = default_generator(generator_->device);
    std::lock_guard<std::mutex> lock(current.mutex());
    generator_->own.set_state(current.get_state());
    current.set_state(saved_);
  }
  SwapGenerator(const SwapGenerator&) = delete;
  SwapGenerator& operator=(const SwapGenerator&) = delete;

 private:
  GenieGenerator* generator_;
  at::Tensor saved_;
};

at::Device decode_device(uint8_t index, at::Device device) {
  return index == kCpuDevice ? at::Device(at::kCPU) : device;
}

c10::TypePtr element_type(const c10::TypePtr& type) {
  auto inner = type;
  if (auto optional = inner->cast<c10::OptionalType>()) inner = optional->getElementType();
  if (auto list = inner->cast<c10::ListType>()) return list->getElementType();
  return inner;
}

c10::IValue build_list(const std::vector<c10::IValue>& items, const c10::TypePtr& type) {
  auto element = element_type(type);
  switch (element->kind()) {
    case c10::TypeKind::TensorType: {
      c10::List<at::Tensor> list;
      list.reserve(items.size());
      for (const auto& item : items) list.push_back(item.toTensor());
      return list;
    }
    case c10::TypeKind::FloatType: {
      c10::List<double> list;
      for (const auto& item : items) list.push_back(item.toDouble());
      return list;
    }
    case c10::TypeKind::BoolType: {
      c10::List<bool> list;
      for (const auto& item : items) list.push_back(item.toBool());
      return list;
    }
    case c10::TypeKind::IntType: {
      c10::List<int64_t> list;
      for (const auto& item : items) list.push_back(item.toInt());
      return list;
    }
    default: {
      c10::impl::GenericList list(element);
      list.reserve(items.size());
      for (const auto& item : items) list.push_back(item);
      return list;
    }
  }
}

Argument decode_argument(Reader& in, at::Device device, const c10::TypePtr& type, uint32_t slots,
                         uint32_t scalars, int depth) {
  Argument a;
  a.tag = in.u8();
  auto scalar = [&](uint32_t words) {
    a.scalar = static_cast<uint32_t>(in.bounded(kScalarsMax));
    if (a.scalar + words > scalars) throw CodecError("argument names a missing scalar");
  };
  switch (a.tag) {
    case kNone:
      break;
    case kTensor:
      a.slot = static_cast<uint32_t>(in.bounded(kSlotsMax));
      if (a.slot >= slots) throw CodecError("argument names a missing slot");
      a.meta = get_meta(in);
      break;
    case kUndefinedTensor:
      a.constant = at::Tensor();
      break;
    case kScalarTensor: {
      a.scalar = static_cast<uint32_t>(in.bounded(kScalarsMax));
      uint8_t dtype = in.u8();
      if (dtype >= static_cast<uint8_t>(at::ScalarType::Undefined))
        throw CodecError("unknown dtype");
      a.dtype = static_cast<at::ScalarType>(dtype);
      if (a.scalar + scalar_words(a.dtype) > scalars)
        throw CodecError("argument names a missing scalar");
      a.wrapped = in.u8() != 0;
      break;
    }
    case kInt:
      a.constant = in.zigzag();
      break;
    case kDouble:
      a.constant = in.f64();
      break;
    case kBool:
      a.constant = in.u8() != 0;
      break;
    case kComplex: {
      double re = in.f64();
      a.constant = c10::complex<double>(re, in.f64());
      break;
    }
    case kString:
      a.constant = in.string(kStringMax);
      break;
    case kVaryingDouble:
    case kVaryingInt:
      scalar(1);
      break;
    case kVaryingComplex:
      scalar(2);
      break;
    case kDevice:
      a.constant = decode_device(in.u8(), device);
      break;
    case kGenerator:
      break;
    case kList: {
      if (depth == 0) throw CodecError("list nested too deeply");
      uint64_t len = in.bounded(kListMax);
      auto element = element_type(type);
      bool constant = true;
      a.items.reserve(std::min<uint64_t>(len, 1024));
      for (uint64_t i = 0; i < len; ++i) {
        a.items.push_back(decode_argument(in, device, element, slots, scalars, depth - 1));
        constant = constant && !varies(a.items.back());
      }
      if (constant) {
        std::vector<c10::IValue> items;
        for (auto& item : a.items) items.push_back(item.constant);
        a.constant = build_list(items, type);
        a.items.clear();
      }
      break;
    }
    case kIntList: {
      uint64_t len = in.bounded(kListMax);
      c10::List<int64_t> list;
      list.reserve(std::min<uint64_t>(len, 1024));
      for (uint64_t i = 0; i < len; ++i) list.push_back(in.zigzag());
      a.constant = std::move(list);
      break;
    }
    default:
      throw CodecError("unknown argument tag");
  }
  return a;
}

void require_mutated(const Argument& a, const std::vector<bool>& mutated) {
  if (a.tag == kTensor && !mutated[a.slot])
    throw CodecError("the operator writes a slot that is not declared as written");
  for (const auto& item : a.items) require_mutated(item, mutated);
}

at::Tensor make_tensor(c10::StorageImpl* storage, const Meta& meta, at::Device device) {
  int64_t elements = 1;
  int64_t last = meta.offset;
  for (size_t i = 0; i < meta.sizes.size(); ++i) {
    if (__builtin_mul_overflow(elements, meta.sizes[i], &elements))
      throw CodecError("tensor larger than its storage");
    int64_t reach;
    if (__builtin_mul_overflow(std::max<int64_t>(meta.sizes[i] - 1, 0), meta.strides[i], &reach) ||
        __builtin_add_overflow(last, reach, &last))
      throw CodecError("tensor larger than its storage");
  }
  size_t item = c10::elementSize(meta.dtype);
  if (elements > 0 &&
      static_cast<unsigned __int128>(last + 1) * item > storage->nbytes())
    throw CodecError("tensor larger than its storage");
  auto key = device.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA;
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage)),
      c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(meta.dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      meta.sizes, meta.strides, std::optional<int64_t>(meta.offset));
  return tensor;
}

double word_double(uint64_t word) {
  double value;
  memcpy(&value, &word, 8);
  return value;
}

at::Tensor scalar_tensor(const Argument& a, const uint64_t* scalars) {
  c10::Scalar value;
  if (at::isComplexType(a.dtype))
    value = c10::complex<double>(word_double(scalars[a.scalar]),
                                 word_double(scalars[a.scalar + 1]));
  else if (at::isFloatingType(a.dtype))
    value = word_double(scalars[a.scalar]);
  else if (a.dtype == at::kBool)
    value = scalars[a.scalar] != 0;
  else
    value = static_cast<int64_t>(scalars[a.scalar]);
  auto tensor = at::detail::scalar_tensor_static(value, a.dtype, at::kCPU);
  if (a.wrapped) tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

c10::IValue value(const GenieTemplate& t, const Argument& a, const c10::TypePtr& type,
                  GenieStorage* const* inputs, const uint64_t* scalars) {
  switch (a.tag) {
    case kTensor:
      return make_tensor(impl(inputs[a.slot]), a.meta, t.device);
    case kScalarTensor:
      return scalar_tensor(a, scalars);
    case kVaryingDouble:
      return word_double(scalars[a.scalar]);
    case kVaryingInt:
      return static_cast<int64_t>(scalars[a.scalar]);
    case kVaryingComplex:
      return c10::complex<double>(word_double(scalars[a.scalar]),
                                  word_double(scalars[a.scalar + 1]));
    case kGenerator:
      return default_generator(t.device);
    case kList:
      if (!a.items.empty()) {
        std::vector<c10::IValue> items;
        items.reserve(a.items.size());
        auto element = element_type(type);
        for (const auto& item : a.items) items.push_back(value(t, item, element, inputs, scalars));
        return build_list(items, type);
      }
      return a.constant;
    default:
      return a.constant;
  }
}

bool is_returned(const c10::FunctionSchema& schema, size_t argument) {
  const auto* alias = schema.arguments()[argument].alias_info();
  for (const auto& result : schema.returns())
    if (alias && result.alias_info() && *result.alias_info() == *alias) return true;
  return false;
}

void call(const GenieTemplate& t, GenieStorage* const* inputs, const uint64_t* scalars,
          GenieGenerator* generator, torch::jit::Stack& stack) {
  stack.reserve(t.args.size());
  const auto& declared = t.op.schema().arguments();
  for (size_t i = 0; i < t.args.size(); ++i)
    stack.push_back(value(t, t.args[i], declared[i].type(), inputs, scalars));
  // An operator that returns several of its arguments returns references into the stack, which
  // PyTorch's boxing drops before it copies them: hold what they refer to.
  c10::SmallVector<c10::IValue, 4> held;
  const auto& returns = t.op.schema().returns();
  if (returns.size() > 1 && returns[0].alias_info()) held.append(stack.begin(), stack.end());
  c10::SmallVector<at::Tensor, 4> written;
  for (uint32_t i : t.unreturned) written.push_back(stack[i].toTensor());
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  SwapGenerator swap(t.random ? generator : nullptr);
  t.op.callBoxed(&stack);
  // The program's tensor keeps the size it has: going on would compute something else than eager.
  for (size_t i = 0; i < written.size(); ++i) {
    const Meta& meta = t.args[t.unreturned[i]].meta;
    if (!written[i].sizes().equals(meta.sizes)) {
      std::ostringstream said;
      said << t.name << " changed the size of its argument `" << declared[t.unreturned[i]].name()
           << "` from " << at::IntArrayRef(meta.sizes) << " to " << written[i].sizes()
           << ", which a tensor of this device does not follow; resize it before the call";
      throw std::runtime_error(said.str());
    }
  }
}

// The tensors among the results, lists flattened; others go to `rest` when it is not null.
void flatten(const torch::jit::Stack& stack, c10::SmallVector<at::Tensor, 4>& tensors,
             Writer* rest) {
  auto put = [&](const c10::IValue& v) {
    if (!rest) throw std::runtime_error("a result is not a tensor");
    if (v.isInt()) {
      rest->u8(kInt);
      rest->zigzag(v.toInt());
    } else if (v.isDouble()) {
      rest->u8(kDouble);
      double d = v.toDouble();
      rest->raw(&d, 8);
    } else if (v.isBool()) {
      rest->u8(kBool);
      rest->u8(v.toBool());
    } else if (v.isComplexDouble()) {
      auto c = v.toComplexDouble();
      rest->u8(kComplex);
      rest->raw(&c, 16);
    } else if (v.isNone()) {
      rest->u8(kNone);
    } else {
      throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                     "a result of type " + v.tagKind() + " cannot be sent");
    }
  };
  for (const auto& v : stack) {
    if (v.isTensor()) {
      tensors.push_back(v.toTensor());
    } else if (v.isTensorList()) {
      for (const at::Tensor& t : v.toTensorVector()) tensors.push_back(t);
    } else if (v.isList() && !v.isIntList()) {
      for (const auto& item : v.toListRef()) {
        if (item.isTensor())
          tensors.push_back(item.toTensor());
        else
          put(item);
      }
    } else {
      put(v);
    }
  }
}

bool fits(const at::Tensor& t, const Meta& meta) {
  return t.sizes().equals(at::IntArrayRef(meta.sizes)) && t.scalar_type() == meta.dtype;
}

bool same_layout(const at::Tensor& t, const Meta& meta) {
  if (t.storage_offset() != meta.offset) return false;
  for (size_t i = 0; i < meta.sizes.size(); ++i)
    if (meta.sizes[i] > 1 && t.strides()[i] != meta.strides[i]) return false;
  return true;
}

std::string describe(const at::Tensor& t) {
  std::ostringstream out;
  out << c10::toString(t.scalar_type()) << t.sizes() << " strides " << t.strides();
  return out.str();
}

std::string describe(const Meta& m) {
  std::ostringstream out;
  out << c10::toString(m.dtype) << at::IntArrayRef(m.sizes) << " strides "
      << at::IntArrayRef(m.strides);
  return out.str();
}

struct Mismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

StoragePtr new_storage(at::Device device, uint64_t bytes) {
  auto* allocator = c10::GetAllocator(device.type());
  c10::OptionalDeviceGuard guard;
  if (!device.is_cpu()) guard.reset_device(device);
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<size_t>(bytes), allocator->allocate(bytes),
      allocator, /*resizable=*/true);
}

// The result laid out as declared, in a storage of its own.
at::Tensor settle(const at::Tensor& result, const Meta& meta, uint64_t bytes, at::Device device) {
  at::Tensor plain = result.device() == device ? result : result.to(device);
  auto storage = new_storage(device, bytes);
  at::Tensor copy = make_tensor(storage.get(), meta, device);
  copy.copy_(plain);
  return copy;
}

bool is_input(const c10::StorageImpl* storage, GenieStorage* const* inputs, uint32_t slots) {
  for (uint32_t i = 0; i < slots; ++i)
    if (impl(inputs[i]) == storage) return true;
  return false;
}

StoragePtr own(const at::Tensor& t) {
  return StoragePtr::reclaim_copy(t.storage().unsafeGetStorageImpl());
}

// What PyTorch would print where nobody looks for it.
struct ToldWarnings final : c10::WarningHandler {
  std::atomic<void (*)(const char*)> tell{nullptr};
  void process(const c10::Warning& warning) override { tell.load()(warning.msg().c_str()); }

  void use_in_this_thread() {
    thread_local bool used = false;
    if (!used && tell.load()) c10::WarningUtils::set_warning_handler(this);
    used = used || tell.load();
  }
};

ToldWarnings& told_warnings() {
  static auto* told = new ToldWarnings;
  return *told;
}

// The settings of this process, and who runs under them.
class ProcessSettings {
 public:
  void enter(const std::string& wanted, int threads) {
    std::unique_lock<std::mutex> lock(mutex_);
    bool again = std::exchange(inside_here(), false);
    if (again) --inside_;
    if (again) free_.notify_all();
    free_.wait(lock, [&] { return inside_ == 0 || held_ == wanted; });
    ++inside_;
    inside_here() = true;
    held_ = wanted;
    if (!again) before_threads_ = at::get_num_threads();
    if (threads > 0 && at::get_num_threads() != threads) at::set_num_threads(threads);
    if (applied_ == wanted && of_thread() == wanted) return;
    std::string now = changed_settings(flushes_denormals());
    if (!again) before_ = now;
    applied_.reset();
    if (now != wanted) apply(wanted);
    applied_ = of_thread() = wanted;
  }

  void leave(bool restore) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!std::exchange(inside_here(), false)) return;
    --inside_;
    free_.notify_all();
    if (!restore) return;
    applied_.reset();
    if (at::get_num_threads() != before_threads_) at::set_num_threads(before_threads_);
    if (held_ != before_) apply(before_);
  }

 private:
  static void apply(const std::string& settings) {
    apply_settings(reinterpret_cast<const uint8_t*>(settings.data()), settings.size());
  }

  static bool& inside_here() {
    thread_local bool inside = false;
    return inside;
  }
  // What this thread has for itself may differ from what the process has.
  static std::optional<std::string>& of_thread() {
    thread_local std::optional<std::string> applied;
    return applied;
  }

  std::mutex mutex_;
  std::condition_variable free_;
  std::string held_;
  int inside_ = 0;
  // Known as long as nobody but this sets anything.
  std::optional<std::string> applied_;
  // What the process had before, for `restore`.
  std::string before_;
  int before_threads_ = 0;
};

ProcessSettings& process_settings() {
  static ProcessSettings instance;
  return instance;
}

// Why a device does not run an operator; empty when it does. Who lists operators and who binds them
// ask here.
std::string why_not(const c10::OperatorHandle& op, at::Device device) {
  if (std::string why = denied(op.schema()); !why.empty()) return why;
  if (withheld(op.schema())) return "it is left to the clients (genie-node --without)";
  auto key = device.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA;
  if (!op.hasComputedKernelForDispatchKey(key)) return "it has no kernel for this device";
  return {};
}

}  // namespace

extern "C" {

int genie_execute_init(GenieError* error) {
  return guarded(error, [] {
    at::globalContext();
    // It reads /proc/cpuinfo, which a process that is closed in later cannot.
    at::get_cpu_capability();
    // As its first seed comes from /dev/urandom.
    at::globalContext().defaultGenerator(at::kCPU);
    // The first operator pays for dispatch tables and thread pools: pay before anyone waits.
    at::empty({1}, at::kCPU).zero_();
  });
}

void genie_execute_count_memory() { count_memory(); }

void genie_execute_limit_memory(uint64_t bytes) { limit_memory(bytes); }

void genie_execute_scrub_memory() { scrub_memory(); }

void genie_execute_borrow_memory(uint64_t* in_use, const uint64_t* lease, bool (*more)(uint64_t)) {
  using Word = std::atomic<uint64_t>;
  static_assert(sizeof(Word) == sizeof(uint64_t) && Word::is_always_lock_free,
                "the words are Rust's AtomicU64");
  borrow_memory(reinterpret_cast<Word*>(in_use), reinterpret_cast<const Word*>(lease), more);
}

void genie_execute_memory_in_use(uint64_t* now, uint64_t* peak) {
  auto in_use = memory_in_use();
  *now = in_use.now;
  *peak = in_use.peak;
}

void genie_execute_tell_warnings(void (*tell)(const char*)) { told_warnings().tell = tell; }

int genie_execute_enter(const uint8_t* settings, size_t len, uint32_t threads,
                        GenieError* error) {
  return guarded(error, [&] {
    std::string wanted(reinterpret_cast<const char*>(settings), len);
    process_settings().enter(wanted, static_cast<int>(threads));
    told_warnings().use_in_this_thread();
  });
}

int genie_execute_leave(uint8_t restore, GenieError* error) {
  return guarded(error, [&] { process_settings().leave(restore != 0); });
}

uint32_t genie_execute_cuda_devices(GenieError* reason) {
  // Opening the library registers the CUDA kernels and hooks with the dispatcher, so that the
  // same binary serves both devices.
  static void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    fail(reason, kRuntime, dlerror());
    return 0;
  }
  uint32_t count = 0;
  int code = guarded(reason, [&] {
    if (!at::hasCUDA()) throw std::runtime_error("libtorch_cuda registered no CUDA hooks");
    count = static_cast<uint32_t>(at::getNumGPUs());
    if (count == 0) throw std::runtime_error("the CUDA driver reports no device");
#if GENIE_TORCH_AT_LEAST(2, 6)
    at::globalContext().lazyInitDevice(at::kCUDA);
#else
    at::globalContext().lazyInitCUDA();
#endif
  });
  return code == 0 ? count : 0;
}

uint64_t genie_execute_device_memory(GenieDevice device) {
  if (device.kind == 0) return 0;
  using MemGetInfo = int (*)(size_t*, size_t*);
  using SetDevice = int (*)(int);
  auto info = reinterpret_cast<MemGetInfo>(dlsym(RTLD_DEFAULT, "cudaMemGetInfo"));
  auto set = reinterpret_cast<SetDevice>(dlsym(RTLD_DEFAULT, "cudaSetDevice"));
  size_t free = 0, total = 0;
  if (!info || !set || set(device.index) != 0 || info(&free, &total) != 0) return 0;
  return total;
}

void genie_execute_device_name(GenieDevice device, char* out, size_t out_bytes) {
  if (device.kind == 0)
    snprintf(out, out_bytes, "CPU (libtorch %s)", TORCH_VERSION);
  else
    snprintf(out, out_bytes, "CUDA device %u (libtorch %s)", unsigned(device.index), TORCH_VERSION);
}

const char* genie_execute_torch_version() { return TORCH_VERSION; }

void genie_execute_ops(GenieDevice device,
                       void (*visit)(void*, const char*, uint64_t, const char*), void* context) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    auto op = dispatcher.findSchema(name);
    if (!op) continue;
    std::string why = why_not(*op, torch_device(device));
    visit(context, toString(name).c_str(), schema_hash(op->schema()), why.c_str());
  }
}

void genie_execute_withhold(const char* name) { withhold(name); }

int genie_execute_synchronize(GenieDevice device, GenieError* error) {
  if (device.kind == 0) return 0;
  return guarded(error, [&] {
    auto set = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "cudaSetDevice"));
    auto wait = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "cudaDeviceSynchronize"));
    if (!set || !wait) throw std::runtime_error("the CUDA runtime is not loaded");
    int code = set(device.index);
    if (code == 0) code = wait();
    if (code != 0) throw std::runtime_error("CUDA error " + std::to_string(code));
  });
}

int genie_template_new(const uint8_t* bytes, size_t len, GenieDevice device, GenieTemplate** out,
                       GenieError* error) {
  return guarded(error, [&] {
    Reader in(bytes, len);
    std::string name = in.string(kStringMax);
    std::string base = name, overload;
    // "ns::op.overload"; names themselves hold no dot.
    if (auto dot = name.find('.'); dot != std::string::npos) {
      base = name.substr(0, dot);
      overload = name.substr(dot + 1);
    }
    auto op = c10::Dispatcher::singleton().findSchema({base, overload});
    if (!op)
      throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                     "this node has no operator " + name);
    if (std::string why = why_not(*op, torch_device(device)); !why.empty())
      throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                     "this node does not run " + name + ": " + why);
    auto t = std::make_unique<GenieTemplate>(*op, name, torch_device(device));
    t->slots = static_cast<uint32_t>(in.bounded(kSlotsMax));
    t->scalars = static_cast<uint32_t>(in.bounded(kScalarsMax));
    std::vector<bool> mutated(t->slots);
    for (uint64_t i = in.bounded(t->slots); i > 0; --i) {
      uint64_t slot = in.bounded(kSlotsMax);
      if (slot >= t->slots) throw CodecError("mutated names a missing slot");
      mutated[slot] = true;
    }
    t->random = in.u8() != 0 || op->hasTag(at::Tag::nondeterministic_seeded);
    const auto& declared = op->schema().arguments();
    uint64_t args = in.bounded(kListMax);
    if (args != declared.size()) throw CodecError("wrong number of arguments");
    for (uint64_t i = 0; i < args; ++i) {
      t->args.push_back(
          decode_argument(in, t->device, declared[i].type(), t->slots, t->scalars, kNestingMax));
      // What is written must be declared: the store copies a shared weight before that.
      if (writes_argument(op->schema(), i)) {
        require_mutated(t->args.back(), mutated);
        if (t->args.back().tag == kTensor && !is_returned(op->schema(), i))
          t->unreturned.push_back(static_cast<uint32_t>(i));
      }
    }
    for (uint64_t i = in.bounded(kOutputsMax); i > 0; --i)
      t->new_storages.push_back(in.bounded(kStorageBytesMax));
    for (uint64_t i = in.bounded(kOutputsMax); i > 0; --i) {
      Output output;
      uint8_t kind = in.u8();
      if (kind > kOutputAlias) throw CodecError("unknown output kind");
      output.kind = static_cast<OutputKind>(kind);
      if (kind != kOutputUndefined) {
        output.index = static_cast<uint32_t>(in.bounded(kSlotsMax));
        uint64_t limit = kind == kOutputNew ? t->new_storages.size() : t->slots;
        if (output.index >= limit) throw CodecError("output names a missing storage");
        output.meta = get_meta(in);
      }
      t->outputs.push_back(std::move(output));
    }
    if (!in.done()) throw CodecError("bytes after the template's end");
    *out = t.release();
  });
}

void genie_template_free(GenieTemplate* tmpl) { delete tmpl; }

int genie_template_run(GenieTemplate* tmpl, GenieStorage* const* inputs, const uint64_t* scalars,
                       GenieGenerator* generator, GenieStorage** outputs, GenieError* error) {
  const GenieTemplate& t = *tmpl;
  c10::SmallVector<StoragePtr, 4> made(t.new_storages.size());
  bool mismatch = false;
  int code = guarded(error, [&] {
    torch::jit::Stack stack;
    call(t, inputs, scalars, generator, stack);
    c10::SmallVector<at::Tensor, 4> results;
    flatten(stack, results, nullptr);
    auto differs = [&](size_t i, const std::string& found, const std::string& expected) {
      mismatch = true;
      throw Mismatch("output " + std::to_string(i) + " is " + found + ", the client inferred " +
                     expected);
    };
    if (results.size() != t.outputs.size())
      differs(0, std::to_string(results.size()) + " tensors", std::to_string(t.outputs.size()));
    for (size_t i = 0; i < results.size(); ++i) {
      const Output& expect = t.outputs[i];
      const at::Tensor& result = results[i];
      if (expect.kind == kOutputUndefined) {
        if (result.defined()) differs(i, describe(result), "undefined");
        continue;
      }
      if (!result.defined()) differs(i, "undefined", describe(expect.meta));
      if (!fits(result, expect.meta)) differs(i, describe(result), describe(expect.meta));
      auto* storage = result.storage().unsafeGetStorageImpl();
      if (expect.kind == kOutputAlias) {
        if (storage != impl(inputs[expect.index]))
          differs(i, "a new tensor", "a view of input " + std::to_string(expect.index));
        continue;
      }
      StoragePtr& slot = made[expect.index];
      bool shared = slot && slot.get() == storage;
      bool usable = same_layout(result, expect.meta) && (!slot || shared) &&
                    storage->nbytes() >= t.new_storages[expect.index] &&
                    !is_input(storage, inputs, t.slots) && result.device() == t.device;
      if (usable) {
        for (size_t other = 0; other < made.size() && usable; ++other)
          usable = other == expect.index || made[other].get() != storage;
      }
      if (usable) {
        if (!slot) slot = own(result);
      } else {
        slot = own(settle(result, expect.meta, t.new_storages[expect.index], t.device));
      }
    }
    for (size_t i = 0; i < made.size(); ++i) {
      if (!made[i]) made[i] = new_storage(t.device, t.new_storages[i]);
    }
  });
  if (code != 0) {
    if (mismatch) error->code = kTemplateMismatch;
    return error->code;
  }
  for (size_t i = 0; i < made.size(); ++i) outputs[i] = handle(std::move(made[i]));
  return 0;
}

int genie_template_run_dynamic(GenieTemplate* tmpl, GenieStorage* const* inputs,
                               const uint64_t* scalars, GenieGenerator* generator,
                               GenieStorage** outputs, uint64_t reserve, uint64_t* n_outputs,
                               void (*write)(void*, const uint8_t*, size_t), void* context,
                               GenieError* error) {
  const GenieTemplate& t = *tmpl;
  std::vector<StoragePtr> made;
  Writer body;
  int code = guarded(error, [&] {
    torch::jit::Stack stack;
    call(t, inputs, scalars, generator, stack);
    c10::SmallVector<at::Tensor, 4> results;
    Writer rest, described;
    flatten(stack, results, &rest);
    for (const at::Tensor& found : results) {
      if (!found.defined()) {
        described.u8(kOutputUndefined);
        continue;
      }
      at::Tensor result = found;
      if (result.layout() != at::kStrided)
        throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                       t.name + " returns a tensor that is not strided");
      if (result.dim() > static_cast<int64_t>(kDimsMax))
        throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                       t.name + " returns a tensor of too many dimensions");
      if (result.is_conj() || result.is_neg()) result = result.resolve_conj().resolve_neg();
      if (result.device() != t.device) result = result.to(t.device);
      auto* storage = result.storage().unsafeGetStorageImpl();
      uint32_t slot = 0;
      while (slot < t.slots && impl(inputs[slot]) != storage) ++slot;
      if (slot < t.slots) {
        described.u8(kOutputAlias);
        described.varint(slot);
      } else {
        size_t index = 0;
        while (index < made.size() && made[index].get() != storage) ++index;
        if (index == made.size()) {
          if (made.size() >= reserve)
            throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                           t.name + " returns more tensors than were reserved");
          made.push_back(own(result));
        }
        described.u8(kOutputNew);
        described.varint(index);
      }
      put_meta(described, result);
    }
    if (results.size() > kOutputsMax)
      throw c10::NotImplementedError({__func__, __FILE__, __LINE__},
                                     t.name + " returns more tensors than a reply describes");
    body.varint(made.size());
    for (const auto& storage : made) body.varint(storage->nbytes());
    body.varint(results.size());
    body.raw(described.data(), described.size());
    body.varint(rest.size());
    body.raw(rest.data(), rest.size());
  });
  if (code != 0) return code;
  for (size_t i = 0; i < made.size(); ++i) outputs[i] = handle(std::move(made[i]));
  *n_outputs = made.size();
  write(context, body.data(), body.size());
  return 0;
}

int genie_storage_new(GenieDevice device, uint64_t bytes, GenieStorage** out, GenieError* error) {
  return guarded(error, [&] { *out = handle(new_storage(torch_device(device), bytes)); });
}

int genie_storage_over(void* data, uint64_t bytes, void* owner, void (*let_go)(void*),
                       GenieStorage** out, GenieError* error) {
  c10::DataPtr memory(data, owner, let_go, at::kCPU);
  return guarded(error, [&] {
    *out = handle(c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), static_cast<size_t>(bytes), std::move(memory),
        c10::GetAllocator(at::kCPU), /*resizable=*/false));
  });
}

void genie_storage_free(GenieStorage* storage) { StoragePtr::reclaim(impl(storage)); }

uint64_t genie_storage_bytes(const GenieStorage* storage) { return impl(storage)->nbytes(); }

uint8_t* genie_storage_data(GenieStorage* storage) {
  auto* s = impl(storage);
  return s->device().is_cpu() ? static_cast<uint8_t*>(s->mutable_data()) : nullptr;
}

static at::Tensor bytes_of(c10::StorageImpl* storage, uint64_t offset, uint64_t len) {
  if (offset > storage->nbytes() || len > storage->nbytes() - offset)
    throw CodecError("range outside the storage");
  Meta meta;
  meta.dtype = at::kByte;
  meta.offset = static_cast<int64_t>(offset);
  meta.sizes = {static_cast<int64_t>(len)};
  meta.strides = {1};
  return make_tensor(storage, meta, storage->device());
}

int genie_storage_copy_in(GenieStorage* storage, uint64_t offset, const void* from, uint64_t len,
                          GenieError* error) {
  return guarded(error, [&] {
    auto* s = impl(storage);
    if (s->device().is_cpu()) {
      if (offset > s->nbytes() || len > s->nbytes() - offset)
        throw CodecError("range outside the storage");
      if (len) memcpy(static_cast<uint8_t*>(s->mutable_data()) + offset, from, len);
      return;
    }
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    auto source = at::from_blob(const_cast<void*>(from), {static_cast<int64_t>(len)}, at::kByte);
    bytes_of(s, offset, len).copy_(source);
  });
}

int genie_storage_copy_out(const GenieStorage* storage, uint64_t offset, void* to, uint64_t len,
                           GenieError* error) {
  return guarded(error, [&] {
    auto* s = const_cast<c10::StorageImpl*>(impl(storage));
    if (s->device().is_cpu()) {
      if (offset > s->nbytes() || len > s->nbytes() - offset)
        throw CodecError("range outside the storage");
      if (len) memcpy(to, static_cast<const uint8_t*>(s->data()) + offset, len);
      return;
    }
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    auto target = at::from_blob(to, {static_cast<int64_t>(len)}, at::kByte);
    target.copy_(bytes_of(s, offset, len));
  });
}

int genie_storage_clone(const GenieStorage* storage, GenieStorage** out, GenieError* error) {
  return guarded(error, [&] {
    auto* from = const_cast<c10::StorageImpl*>(impl(storage));
    auto copy = new_storage(from->device(), from->nbytes());
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    bytes_of(copy.get(), 0, from->nbytes()).copy_(bytes_of(from, 0, from->nbytes()));
    *out = handle(std::move(copy));
  });
}

int genie_storage_resize(GenieStorage* storage, uint64_t bytes, GenieError* error) {
  return guarded(error, [&] {
    auto* s = impl(storage);
    auto grown = new_storage(s->device(), bytes);
    uint64_t keep = std::min<uint64_t>(bytes, s->nbytes());
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    bytes_of(grown.get(), 0, keep).copy_(bytes_of(s, 0, keep));
    s->set_data_ptr(std::move(grown->mutable_data_ptr()));
    s->set_nbytes(bytes);
  });
}

int genie_generator_new(GenieDevice device, GenieGenerator** out, GenieError* error) {
  return guarded(error, [&] {
    auto where = torch_device(device);
    auto own = default_generator(where).clone();
    own.set_current_seed(c10::default_rng_seed_val);
    *out = new GenieGenerator{where, own};
  });
}

void genie_generator_free(GenieGenerator* generator) { delete generator; }

int genie_generator_seed(GenieGenerator* generator, uint64_t seed, GenieError* error) {
  return guarded(error, [&] { generator->own.set_current_seed(seed); });
}

int genie_generator_state(GenieGenerator* generator, uint8_t* out, size_t* len,
                          GenieError* error) {
  return guarded(error, [&] {
    auto state = generator->own.get_state();
    size_t bytes = static_cast<size_t>(state.numel());
    if (bytes > *len) throw std::runtime_error("generator state larger than its buffer");
    memcpy(out, state.data_ptr(), bytes);
    *len = bytes;
  });
}

int genie_generator_set_state(GenieGenerator* generator, const uint8_t* state, size_t len,
                              GenieError* error) {
  return guarded(error, [&] {
    auto tensor = at::empty({static_cast<int64_t>(len)}, at::kByte);
    memcpy(tensor.data_ptr(), state, len);
    generator->own.set_state(tensor);
  });
}

}  // extern "C"
