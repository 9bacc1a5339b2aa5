// Recording an operator.
//
// 1. Encode the arguments: tensors become slots, numbers that cannot change a shape become
//    varying words. The bytes are the key.
// 2. A known key is a template: append a record, make the results' tensors, done (~1 us).
// 3. A new key: infer the results (rules, structured shape functions, then PyTorch's Python
//    metas once they have agreed with the node), define a template, append.
// 4. Where that fails, or shapes depend on data: run on the node now and learn the results. What
//    eager would refuse is refused there, in eager's words.
// 5. What is too large for one record is divided (divide.cpp).
// 6. What the node cannot run at all runs on this CPU.
#include "op.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/enum_tag.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>

#include <algorithm>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "../python_error.h"
#include "metas.h"
#include "names.h"
#include "script.h"
#include "settings.h"
#include "../torch_version.h"

namespace genie {

std::atomic<bool> log_intercepts{false};
std::atomic<bool> meta_infer{true};
std::atomic<bool> metas_imported{false};
std::atomic<bool> aten_impl{true};

std::mutex capture_mutex;

CaptureCounters& counters() {
  static CaptureCounters instance;
  return instance;
}

namespace {

// How often a Meta kernel must agree with the node before it is believed.
constexpr int kTrusted = 2;
// How often the node runs a kind of call before a Meta kernel is asked that may import for seconds.
constexpr int kUnaskedMax = 8;
// Storages reserved for an operator that returns a list of tensors.
constexpr uint64_t kListReserve = 1024;
static_assert(kListReserve + 64 <= kRunReserveMax, "beside a list an operator returns few tensors");
// Arguments of so few bytes are within every limit of a record: a slot takes more than one.
constexpr size_t kSmallBytes = 4096;
static_assert(kSmallBytes <= kScalarsMax && kSmallBytes <= kSlotsMax, "each takes a byte");
// Bytes of a template beside its arguments, outputs and mutated slots: name, counts, flags.
constexpr size_t kHeadBytes = 1024;
// Signatures of accepted calls that one operator remembers; then it asks anew.
constexpr size_t kAcceptedMax = 1 << 14;
// Comparisons of arguments that lie in one storage, before they count as overlapping.
constexpr int kComparisonsMax = 1 << 12;

uint64_t mark_counter = 0;
std::atomic<uint64_t> template_generation{0};

const std::unordered_map<std::string, c10::KernelFunction>& structured_metas() {
  static const auto* table = [] {
    auto* t = new std::unordered_map<std::string, c10::KernelFunction>;
    for (auto& row : metas()) {
      std::string name = row.name;
      if (*row.overload) name += std::string(".") + row.overload;
      t->emplace(std::move(name), std::move(row.kernel));
    }
    return t;
  }();
  return *table;
}

// In a handler: lets a KeyboardInterrupt pass that arrived while Python code computed shapes. It
// comes as torch's exception or as pybind11's, whose text begins with the class.
void rethrow_interrupt() {
  try {
    throw;
  } catch (const python_error& e) {
    if (tape().must_propagate(e.type)) throw;
  } catch (const std::exception& e) {
    // PyTorch's own errors take milliseconds to tell their text: it has a backtrace.
    if (!strstr(typeid(e).name(), "error_already_set")) return;
    std::string_view text = e.what();
    for (const char* name : {"KeyboardInterrupt", "SystemExit", "GeneratorExit"})
      if (text.rfind(name, 0) == 0) throw;
  }
}

// Operators whose floating scalars decide the shape of the result.
bool shape_from_values(const std::string& name) {
  return starts_with_any(name, {"aten::arange", "aten::linspace", "aten::logspace", "aten::range",
                                "aten::upsample", "aten::_upsample", "aten::histc",
                                "aten::_histogram", "aten::histogram", "aten::pow",
                                "aten::_foreach_pow"});
}

// Operators that take CPU index tensors beside device tensors, as on any accelerator.
bool takes_cpu_indices(const std::string& name) {
  return starts_with_any(name, {"aten::index", "aten::_index_put", "aten::_unsafe_index"});
}

uint64_t word_of(double value) {
  uint64_t word;
  memcpy(&word, &value, 8);
  return word;
}

[[noreturn]] void mixed_devices(const std::string& name, const at::Tensor& t) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two ",
              "devices, remote_accelerator:0 and ", t.device(), "! (when checking argument in ",
              "method ", name, ")");
}

// Operators on the CPU come here by a generator of this device alone.
void refuse_generator_beside_cpu(const c10::IValue* args, size_t n) {
  bool ours = false;
  for (size_t i = 0; i < n; ++i) {
    if (args[i].isTensor() && is_remote(args[i].toTensor())) return;
    ours = ours || (args[i].isGenerator() && args[i].toGenerator().device().type() == kRemote);
  }
  TORCH_CHECK(!ours, "Expected a 'cpu' device type for generator but found 'remote_accelerator'");
}

// A tensor whose conjugation or negation is only a flag, with it carried out.
at::Tensor settled(const at::Tensor& t) {
  if (!t.defined() || !(t.is_conj() || t.is_neg())) return t;
  at::Tensor plain = t;
  if (t.is_neg()) plain = at::_neg_view(plain);
  if (t.is_conj()) plain = at::_conj(plain);
  if (t.is_conj()) plain = at::conj_physical(plain);
  return t.is_neg() ? at::neg(plain) : plain;
}

c10::IValue settled(const c10::IValue& v) {
  if (v.isTensor()) return settled(v.toTensor());
  if (!v.isTensorList()) return v;
  c10::List<at::Tensor> list;
  for (const at::Tensor& t : v.toTensorVector()) list.push_back(settled(t));
  return list;
}

}  // namespace

uint64_t key_hash(std::string_view bytes) {
  uint64_t hash = bytes.size() * 0x9e3779b97f4a7c15ull;
  const char* at = bytes.data();
  size_t left = bytes.size();
  while (left >= 8) {
    uint64_t word;
    memcpy(&word, at, 8);
    hash = (hash ^ word) * 0xff51afd7ed558ccdull;
    hash ^= hash >> 32;
    at += 8;
    left -= 8;
  }
  uint64_t word = 0;
  memcpy(&word, at, left);
  hash = (hash ^ word) * 0xff51afd7ed558ccdull;
  return hash ^ (hash >> 29);
}

uint64_t next_mark() { return ++mark_counter; }

uint64_t forgotten_so_far() { return template_generation.load(std::memory_order_acquire); }

void start_over() {
  tape().forget_templates();
  forget_templates();
}

// The encoded arguments of one call.
struct Encoder {
  enum Outcome { kOk, kUnsupported, kTooLarge, kMixed, kLazyBits };

  Writer bytes;          // the template's key
  size_t arguments = 0;  // how many of them are arguments
  const GenieSettings* settings = nullptr;
  c10::SmallVector<uint64_t, 16> inputs;                 // storage ids by slot
  c10::SmallVector<const c10::StorageImpl*, 16> storages;  // by slot
  c10::SmallVector<uint64_t, 8> scalars;
  c10::SmallVector<uint32_t, 4> mutated;
  c10::SmallVector<uint8_t, 16> written;                 // by slot: whether it is in `mutated`
  const at::Tensor* stranger = nullptr;                  // the CPU tensor of kMixed
  c10::optional<at::Generator> generator;                // not the default one
  const char* reason = nullptr;
  uint64_t mark = 0;

  // Under the capture lock. `args` points at the call's first argument.
  Outcome encode(const Operator& op, const c10::IValue* args) {
    bytes.clear();
    inputs.clear();
    storages.clear();
    scalars.clear();
    mutated.clear();
    written.clear();
    generator.reset();
    stranger = nullptr;
    mark = next_mark();
    for (size_t i = 0; i < op.arguments_.size(); ++i) {
      const auto& argument = op.arguments_[i];
      if (auto outcome = put(args[i], argument.number && !op.values_shape_, !op.values_shape_,
                             argument.writes, kNestingMax);
          outcome != kOk)
        return outcome;
    }
    arguments = bytes.size();
    // Shapes, dtypes and layouts of results may depend on them.
    if (C10_UNLIKELY(settings->hash != 0)) bytes.u64(settings->hash);
    return C10_LIKELY(arguments <= kSmallBytes) ? kOk : fits_one_record();
  }

  Outcome fits_one_record() {
    if (inputs.size() > kSlotsMax)
      reason = "its tensors have more storages than one record names";
    else if (scalars.size() > kScalarsMax)
      reason = "its arguments are more numbers than one record carries";
    else if (bytes.size() + 5 * mutated.size() + kHeadBytes > kTemplateBytesMax)
      reason = "the layout of its arguments does not fit one record";
    else
      return kOk;
    return kTooLarge;
  }

  uint32_t slot_of(const at::Tensor& t) {
    auto* storage = t.storage().unsafeGetStorageImpl();
    auto& r = remote(*storage);
    if (r.mark != mark) {
      r.mark = mark;
      r.slot = static_cast<uint32_t>(inputs.size());
      inputs.push_back(r.id);
      storages.push_back(storage);
      written.push_back(0);
    }
    return r.slot;
  }

  Outcome put_tensor(const at::Tensor& t, bool writes) {
    if (!t.defined()) {
      bytes.u8(kUndefinedTensor);
      return kOk;
    }
    if (C10_LIKELY(t.device().type() == kRemote)) {
      if (t.layout() != at::kStrided || t.is_quantized()) {
        reason = "sparse and quantized tensors stay on the client";
        return kUnsupported;
      }
      if (C10_UNLIKELY(t.is_conj() || t.is_neg())) return kLazyBits;
      if (C10_UNLIKELY(t.unsafeGetTensorImpl()->has_named_tensor_meta()))
        TORCH_CHECK_NOT_IMPLEMENTED(false, "remote_accelerator holds no named tensors, which "
                                    "PyTorch deprecates: drop the names by x.rename(None)");
      if (C10_UNLIKELY(t.dim() > static_cast<int64_t>(kDimsMax))) {
        reason = "a tensor has more dimensions than one record carries";
        return kUnsupported;
      }
      uint32_t slot = slot_of(t);
      bytes.u8(kTensor);
      bytes.varint(slot);
      put_meta(bytes, t);
      if (writes && !written[slot]) {
        written[slot] = 1;
        mutated.push_back(slot);
      }
      return kOk;
    }
    if (t.device().is_cpu() && t.dim() == 0 && !writes && t.layout() == at::kStrided)
      return put_scalar_tensor(t);
    stranger = &t;
    return kMixed;
  }

  Outcome put_scalar_tensor(const at::Tensor& t) {
    bytes.u8(kScalarTensor);
    bytes.varint(scalars.size());
    bytes.u8(static_cast<uint8_t>(t.scalar_type()));
    bytes.u8(t.unsafeGetTensorImpl()->is_wrapped_number());
    switch (t.scalar_type()) {
      case at::kDouble: scalars.push_back(word_of(*t.const_data_ptr<double>())); break;
      case at::kLong: scalars.push_back(*t.const_data_ptr<int64_t>()); break;
      case at::kBool: scalars.push_back(*t.const_data_ptr<bool>()); break;
      case at::kFloat: scalars.push_back(word_of(*t.const_data_ptr<float>())); break;
      default: {
        auto value = t.item();
        if (value.isComplex()) {
          auto c = value.toComplexDouble();
          scalars.push_back(word_of(c.real()));
          scalars.push_back(word_of(c.imag()));
        } else if (value.isFloatingPoint()) {
          scalars.push_back(word_of(value.toDouble()));
        } else {
          scalars.push_back(static_cast<uint64_t>(value.toLong()));
        }
      }
    }
    return kOk;
  }

  Outcome put(const c10::IValue& v, bool int_varies, bool double_varies, bool writes,
              uint64_t depth) {
    if (v.isTensor()) return put_tensor(v.toTensor(), writes);
    if (v.isNone()) {
      bytes.u8(kNone);
    } else if (v.isInt()) {
      if (int_varies) {
        bytes.u8(kVaryingInt);
        bytes.varint(scalars.size());
        scalars.push_back(static_cast<uint64_t>(v.toInt()));
      } else {
        bytes.u8(kInt);
        bytes.zigzag(v.toInt());
      }
    } else if (v.isDouble()) {
      if (double_varies) {
        bytes.u8(kVaryingDouble);
        bytes.varint(scalars.size());
        scalars.push_back(word_of(v.toDouble()));
      } else {
        bytes.u8(kDouble);
        bytes.u64(word_of(v.toDouble()));
      }
    } else if (v.isBool()) {
      bytes.u8(kBool);
      bytes.u8(v.toBool());
    } else if (v.isIntList()) {
      auto list = v.toIntList();
      if (list.size() > kListMax) return too_long();
      bytes.u8(kIntList);
      bytes.varint(list.size());
      for (int64_t item : list) bytes.zigzag(item);
    } else if (v.isList()) {
      auto list = v.toListRef();
      if (list.size() > kListMax) return too_long();
      if (depth == 0) {
        reason = "its lists are nested too deeply";
        return kUnsupported;
      }
      bytes.u8(kList);
      bytes.varint(list.size());
      // Numbers of a declared Scalar[] vary; those of a float[] may be scale factors.
      for (const auto& item : list)
        if (auto outcome = put(item, int_varies, int_varies, writes, depth - 1); outcome != kOk)
          return outcome;
    } else if (v.isString()) {
      if (v.toStringRef().size() > kStringMax) {
        reason = "a text is longer than one record carries";
        return kUnsupported;
      }
      bytes.u8(kString);
      bytes.string(v.toStringRef());
    } else if (v.isDevice()) {
      auto device = v.toDevice();
      bytes.u8(kDevice);
      bytes.u8(device.type() == kRemote ? static_cast<uint8_t>(std::max<int>(device.index(), 0))
                                        : kCpuDevice);
    } else if (v.isComplexDouble()) {
      auto c = v.toComplexDouble();
      bytes.u8(kComplex);
      bytes.u64(word_of(c.real()));
      bytes.u64(word_of(c.imag()));
    } else if (v.isGenerator()) {
      auto g = v.toGenerator();
      TORCH_CHECK(g.device().type() == kRemote,
                  "Expected a 'remote_accelerator' device type for generator but found '",
                  g.device().type(), "'");
      if (g.unsafeGetGeneratorImpl() != default_generator().unsafeGetGeneratorImpl())
        generator = g;
      bytes.u8(kGenerator);
    } else if (v.isSymInt()) {
      bytes.u8(kInt);
      bytes.zigzag(v.toSymInt().guard_int(__FILE__, __LINE__));
    } else {
      reason = "an argument's type has no encoding";
      return kUnsupported;
    }
    return kOk;
  }

  Outcome too_long() {
    reason = "a list is longer than one record carries";
    return kTooLarge;
  }
};

namespace {

// Encoders by depth: a wait inside a call may run Python code that records operators.
struct EncoderLease {
  EncoderLease() {
    auto& stack = pool();
    if (depth() == stack.size()) stack.push_back(std::make_unique<Encoder>());
    encoder = stack[depth()++].get();
  }
  ~EncoderLease() { --depth(); }
  Encoder* encoder;

 private:
  static std::vector<std::unique_ptr<Encoder>>& pool() {
    thread_local std::vector<std::unique_ptr<Encoder>> encoders;
    return encoders;
  }
  static size_t& depth() {
    thread_local size_t value = 0;
    return value;
  }
};

}  // namespace

// A defined template: what a record of it makes.
struct Template {
  std::string key;
  uint32_t id = 0;
  uint32_t new_storages = 0;
  struct Made {
    bool defined = true;
    int32_t storage = 0;  // index among the record's new storages
    uint64_t bytes = 0;
    Meta meta;
  };
  std::vector<Made> made;            // new tensors, in order of return
  std::vector<uint32_t> list_sizes;  // of each returned list
};

struct Operator::Cache {
  std::unordered_map<uint64_t, std::vector<std::shared_ptr<const Template>>> templates;
  uint64_t generation = 0;
  // A loop repeats the template it used last: look there first.
  std::shared_ptr<const Template> last;

  const std::shared_ptr<const Template>* find(std::string_view key, uint64_t hash) {
    if (generation != template_generation.load(std::memory_order_acquire)) {
      templates.clear();
      last.reset();
      generation = template_generation.load(std::memory_order_acquire);
    }
    if (last && last->key == key) return &last;
    auto found = templates.find(hash);
    if (found == templates.end()) return nullptr;
    for (auto& candidate : found->second)
      if (candidate->key == key) {
        last = candidate;
        return &candidate;
      }
    return nullptr;
  }
  void insert(uint64_t hash, std::shared_ptr<const Template> tmpl) {
    last = tmpl;
    templates[hash].push_back(std::move(tmpl));
  }
};

void forget_templates() { template_generation.fetch_add(1, std::memory_order_acq_rel); }

Operator::Operator(c10::OperatorHandle handle)
    : handle_(handle),
      name_(op_name(handle)),
      hash_(schema_hash(handle.schema())),
      cache_(std::make_unique<Cache>()) {
  const auto& schema = handle.schema();
  bool scalar_results = false;
  size_t lists = 0;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    Argument argument;
    auto type = schema.arguments()[i].type();
    if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    if (auto list = type->cast<c10::ListType>()) type = list->getElementType();
    argument.number = type->kind() == c10::TypeKind::NumberType;
    argument.dim = type->kind() == c10::TypeKind::IntType &&
                   starts(schema.arguments()[i].name(), "dim");
    argument.writes = writes_argument(schema, i);
    random_ = random_ || type->kind() == c10::TypeKind::GeneratorType;
    arguments_.push_back(argument);
  }
  for (const auto& r : schema.returns()) {
    Return result;
    auto type = r.type();
    if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    result.tensor = type->kind() == c10::TypeKind::TensorType;
    if (auto list = type->cast<c10::ListType>())
      result.list = list->getElementType()->kind() == c10::TypeKind::TensorType;
    if (r.alias_info() && r.alias_info()->isWrite()) {
      for (size_t i = 0; i < schema.arguments().size(); ++i) {
        const auto* alias = schema.arguments()[i].alias_info();
        if (alias && alias->isWrite() && alias->beforeSets() == r.alias_info()->beforeSets())
          result.argument = static_cast<int>(i);
      }
    }
    scalar_results = scalar_results || (!result.tensor && !result.list);
    lists += result.list && result.argument < 0;
    returns_.push_back(result);
  }
  ambiguous_lists_ = lists > 1;
  dynamic_ = scalar_results || handle.hasTag(at::Tag::dynamic_output_shape) ||
             handle.hasTag(at::Tag::data_dependent_output);
  mask_decides_ = name_ == "aten::index.Tensor" || name_ == "aten::_unsafe_index.Tensor";
  random_ = random_ || handle.hasTag(at::Tag::nondeterministic_seeded);
  for (const auto& argument : arguments_) writes_ = writes_ || argument.writes;
  pointwise_ = handle.hasTag(at::Tag::pointwise);
  for (const char* part : {"bitwise_", "shift", "gcd", "lcm"})
    integers_only_ = integers_only_ || name_.find(part) != std::string::npos;
  multiplies_ = !pointwise_ && !starts(name_, "aten::_foreach_") &&
                !starts(name_, "aten::_fused_adam") && !starts(name_, "aten::_fused_sgd");
  picky_ = is_picky(name_);
  masks_ = takes_masks(name_);
  indices_ = takes_indices(name_);
  doubt_ = doubt_for(name_);
  doubt_of_numbers_ = doubt_of_numbers_for(name_);
  values_shape_ = picky_ || shape_from_values(name_);
  rule_ = rule_for(name_);
  auto found = structured_metas().find(name_);
  if (found != structured_metas().end()) structured_ = &found->second;
}

Operator::~Operator() = default;

bool Operator::node_runs_it() {
  uint64_t session = tape().session();
  if (node_session_ != session) {
    node_has_ = tape().node_has_op(hash_) != 0;
    node_session_ = session;
  }
  return node_has_;
}

void Operator::record(torch::jit::Stack* stack) {
  ensure();
  uint64_t begin = ticks();
  uint64_t waited_before = waited_ticks();
  struct Timer {
    uint64_t begin, waited_before;
    ~Timer() {
      uint64_t spent = ticks() - begin, waited = waited_ticks() - waited_before;
      counters().capture_ticks.fetch_add(spent > waited ? spent - waited : 0,
                                         std::memory_order_relaxed);
    }
  } timer{begin, waited_before};

  if (C10_UNLIKELY(log_intercepts.load(std::memory_order_relaxed)))
    fprintf(stderr, "genie: intercepted %s\n", name_.c_str());
  if (C10_UNLIKELY(!aten_impl.load(std::memory_order_relaxed)))
    return fall_back(stack, "GENIE_ENABLE_ATEN_IMPL=0");
  if (C10_UNLIKELY(!node_runs_it()))
    return fall_back(stack, "the node has no operator with this name and schema");

  EncoderLease lease;
  Encoder& encoder = *lease.encoder;
  const c10::IValue* args = stack->data() + (stack->size() - arguments_.size());
  Encoder::Outcome outcome;
  bool doubtful = C10_UNLIKELY(doubt_of_numbers_ != nullptr) && doubt_of_numbers_(args);
  encoder.settings = &current_settings(multiplies_);
  {
    std::unique_lock<std::mutex> lock(capture_mutex);
    outcome = encoder.encode(*this, args);
    if (C10_LIKELY(outcome == Encoder::kOk && !is_dynamic(args) && !encoder.generator &&
                   !doubtful)) {
      auto key = encoder.bytes.view();
      if (const auto* found = cache_->find(key, key_hash(key))) {
        auto tmpl = *found;
        if (C10_UNLIKELY(notes() != nullptr)) notes()->writes(encoder.storages, encoder.mutated);
        uint64_t first =
            tape().op(encoder.settings, tmpl->id, encoder.inputs.data(), encoder.inputs.size(),
                      encoder.scalars.data(), encoder.scalars.size(), tmpl->new_storages);
        lock.unlock();
        if (C10_UNLIKELY(first == kNoRoom)) too_many_storages();
        counters().ops.fetch_add(1, std::memory_order_relaxed);
        counters().hits.fetch_add(1, std::memory_order_relaxed);
        return emit(stack, *tmpl, first);
      }
    }
  }
  if (outcome == Encoder::kUnsupported) return fall_back(stack, encoder.reason);
  if (outcome == Encoder::kTooLarge) return divide(stack, encoder.reason);
  if (outcome == Encoder::kLazyBits) {
    size_t base = stack->size() - arguments_.size();
    for (size_t i = base; i < stack->size(); ++i) (*stack)[i] = settled((*stack)[i]);
    return record(stack);
  }
  if (outcome == Encoder::kMixed) {
    if (takes_cpu_indices(name_) && move_indices(stack)) return record(stack);
    if (!starts(name_, "aten::"))
      return fall_back(stack, "an argument lives on the client's CPU");
    refuse_generator_beside_cpu(args, arguments_.size());
    mixed_devices(name_, *encoder.stranger);
  }
  if (encoder.generator) {
    auto generator = *encoder.generator;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      auto& v = (*stack)[stack->size() - arguments_.size() + i];
      if (v.isGenerator()) v = default_generator();
    }
    return with_generator(generator, [&] { record(stack); });
  }
  miss(stack, encoder);
}

// Copies CPU index tensors to the device. Returns whether there were any.
bool Operator::move_indices(torch::jit::Stack* stack) {
  bool moved = false;
  size_t base = stack->size() - arguments_.size();
  auto move = [&](const at::Tensor& t) {
    moved = true;
    return t.to(at::Device(kRemote, 0));
  };
  auto movable = [](const c10::IValue& v) {
    return v.isTensor() && v.toTensor().defined() && v.toTensor().device().is_cpu() &&
           (at::isIntegralType(v.toTensor().scalar_type(), true));
  };
  for (size_t i = 1; i < arguments_.size(); ++i) {
    auto& v = (*stack)[base + i];
    if (v.isTensor()) continue;
    if (!v.isList() || v.isIntList()) continue;
    c10::impl::GenericList list(v.isTensorList() ? c10::TypePtr(c10::TensorType::get())
                                                 : v.type()->castRaw<c10::ListType>()
                                                       ->getElementType());
    for (const auto& item : v.toListRef())
      list.push_back(movable(item) ? c10::IValue(move(item.toTensor())) : item);
    if (moved) v = v.isTensorList() ? c10::IValue(c10::impl::toTypedList<at::Tensor>(list))
                                    : c10::IValue(list);
  }
  return moved;
}

// Whether a dimension lies outside those of the first tensor. Shape functions of our own and of
// structured kernels look; other Meta kernels may not.
bool Operator::names_no_dimension(const c10::IValue* args) const {
  if (rule_ || structured_ || !args[0].isTensor() || !args[0].toTensor().defined()) return false;
  int64_t dims = std::max<int64_t>(args[0].toTensor().dim(), 1);
  for (size_t i = 1; i < arguments_.size(); ++i)
    if (arguments_[i].dim && args[i].isInt() &&
        (args[i].toInt() < -dims || args[i].toInt() >= dims))
      return true;
  return false;
}

// Whether this call's results have shapes that only the data tells.
bool Operator::is_dynamic(const c10::IValue* args) const {
  if (C10_LIKELY(!dynamic_)) return false;
  if (!mask_decides_) return true;
  // Indexing: masks count their true elements, integers do not.
  for (const auto& index : args[1].toListRef()) {
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    auto dtype = index.toTensor().scalar_type();
    if (dtype == at::kBool || dtype == at::kByte) return true;
  }
  return false;
}

// The dtypes of the call's tensors if the operator may refuse them, else 0. Shape functions look
// at shapes; kernels refuse mixed floating types and types they are not built for.
uint64_t Operator::doubtful_dtypes(const c10::IValue* args) const {
  uint64_t signature = 0xcbf29ce484222325ull;
  at::ScalarType floating = at::ScalarType::Undefined;
  bool common = false, mixed = false, unusual = false;
  auto add = [&](const c10::IValue& v) {
    if (!v.isTensor() || !v.toTensor().defined()) return;
    const auto& t = v.toTensor();
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) return;
    auto dtype = t.scalar_type();
    signature = (signature ^ static_cast<uint64_t>(dtype)) * 0x100000001b3ull;
    if (!at::isFloatingType(dtype) && !at::isComplexType(dtype)) {
      // Beside floats: indices, as a rule, or masks.
      unusual = unusual || !(pointwise_ || (masks_ && dtype == at::kBool) ||
                             (indices_ && dtype == at::kLong));
      return;
    }
    common = common || dtype == at::kFloat || dtype == at::kDouble;
    mixed = mixed || (floating != at::ScalarType::Undefined && dtype != floating);
    floating = dtype;
  };
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (args[i].isTensor()) {
      add(args[i]);
    } else if (args[i].isTensorList()) {
      for (const auto& item : args[i].toListRef()) add(item);
    }
  }
  return common && !mixed && !unusual && !integers_only_ ? 0 : signature;
}

// Whether the call writes memory that another argument shares, or one place twice. Which operators
// refuse that, and which overlaps, only their kernels know.
bool Operator::overlaps(const c10::IValue* args) const {
  if (!writes_) return false;
  struct Span {
    const void* storage;
    int64_t begin, end;  // bytes
    bool writes;
    const at::Tensor* tensor;
  };
  std::vector<Span> spans;
  bool twice = false;
  auto add = [&](const at::Tensor& t, bool writes) {
    if (!is_remote(t) || t.numel() == 0) return;
    twice = twice || (writes && at::has_internal_overlap(t) == at::MemOverlap::Yes);
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    auto item = static_cast<int64_t>(t.itemsize());
    int64_t begin = t.storage_offset() * item;
    spans.push_back({t.storage().unsafeGetStorageImpl(), begin, begin + (last + 1) * item, writes,
                     &t});
  };
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const auto& v = args[i];
    bool writes = arguments_[i].writes;
    if (v.isTensor()) {
      add(v.toTensor(), writes);
    } else if (v.isList() && !v.isIntList() && !v.isDoubleList() && !v.isBoolList()) {
      for (const auto& item : v.toListRef())
        if (item.isTensor()) add(item.toTensor(), writes);
    }
  }
  if (twice) return true;
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return std::tie(a.storage, a.begin) < std::tie(b.storage, b.begin);
  });
  int comparisons = 0;
  for (size_t i = 0; i < spans.size(); ++i) {
    for (size_t j = i + 1; j < spans.size(); ++j) {
      const Span &a = spans[i], &b = spans[j];
      if (a.storage != b.storage || b.begin >= a.end) break;
      if (++comparisons > kComparisonsMax) return true;
      if (!a.writes && !b.writes) continue;
      auto status = at::get_overlap_status(*a.tensor, *b.tensor);
      // Element by element, a tensor may be written over itself.
      if (status == at::MemOverlapStatus::Partial ||
          (status == at::MemOverlapStatus::Full && !pointwise_))
        return true;
    }
  }
  return false;
}

void Operator::miss(torch::jit::Stack* stack, Encoder& encoder) {
  const c10::IValue* first_arg = stack->data() + (stack->size() - arguments_.size());
  if (is_dynamic(first_arg)) return run(stack, encoder, nullptr);
  if (doubt_of_numbers_ && doubt_of_numbers_(first_arg)) return run(stack, encoder, nullptr);
  counters().misses.fetch_add(1, std::memory_order_relaxed);
  const auto& context = at::globalContext();
  bool in_doubt = picky_ || (doubt_ && doubt_(first_arg)) || overlaps(first_arg) ||
                  names_no_dimension(first_arg) || (context.deterministicAlgorithms() &&
                                          !context.deterministicAlgorithmsWarnOnly());
  if (uint64_t call = in_doubt ? key_hash(encoder.bytes.view()) : 0; call && !accepted(call)) {
    // Let the node run each such call once while the program waits, so that what eager refuses is
    // refused here, and nothing is written.
    run(stack, encoder, nullptr);
    return accept(call);
  }
  Results results;
  bool known = false;
  uint64_t kind = kind_of_call(first_arg);
  int trusted = trust(kind);
  try {
    known = infer_fast(*stack, results);
    if (!known && trusted >= kTrusted && meta_infer.load(std::memory_order_relaxed)) {
      results.clear();
      known = infer_by_meta(*stack, results);
    }
  } catch (const c10::OutOfMemoryError&) {
    throw;  // a result argument that cannot grow so far
  } catch (const std::exception&) {
    // Let the node judge: it refuses in eager's words, or shows that the rule was wrong.
    rethrow_interrupt();
    known = false;
  }
  for (const Result& result : results) {
    if (!known || !result.defined) continue;
    check_storage_bytes(result.bytes);
    if (result.meta.sizes.size() > kDimsMax)
      return fall_back(stack, "a result has more dimensions than one record carries");
  }
  if (uint64_t dtypes = known ? doubtful_dtypes(first_arg) : 0; dtypes && !accepted(dtypes)) {
    // Let the node say once whether it takes these dtypes, so that a refusal comes at the call.
    run(stack, encoder, nullptr);
    accept(dtypes);
    return;
  }
  if (known) {
    // Shape functions may have resized an `out` argument: what was encoded is old then.
    std::shared_ptr<const Template> tmpl;
    uint64_t first;
    encoder.settings = &current_settings(multiplies_);
    {
      std::lock_guard<std::mutex> lock(capture_mutex);
      TORCH_INTERNAL_ASSERT(encoder.encode(*this, first_arg) == Encoder::kOk);
      auto key = encoder.bytes.view();
      uint64_t hash = key_hash(key);
      if (const auto* found = cache_->find(key, hash)) {
        tmpl = *found;
      } else {
        tmpl = define(*stack, encoder, results);
        if (tmpl) {
          // Defining may have made every template forgotten: look again before inserting.
          cache_->find(key, hash);
          cache_->insert(hash, tmpl);
        }
      }
      if (notes()) notes()->writes(encoder.storages, encoder.mutated);
      first = tmpl ? tape().op(encoder.settings, tmpl->id, encoder.inputs.data(),
                               encoder.inputs.size(), encoder.scalars.data(),
                               encoder.scalars.size(), tmpl->new_storages)
                   : 0;
    }
    if (!tmpl) return divide(stack, "the layout of its results does not fit one record");
    if (first == kNoRoom) too_many_storages();
    counters().ops.fetch_add(1, std::memory_order_relaxed);
    return emit(stack, *tmpl, first);
  }
  if (rule_ || structured_ || trusted < 0 || !meta_infer.load(std::memory_order_relaxed) ||
      !pays_to_ask_metas(kind))
    return run(stack, encoder, nullptr);

  // Run on the node, then see whether the Meta kernel would have said the same.
  torch::jit::Stack before(stack->end() - static_cast<int64_t>(arguments_.size()), stack->end());
  Results seen, predicted;
  bool predicts = false;
  try {
    predicts = infer_by_meta(before, predicted);
  } catch (const std::exception&) {
    rethrow_interrupt();
    predicts = false;
  }
  run(stack, encoder, &seen);
  bool agrees = predicts && seen.size() == predicted.size();
  for (size_t i = 0; agrees && i < seen.size(); ++i) {
    const auto &a = seen[i], &b = predicted[i];
    agrees = a.defined == b.defined && a.meta.dtype == b.meta.dtype &&
             a.meta.sizes == b.meta.sizes && a.meta.strides == b.meta.strides &&
             a.meta.offset == b.meta.offset && a.shares == b.shares;
  }
  judge(kind, agrees);
}

// What a Meta kernel may decide by, short of sizes: types and layouts of tensors, what is absent,
// flags, modes and lengths of lists.
uint64_t Operator::kind_of_call(const c10::IValue* args) const {
  uint64_t kind = 0xcbf29ce484222325ull;
  auto mix = [&](uint64_t word) { kind = (kind ^ word) * 0x100000001b3ull; };
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const auto& v = args[i];
    if (v.isTensor() && v.toTensor().defined()) {
      const auto& t = v.toTensor();
      mix(1 + static_cast<uint64_t>(t.scalar_type()));
      mix(static_cast<uint64_t>(t.dim()));
      mix(t.is_contiguous());
    } else if (v.isBool()) {
      mix(100 + v.toBool());
    } else if (v.isInt()) {
      // Modes and dtypes are small; larger numbers are sizes.
      mix(200 + static_cast<uint64_t>(std::clamp<int64_t>(v.toInt(), -1, 16) + 1));
    } else if (v.isString()) {
      mix(key_hash(v.toStringRef()));
    } else if (v.isList()) {
      mix(300 + v.toListRef().size());
    } else {
      mix(400 + v.isNone());
    }
  }
  return kind;
}

int Operator::trust(uint64_t kind) {
  std::lock_guard<std::mutex> lock(capture_mutex);
  auto found = trust_.find(kind);
  return found == trust_.end() ? 0 : found->second;
}

bool Operator::pays_to_ask_metas(uint64_t kind) {
  if (metas_imported.load(std::memory_order_relaxed)) return true;
  std::lock_guard<std::mutex> lock(capture_mutex);
  return ++unasked_[kind] > kUnaskedMax;
}

void Operator::judge(uint64_t kind, bool agrees) {
  std::lock_guard<std::mutex> lock(capture_mutex);
  int& trust = trust_[kind];
  trust = agrees && trust >= 0 ? trust + 1 : -1;
}

bool Operator::accepted(uint64_t signature) {
  std::lock_guard<std::mutex> lock(capture_mutex);
  return accepted_.count(signature) != 0;
}

void Operator::accept(uint64_t signature) {
  std::lock_guard<std::mutex> lock(capture_mutex);
  if (accepted_.size() >= kAcceptedMax) accepted_.clear();
  accepted_.insert(signature);
}

bool Operator::infer_fast(const torch::jit::Stack& stack, Results& results) {
  const c10::IValue* args = stack.data() + (stack.size() - arguments_.size());
  if (rule_) {
    if (rule_(args, arguments_.size(), results)) return true;
    results.clear();
  }
  if (!structured_) return false;
  return run_meta(torch::jit::Stack(args, args + arguments_.size()), structured_, stack, results);
}

bool Operator::infer_by_meta(const torch::jit::Stack& stack, Results& results) {
  const c10::IValue* args = stack.data() + (stack.size() - arguments_.size());
  return run_meta(torch::jit::Stack(args, args + arguments_.size()), nullptr, stack, results);
}

namespace {

at::Tensor as_meta(const at::Tensor& t) {
  if (!is_remote(t)) return t;
  auto meta = at::detail::empty_strided_meta(t.sizes(), t.strides(), t.scalar_type());
  if (t.unsafeGetTensorImpl()->is_wrapped_number())
    meta.unsafeGetTensorImpl()->set_wrapped_number(true);
  return meta;
}

c10::IValue as_meta(const c10::IValue& v) {
  if (v.isTensor()) return as_meta(v.toTensor());
  if (v.isDevice()) return at::Device(at::kMeta);
  if (v.isGenerator()) return c10::IValue();
  if (v.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : v.toTensorVector()) list.push_back(as_meta(t));
    return list;
  }
  if (v.isList() && !v.isIntList() && !v.isDoubleList() && !v.isBoolList()) {
    c10::impl::GenericList list(v.type()->castRaw<c10::ListType>()->getElementType());
    for (const auto& item : v.toListRef()) list.push_back(as_meta(item));
    return list;
  }
  return v;
}

}  // namespace

bool Operator::run_meta(torch::jit::Stack args, const c10::KernelFunction* kernel,
                        const torch::jit::Stack& original, Results& results) {
  for (auto& v : args) v = as_meta(v);
  torch::jit::Stack inputs = args;
  {
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    if (kernel)
      kernel->callBoxed(handle_, c10::DispatchKeySet(c10::DispatchKey::Meta), &args);
    else
      handle_.callBoxed(&args);
  }
  // A result argument that the shape function resized is resized for real.
  size_t base = original.size() - arguments_.size();
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (!arguments_[i].writes || !inputs[i].isTensor()) continue;
    const at::Tensor &real = original[base + i].toTensor(), &meta = inputs[i].toTensor();
    if (is_remote(real) && !real.sizes().equals(meta.sizes()) && meta.is_meta())
      at::native::resize_output(real, meta.sizes());
  }
  auto add = [&](const at::Tensor& t) {
    Result result;
    if (!t.defined()) {
      result.defined = false;
      results.push_back(result);
      return true;
    }
    if (!t.is_meta() || t.layout() != at::kStrided || t.is_conj() || t.is_neg()) return false;
    for (const auto& input : inputs)
      if (input.isTensor() && input.toTensor().defined() &&
          input.toTensor().storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl())
        return false;  // a view of an argument: let the node say how
    result.meta.dtype = t.scalar_type();
    result.meta.offset = t.storage_offset();
    result.meta.sizes.assign(t.sizes().begin(), t.sizes().end());
    result.meta.strides.assign(t.strides().begin(), t.strides().end());
    result.bytes = t.storage().nbytes();
    results.push_back(result);
    return true;
  };
  for (size_t i = 0; i < returns_.size(); ++i) {
    if (returns_[i].argument >= 0) continue;
    const auto& v = args[i];
    if (v.isTensor()) {
      if (!add(v.toTensor())) return false;
    } else if (v.isTensorList()) {
      for (const at::Tensor& t : v.toTensorVector())
        if (!add(t)) return false;
    } else {
      return false;
    }
  }
  return true;
}

namespace {

void put_result(Writer& out, const Result& r, uint32_t storage) {
  if (!r.defined) {
    out.u8(kOutputUndefined);
    return;
  }
  out.u8(kOutputNew);
  out.varint(storage);
  put_meta(out, r.meta.dtype, r.meta.offset, r.meta.sizes, r.meta.strides);
}

// The part of a template that a `run` sends too.
void put_head(Writer& out, const std::string& name, const Encoder& encoder, bool random,
              size_t arguments) {
  out.string(name);
  out.varint(encoder.inputs.size());
  out.varint(encoder.scalars.size());
  out.varint(encoder.mutated.size());
  for (uint32_t slot : encoder.mutated) out.varint(slot);
  out.u8(random);
  out.varint(arguments);
  out.raw(encoder.bytes.data(), encoder.arguments);
}

// Makes room for a template of so many bytes: all are forgotten when a session's are too many. A
// program whose shapes never repeat starts over then, and pays each template once more. Under the
// capture lock.
void make_room_for_template(size_t bytes) {
  static uint64_t defined = 0, defined_bytes = 0, defined_in = 0;
  if (defined_in != template_generation.load(std::memory_order_acquire))
    defined = defined_bytes = 0;
  if (defined + 1 > kTemplatesMax || defined_bytes + bytes > kTemplatesBytesMax) {
    start_over();
    defined = defined_bytes = 0;
  }
  defined_in = template_generation.load(std::memory_order_acquire);
  ++defined;
  defined_bytes += bytes;
}

}  // namespace

// Under the capture lock. Null when one record does not carry it.
std::shared_ptr<const Template> Operator::define(const torch::jit::Stack& stack,
                                                 const Encoder& encoder, const Results& results) {
  auto tmpl = std::make_shared<Template>();
  tmpl->key = encoder.bytes.view();
  // Storages first: results that share one count once.
  std::vector<uint32_t> storage_of(results.size());
  std::vector<uint64_t> storage_bytes;
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    if (r.defined && r.shares >= 0) {
      storage_of[i] = storage_of[r.shares];
    } else if (r.defined) {
      storage_of[i] = static_cast<uint32_t>(storage_bytes.size());
      storage_bytes.push_back(r.bytes);
    }
    Template::Made made;
    made.defined = r.defined;
    made.storage = static_cast<int32_t>(storage_of[i]);
    made.bytes = r.defined ? storage_bytes[storage_of[i]] : 0;
    made.meta = r.meta;
    tmpl->made.push_back(std::move(made));
  }
  tmpl->new_storages = static_cast<uint32_t>(storage_bytes.size());

  Writer out;
  put_head(out, name_, encoder, random_, arguments_.size());
  out.varint(storage_bytes.size());
  for (uint64_t bytes : storage_bytes) out.varint(bytes);
  // Outputs in order of return: new tensors, and the arguments that are returned.
  size_t base = stack.size() - arguments_.size();
  Writer body;
  uint64_t count = 0;
  size_t next = 0;
  size_t singles = 0;
  for (const auto& r : returns_) singles += r.tensor && r.argument < 0;
  auto alias = [&](const at::Tensor& t) {
    ++count;
    if (!t.defined()) return body.u8(kOutputUndefined);
    body.u8(kOutputAlias);
    uint32_t slot = 0;
    while (encoder.storages[slot] != t.storage().unsafeGetStorageImpl()) ++slot;
    body.varint(slot);
    put_meta(body, t);
  };
  for (const auto& r : returns_) {
    if (r.argument >= 0) {
      const auto& v = stack[base + static_cast<size_t>(r.argument)];
      if (v.isTensor())
        alias(v.toTensor());
      else if (v.isTensorList())
        for (const at::Tensor& t : v.toTensorVector()) alias(t);
    } else if (r.list) {
      uint32_t size = static_cast<uint32_t>(results.size() - singles);
      tmpl->list_sizes.push_back(size);
      for (uint32_t i = 0; i < size; ++i, ++next, ++count)
        put_result(body, results[next], storage_of[next]);
    } else {
      put_result(body, results[next], storage_of[next]);
      ++next;
      ++count;
    }
  }
  out.varint(count);
  out.raw(body.data(), body.size());
  if (count > kOutputsMax || out.size() > kTemplateBytesMax) return nullptr;
  make_room_for_template(out.size());
  tmpl->id = tape().define(out.data(), out.size());
  return tmpl;
}

void Operator::emit(torch::jit::Stack* stack, const Template& tmpl, uint64_t first) {
  size_t n = arguments_.size();
  // In-place operators return their argument: nothing to make.
  if (returns_.size() == 1 && returns_[0].argument >= 0) {
    size_t base = stack->size() - n;
    auto kept = static_cast<size_t>(returns_[0].argument);
    if (kept != 0) std::swap((*stack)[base], (*stack)[base + kept]);
    stack->resize(base + 1);
    return;
  }
  c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 4> storages(tmpl.new_storages);
  size_t next = 0;
  auto tensor = [&]() -> at::Tensor {
    const auto& made = tmpl.made[next++];
    if (!made.defined) return {};
    auto& storage = storages[static_cast<size_t>(made.storage)];
    if (!storage) storage = make_storage(first + static_cast<uint64_t>(made.storage), made.bytes);
    return make_tensor(storage, made.meta);
  };
  if (returns_.size() == 1 && returns_[0].tensor) {
    at::Tensor result = tensor();
    size_t base = stack->size() - n;
    stack->resize(base);
    stack->emplace_back(std::move(result));
    return;
  }
  torch::jit::Stack results;
  size_t base = stack->size() - n;
  size_t lists = 0;
  for (const auto& r : returns_) {
    if (r.argument >= 0) {
      results.push_back((*stack)[base + static_cast<size_t>(r.argument)]);
    } else if (r.list) {
      c10::List<at::Tensor> list;
      uint32_t size = tmpl.list_sizes[lists++];
      for (uint32_t i = 0; i < size; ++i) list.push_back(tensor());
      results.emplace_back(std::move(list));
    } else {
      results.emplace_back(tensor());
    }
  }
  stack->resize(base);
  for (auto& result : results) stack->push_back(std::move(result));
}

// Runs on the node now. `seen` receives the new tensors' geometry when it is not null.
void Operator::run(torch::jit::Stack* stack, Encoder& encoder, Results* seen) {
  if (ambiguous_lists_) return fall_back(stack, "it returns several lists of tensors");
  Writer head;
  put_head(head, name_, encoder, random_, arguments_.size());
  head.varint(0);  // no declared storages
  head.varint(0);  // nor outputs
  uint64_t reserve = 0;
  bool list = false;
  for (const auto& r : returns_) {
    if (r.argument >= 0) continue;
    reserve += r.tensor;
    list = list || r.list;
  }
  if (list) reserve += kListReserve;
  auto inputs = encoder.inputs;
  auto scalars = encoder.scalars;
  // What aliases an input is found by slot; the stack keeps these alive.
  auto storages = encoder.storages;
  std::vector<uint8_t> reply;
  uint64_t first = 0;
  GenieError error;
  int code;
  {
    Waiting waiting;
    code = tape().run(
        &current_settings(multiplies_), head.data(), head.size(), inputs.data(), inputs.size(), scalars.data(), scalars.size(),
        reserve, &first,
        [](void* context, const uint8_t* bytes, size_t len) {
          static_cast<std::vector<uint8_t>*>(context)->assign(bytes, bytes + len);
        },
        &reply, &error);
  }
  counters().runs.fetch_add(1, std::memory_order_relaxed);
  if (code == kNotImplemented) return fall_back(stack, error.message);
  check(code, error);
  counters().ops.fetch_add(1, std::memory_order_relaxed);

  Reader in(reply.data(), reply.size());
  std::vector<uint64_t> bytes(in.bounded(kOutputsMax));
  for (auto& b : bytes) b = in.varint();
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> made;
  for (size_t i = 0; i < bytes.size(); ++i) made.push_back(make_storage(first + i, bytes[i]));
  std::vector<int64_t> first_user(bytes.size(), -1);

  uint64_t outputs = in.bounded(kOutputsMax);
  struct Output {
    uint8_t kind;
    uint64_t index;
    Meta meta;
  };
  std::vector<Output> found;
  for (uint64_t i = 0; i < outputs; ++i) {
    Output o{in.u8(), 0, {}};
    if (o.kind != kOutputUndefined) {
      o.index = in.bounded(kSlotsMax);
      o.meta = get_meta(in);
    }
    found.push_back(std::move(o));
  }
  in.bounded(1 << 20);  // the length of the values that are no tensors, read below

  size_t base = stack->size() - arguments_.size();
  size_t next = 0;
  auto tensor = [&]() -> at::Tensor {
    if (next >= found.size()) throw CodecError("the node returned too few tensors");
    const Output& o = found[next++];
    Result result;
    result.defined = o.kind != kOutputUndefined;
    result.meta = o.meta;
    at::Tensor t;
    if (o.kind == kOutputNew) {
      if (o.index >= made.size()) throw CodecError("the node named a storage it did not make");
      result.bytes = bytes[o.index];
      result.shares = first_user[o.index];
      if (result.shares < 0 && seen) first_user[o.index] = static_cast<int64_t>(seen->size());
      t = make_tensor(made[o.index], o.meta);
    } else if (o.kind == kOutputAlias) {
      if (o.index >= storages.size()) throw CodecError("the node named a missing slot");
      auto* storage = const_cast<c10::StorageImpl*>(storages[o.index]);
      t = make_tensor(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage), o.meta);
      result.shares = -2;
    }
    if (seen) seen->push_back(std::move(result));
    return t;
  };
  // A returned argument may have been resized.
  auto argument = [&](const c10::IValue& v) {
    if (!v.isTensor()) return;
    if (next >= found.size()) throw CodecError("the node returned too few tensors");
    const Output& o = found[next++];
    const at::Tensor& t = v.toTensor();
    if (o.kind != kOutputAlias || t.sizes().equals(at::IntArrayRef(o.meta.sizes))) return;
    auto& storage = *t.storage().unsafeGetStorageImpl();
    uint64_t need = at::detail::computeStorageNbytes(o.meta.sizes, o.meta.strides,
                                                     t.dtype().itemsize(), o.meta.offset);
    if (need > storage.nbytes()) {
      remote(storage).bytes = need;
      storage.set_nbytes(need);
    }
    t.unsafeGetTensorImpl()->set_sizes_and_strides(o.meta.sizes, o.meta.strides, o.meta.offset);
  };
  torch::jit::Stack results;
  size_t singles_left = 0;
  for (const auto& r : returns_) singles_left += r.tensor;
  for (const auto& r : returns_) {
    if (r.argument >= 0) {
      const auto& v = (*stack)[base + static_cast<size_t>(r.argument)];
      if (v.isTensorList())
        next += v.toTensorVector().size();
      else
        argument(v);
      singles_left -= r.tensor;
      results.push_back(v);
    } else if (r.list) {
      c10::List<at::Tensor> items;
      while (next + singles_left < found.size()) items.push_back(tensor());
      results.emplace_back(std::move(items));
    } else if (r.tensor) {
      --singles_left;
      results.emplace_back(tensor());
    } else {
      switch (in.u8()) {
        case kInt: results.emplace_back(in.zigzag()); break;
        case kDouble: results.emplace_back(in.f64()); break;
        case kBool: results.emplace_back(in.u8() != 0); break;
        case kComplex: {
          double re = in.f64();
          results.emplace_back(c10::complex<double>(re, in.f64()));
          break;
        }
        case kNone: results.emplace_back(); break;
        default: throw CodecError("the node returned a value of unknown kind");
      }
    }
  }
  stack->resize(base);
  for (auto& result : results) stack->push_back(std::move(result));
}

void Operator::fall_back(torch::jit::Stack* stack, const char* reason) {
  // PyTorch's fallback could not bring them back from the CPU.
  for (const auto& argument : torch::jit::last(*stack, arguments_.size()))
    if (argument.isTensor()) refuse_quantized(name_, argument.toTensor());
  counters().fallbacks.fetch_add(1, std::memory_order_relaxed);
  {
    Waiting waiting;
    at::native::cpu_fallback(handle_, stack);
  }
  // Afterwards: what the CPU refuses too runs nowhere.
  tape().fell_back(name_.c_str(), reason);
}

void record(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<std::string, std::unique_ptr<Operator>>;
  Operator* found;
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto& slot = (*known)[op_name(op)];
    if (!slot) slot = std::make_unique<Operator>(op);
    found = slot.get();
  }
  found->record(stack);
}

}  // namespace genie
