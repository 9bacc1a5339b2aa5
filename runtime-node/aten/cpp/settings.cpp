// The table of settings. A number on the wire means one setting for ever. A version of PyTorch
// that lacks one reads it as its default, and refuses to set it.
#include "settings.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <string_view>
#include <vector>

#include "codec.h"
#include "torch_version.h"

namespace genie {

namespace {

struct Setting {
  uint8_t number;
  const char* name;
  int64_t standard;
  int64_t (*get)();
  void (*set)(int64_t value);
};

constexpr uint8_t kFlushDenormal = 3;

// Old names of settings warn whoever reads or sets them. The program was warned when it did.
struct Quiet {
  struct Nobody final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } nobody;
  c10::WarningUtils::WarningHandlerGuard guard{&nobody};
};

[[noreturn]] void refuse(const char* name) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "the program set ", name, ", which torch ", TORCH_VERSION,
                              " on the node does not have; set it back, or use the same torch on ",
                              "both sides");
}

// A flag of at::Context, by its getter and setter, which this PyTorch may lack.
#define GENIE_FLAG(number, text, standard, getter, setter)                                      \
  Setting {                                                                                     \
    number, text, standard, [] { return read_##getter(at::globalContext(), 0); },               \
        [](int64_t value) { write_##getter(at::globalContext(), value, 0); }                    \
  }
#define GENIE_ACCESS(text, standard, getter, setter)                                            \
  template <class C>                                                                            \
  auto read_##getter(C& c, int)->decltype(static_cast<int64_t>(c.getter())) {                   \
    return static_cast<int64_t>(c.getter());                                                    \
  }                                                                                             \
  template <class C>                                                                            \
  int64_t read_##getter(C&, long) {                                                             \
    return standard;                                                                            \
  }                                                                                             \
  template <class C>                                                                            \
  auto write_##getter(C& c, int64_t value, int)->decltype(c.setter(value != 0), void()) {       \
    c.setter(static_cast<decltype(c.getter())>(value));                                         \
  }                                                                                             \
  template <class C>                                                                            \
  void write_##getter(C&, int64_t, long) {                                                      \
    refuse(text);                                                                               \
  }

#define GENIE_FLAGS(_)                                                                           \
  _(4, "torch.utils.deterministic.fill_uninitialized_memory", 1,                                 \
    deterministicFillUninitializedMemory, setDeterministicFillUninitializedMemory)               \
  _(13, "torch.backends.cuda.matmul.allow_fp16_accumulation", 0, allowFP16AccumulationCuBLAS,    \
    setAllowFP16AccumulationCuBLAS)                                                              \
  _(14, "torch.backends.cpu.allow_fp16_reduced_precision_reduction", 0, allowFP16ReductionCPU,   \
    setAllowFP16ReductionCPU)                                                                    \
  _(15, "torch.backends.mkldnn.enabled", 1, userEnabledMkldnn, setUserEnabledMkldnn)             \
  _(16, "torch.backends.mkldnn.deterministic", 0, deterministicMkldnn, setDeterministicMkldnn)   \
  _(17, "torch.backends.nnpack", 1, userEnabledNNPACK, setUserEnabledNNPACK)                     \
  _(18, "torch.backends.cudnn.enabled", 1, userEnabledCuDNN, setUserEnabledCuDNN)                \
  _(19, "torch.backends.cudnn.benchmark", 0, benchmarkCuDNN, setBenchmarkCuDNN)                  \
  _(20, "torch.backends.cudnn.benchmark_limit", 10, benchmarkLimitCuDNN, setBenchmarkLimitCuDNN) \
  _(21, "torch.backends.cudnn.deterministic", 0, deterministicCuDNN, setDeterministicCuDNN)      \
  _(22, "torch.backends.cuda.enable_flash_sdp", 1, userEnabledFlashSDP, setSDPUseFlash)          \
  _(23, "torch.backends.cuda.enable_mem_efficient_sdp", 1, userEnabledMemEfficientSDP,           \
    setSDPUseMemEfficient)                                                                       \
  _(24, "torch.backends.cuda.enable_math_sdp", 1, userEnabledMathSDP, setSDPUseMath)             \
  _(25, "torch.backends.cuda.enable_cudnn_sdp", 1, userEnabledCuDNNSDP, setSDPUseCuDNN)          \
  _(26, "torch.nn.attention: the overrideable kernel", 1, userEnabledOverrideableSDP,            \
    setSDPUseOverrideable)                                                                       \
  _(27, "torch.nn.attention: the third flash kernel", 0, userEnabledFA3SDP, setSDPUseFA3)        \
  _(28, "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp", 0,                             \
    allowFP16BF16ReductionMathSDP, setAllowFP16BF16ReductionMathSDP)
#define GENIE_DECLARE(number, text, standard, getter, setter) \
  GENIE_ACCESS(text, standard, getter, setter)
GENIE_FLAGS(GENIE_DECLARE)

int64_t matmul_precision() {
  try {
    return static_cast<int64_t>(at::globalContext().float32MatmulPrecision());
  } catch (const c10::Error&) {
    return -1;  // set by old and new names to things that disagree: PyTorch's kernels complain
  }
}

void set_matmul_precision(int64_t value) {
  const char* names[] = {"highest", "high", "medium"};
  at::globalContext().setFloat32MatmulPrecision(names[value == 1 || value == 2 ? value : 0]);
}

int64_t cudnn_tf32() {
  try {
    return at::globalContext().allowTF32CuDNN();
  } catch (const c10::Error&) {
    return -1;
  }
}

// How cuBLAS may add up halves: in half precision; not; not, nor split along the sum.
int64_t reduction(bool allowed) { return allowed ? 0 : 1; }
template <class Option>
int64_t reduction(Option option) { return static_cast<int64_t>(option); }
template <class C>
auto set_fp16_reduction(C& c, int64_t value, int)
    -> decltype(c.setAllowFP16ReductionCuBLAS(true, true)) {
  c.setAllowFP16ReductionCuBLAS(value == 0, value != 2);
}
template <class C>
void set_fp16_reduction(C& c, int64_t value, long) { c.setAllowFP16ReductionCuBLAS(value == 0); }
template <class C>
auto set_bf16_reduction(C& c, int64_t value, int)
    -> decltype(c.setAllowBF16ReductionCuBLAS(true, true)) {
  c.setAllowBF16ReductionCuBLAS(value == 0, value != 2);
}
template <class C>
void set_bf16_reduction(C& c, int64_t value, long) { c.setAllowBF16ReductionCuBLAS(value == 0); }

// The order in which attention's kernels are tried, a digit each.
constexpr int64_t kStandardOrder = 0x12034;
template <class C>
auto attention_order(C& c, int) -> decltype(c.sDPPriorityOrder(), int64_t()) {
  int64_t order = 0;
  for (auto kernel : c.sDPPriorityOrder()) order = order << 4 | static_cast<int64_t>(kernel);
  return order;
}
template <class C>
int64_t attention_order(C&, long) { return kStandardOrder; }
template <class C>
auto set_attention_order(C& c, int64_t value, int)
    -> decltype(c.setSDPPriorityOrder(std::vector<int64_t>())) {
  std::vector<int64_t> order;
  for (size_t i = c.sDPPriorityOrder().size(); i-- > 0;) order.push_back(value >> (4 * i) & 15);
  c.setSDPPriorityOrder(order);
}
template <class C>
void set_attention_order(C&, int64_t, long) { refuse("torch.nn.attention's order of kernels"); }

// Denormals are a matter of the thread, and those of PyTorch's pool take after the thread that
// made them: all are told.
void set_flush_denormals(int64_t value) {
  bool on = value != 0;
  at::globalContext().setFlushDenormal(on);
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (parallel)
    parallel([](void* on) { at::globalContext().setFlushDenormal(*static_cast<bool*>(on)); }, &on,
             static_cast<unsigned>(at::get_num_threads()), 0);
}

#if GENIE_TORCH_AT_LEAST(2, 11)
#define GENIE_HAS_FLOAT32_PRECISIONS 1
template <at::Float32Backend backend, at::Float32Op op>
int64_t precision() {
  return static_cast<int64_t>(at::globalContext().float32Precision(backend, op));
}
template <at::Float32Backend backend, at::Float32Op op>
void set_precision(int64_t value) {
  at::globalContext().setFloat32Precision(backend, op, static_cast<at::Float32Precision>(value));
}
#define GENIE_PRECISION(number, text, standard, backend, op)           \
  Setting {                                                            \
    number, text, static_cast<int64_t>(at::Float32Precision::standard), \
        &precision<at::Float32Backend::backend, at::Float32Op::op>,    \
        &set_precision<at::Float32Backend::backend, at::Float32Op::op> \
  }
#endif

// In the order in which they are set: old names of a setting before the new ones, which may say
// more.
const std::vector<Setting>& settings() {
  static const std::vector<Setting> all{
      {1, "torch.set_default_dtype", static_cast<int64_t>(at::kFloat),
       [] { return static_cast<int64_t>(c10::typeMetaToScalarType(c10::get_default_dtype())); },
       [](int64_t value) {
         auto dtype = static_cast<at::ScalarType>(value);
         TORCH_CHECK(value >= 0 && at::isFloatingType(dtype), "a default dtype is floating");
         c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
       }},
      {2, "torch.use_deterministic_algorithms", 0,
       [] {
         const auto& c = at::globalContext();
         return int64_t{c.deterministicAlgorithms()} |
                int64_t{c.deterministicAlgorithmsWarnOnly()} << 1;
       },
       [](int64_t value) {
         at::globalContext().setDeterministicAlgorithms((value & 1) != 0, (value & 2) != 0);
       }},
      {kFlushDenormal, "torch.set_flush_denormal", 0, [] { return int64_t{flushes_denormals()}; },
       &set_flush_denormals},
      {5, "torch.set_float32_matmul_precision", 0, &matmul_precision, &set_matmul_precision},
      {6, "torch.backends.cudnn.allow_tf32", 1, &cudnn_tf32,
       [](int64_t value) { at::globalContext().setAllowTF32CuDNN(value != 0); }},
#ifdef GENIE_HAS_FLOAT32_PRECISIONS
      GENIE_PRECISION(7, "torch.backends.mkldnn.matmul.fp32_precision", NONE, MKLDNN, MATMUL),
      GENIE_PRECISION(8, "torch.backends.mkldnn.conv.fp32_precision", NONE, MKLDNN, CONV),
      GENIE_PRECISION(9, "torch.backends.mkldnn.rnn.fp32_precision", NONE, MKLDNN, RNN),
      GENIE_PRECISION(10, "torch.backends.cuda.matmul.fp32_precision", NONE, CUDA, MATMUL),
      GENIE_PRECISION(11, "torch.backends.cudnn.conv.fp32_precision", TF32, CUDA, CONV),
      GENIE_PRECISION(12, "torch.backends.cudnn.rnn.fp32_precision", TF32, CUDA, RNN),
#endif
#define GENIE_ROW(...) GENIE_FLAG(__VA_ARGS__),
      GENIE_FLAGS(GENIE_ROW)
      {29, "torch.nn.attention.sdpa_kernel(set_priority=True)", kStandardOrder,
       [] { return attention_order(at::globalContext(), 0); },
       [](int64_t value) { set_attention_order(at::globalContext(), value, 0); }},
      {30, "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction", 0,
       [] { return reduction(at::globalContext().allowFP16ReductionCuBLAS()); },
       [](int64_t value) { set_fp16_reduction(at::globalContext(), value, 0); }},
      {31, "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction", 0,
       [] { return reduction(at::globalContext().allowBF16ReductionCuBLAS()); },
       [](int64_t value) { set_bf16_reduction(at::globalContext(), value, 0); }},
      {32, "torch.backends.cuda.preferred_linalg_library", 0,
       [] { return static_cast<int64_t>(at::globalContext().linalgPreferredBackend()); },
       [](int64_t value) {
         at::globalContext().setLinalgPreferredBackend(static_cast<at::LinalgBackend>(value));
       }},
#if GENIE_TORCH_AT_LEAST(2, 3)
      {33, "torch.backends.cuda.preferred_blas_library", 0,
       [] {
         return int64_t{at::globalContext().blasPreferredBackend() == at::BlasBackend::Cublaslt};
       },
       [](int64_t value) {
         at::globalContext().setBlasPreferredBackend(value ? at::BlasBackend::Cublaslt
                                                           : at::BlasBackend::Cublas);
       }},
#endif
  };
  return all;
}

}  // namespace

std::string changed_settings(bool flushes_denormals) {
  Quiet quiet;
  Writer out;
  for (const auto& setting : settings()) {
    int64_t value = setting.number == kFlushDenormal ? flushes_denormals : setting.get();
    if (value == setting.standard) continue;
    out.u8(setting.number);
    out.zigzag(value);
  }
  return std::string(out.view());
}

void apply_settings(const uint8_t* bytes, size_t len) {
  Quiet quiet;
  std::vector<int64_t> wanted;
  for (const auto& setting : settings()) wanted.push_back(setting.standard);
  Reader in(bytes, len);
  while (!in.done()) {
    uint8_t number = in.u8();
    int64_t value = in.zigzag();
    size_t at = 0;
    while (at < settings().size() && settings()[at].number != number) ++at;
    if (at == settings().size())
      refuse(("setting " + std::to_string(number)).c_str());
    wanted[at] = value;
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto& setting = settings()[i];
    if (setting.get() != wanted[i]) setting.set(wanted[i]);
  }
}

uint64_t float32_precisions(bool of_cuda) {
#ifdef GENIE_HAS_FLOAT32_PRECISIONS
  using at::Float32Backend;
  using at::Float32Op;
  const auto& c = at::globalContext();
  uint64_t all = 0;
  for (auto backend : {Float32Backend::MKLDNN, Float32Backend::CUDA}) {
    if (backend == Float32Backend::CUDA && !of_cuda) break;
    for (auto op : {Float32Op::MATMUL, Float32Op::CONV, Float32Op::RNN})
      all = all << 4 | static_cast<uint64_t>(c.float32Precision(backend, op));
  }
  return all;
#else
  return 0;
#endif
}

}  // namespace genie
