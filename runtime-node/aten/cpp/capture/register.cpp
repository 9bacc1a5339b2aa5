// Registering the device's kernels with PyTorch's dispatcher, and the C boundary of the capture.
#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <unordered_set>

#include "../errors.h"
#include "op.h"
#include "state.h"
#include "../torch_version.h"

namespace genie {

void register_attention(torch::Library& here, torch::Library& autograd);
void register_autocast();
void register_memory_readers(torch::Library& here);
void register_refused(torch::Library& here);
void register_composites(torch::Library& here, torch::Library& autograd);
void register_graphs();

namespace {

const GenieTape* the_tape = nullptr;
uint64_t start_ticks = 0;
std::chrono::steady_clock::time_point start_time;

// Composite operators that are better taken apart: they make or reshape tensors, and what they
// are made of is recorded (or is pure metadata).
const std::unordered_set<std::string>& taken_apart() {
  static const std::unordered_set<std::string> names{
      "aten::_to_copy", "aten::copy_", "aten::empty_like", "aten::new_empty",
      "aten::new_empty_strided", "aten::new_zeros", "aten::new_ones", "aten::new_full",
      "aten::zeros_like", "aten::ones_like", "aten::full_like", "aten::rand_like",
      "aten::randn_like", "aten::randint_like", "aten::randint_like.low_dtype",
      "aten::_unsafe_view", "aten::lift", "aten::lift_fresh", "aten::detach_", "aten::is_pinned",
      "aten::_pin_memory", "aten::_to_dense", "aten::to_dense", "aten::_to_sparse",
      "aten::_to_sparse.sparse_dim", "aten::to_mkldnn", "aten::resize_as_",
      "aten::_resize_output_", "aten::_nested_tensor_from_mask", "aten::_reshape_copy",
      "aten::is_same_size", "aten::_assert_async", "aten::_assert_async.msg", "aten::_print",
      "aten::_fused_sdp_choice", "aten::_sparse_mm", "aten::rot90", "aten::fill.Scalar",
      "aten::_lazy_clone", "aten::_pack_padded_sequence", "aten::_has_same_storage_numel", "aten::_version"};
  return names;
}

// Composite operators with code for the CPU's memory alone: recorded whole. (From 2.5 on it is not
// composite any more.)
const std::unordered_set<std::string>& kept_whole() {
  static const std::unordered_set<std::string> names{"aten::linalg_eigvals.out"};
  return names;
}

bool is_view(const c10::FunctionSchema& schema) {
  for (const auto& r : schema.returns())
    if (r.alias_info() && !r.alias_info()->isWrite()) return true;
  return false;
}

bool takes_tensor(const c10::FunctionSchema& schema) {
  for (const auto& a : schema.arguments()) {
    auto text = a.type()->str();
    if (text.find("Tensor") != std::string::npos) return true;
  }
  return false;
}

// Whether the operator gets the boxed kernel that records it.
bool is_recorded(const c10::OperatorHandle& op, const std::string& name) {
  using c10::DispatchKey;
  if (kept_whole().count(name)) return true;
  if (op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd)) return false;
  if (op.hasKernelForDispatchKey(DispatchKey::PrivateUse1)) return false;  // has its own
  if (taken_apart().count(name)) return false;
  const auto& schema = op.schema();
  bool composite = op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) ||
                   op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional);
  if (composite && (is_view(schema) || op.hasTag(at::Tag::inplace_view))) return false;
  if (composite && !takes_tensor(schema)) return false;
  return takes_tensor(schema);
}

void other_operator(const c10::OperatorHandle& op, c10::DispatchKeySet,
                    torch::jit::Stack* stack) {
  record(op, stack);
}

#if !GENIE_TORCH_AT_LEAST(2, 5)
// These versions hand a CSR tensor of the CPU and a tensor of this device to the CPU's kernel.
void no_sparse(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              ": remote_accelerator holds strided tensors only, not sparse ones");
}
#endif

// What a program may call before it has a tensor of the device: what makes one. The rest waits for
// the first session, so that `import torch` stays quick for programs that never use the device.
void register_makers() {
  auto* here = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1,
                                  __FILE__, __LINE__);
  register_kernels(*here);
  // Other operators that make tensors, and operators outside aten (torchvision, torch.library):
  // recorded too, found by name when called.
  auto* rest = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::PrivateUse1,
                                  __FILE__, __LINE__);
  rest->fallback(torch::CppFunction::makeFromBoxedFunction<&other_operator>());
}

void register_operators() {
  auto* here = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1,
                                  __FILE__, __LINE__);
  auto* autograd = new torch::Library(torch::Library::IMPL, "aten",
                                      c10::DispatchKey::AutogradPrivateUse1, __FILE__, __LINE__);
  register_attention(*here, *autograd);
  register_memory_readers(*here);
  register_refused(*here);
  register_composites(*here, *autograd);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& full : dispatcher.getAllOpNames()) {
    if (full.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findSchema(full);
    if (!op) continue;
    std::string name = toString(full);
    if (!is_recorded(*op, name)) continue;
    here->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(
                                 std::make_unique<CaptureKernel>(*op)));
  }
#if !GENIE_TORCH_AT_LEAST(2, 5)
  for (const char* name : {"_sparse_mm_reduce_impl", "sparse_sampled_addmm"})
    autograd->impl(name, torch::CppFunction::makeFromBoxedFunction<&no_sparse>());
#endif
#if !GENIE_TORCH_AT_LEAST(2, 6)
  auto* grad = new torch::Library(torch::Library::IMPL, "_",
                                  c10::DispatchKey::AutogradPrivateUse1, __FILE__, __LINE__);
  grad->fallback(torch::CppFunction::makeFallthrough());
#endif
}

}  // namespace

const GenieTape& tape() { return *the_tape; }

}  // namespace genie

extern "C" {

using namespace genie;

int genie_capture_init(const GenieTape* tape, GenieError* error) {
  return guarded(error, [&] {
    TORCH_CHECK(!the_tape, "the capture is initialised already");
    the_tape = tape;
    start_ticks = ticks();
    start_time = std::chrono::steady_clock::now();
    register_device();
    register_makers();
    register_graphs();
  });
}

void genie_capture_stats(GenieCaptureStats* out) {
  auto& c = counters();
  double elapsed_ns = std::chrono::duration<double, std::nano>(
                          std::chrono::steady_clock::now() - start_time).count();
  double elapsed_ticks = static_cast<double>(ticks() - start_ticks);
  double ns_per_tick = elapsed_ticks > 0 ? elapsed_ns / elapsed_ticks : 0;
  out->ops = c.ops;
  out->template_hits = c.hits;
  out->template_misses = c.misses;
  out->runs = c.runs;
  out->fallbacks = c.fallbacks;
  out->capture_ns = static_cast<uint64_t>(static_cast<double>(c.capture_ticks) * ns_per_tick);
}

int genie_capture_register(GenieError* error) {
  return guarded(error, [] {
    static const bool registered = [] {
      register_operators();
      register_autocast();
      return true;
    }();
    (void)registered;
  });
}

void genie_capture_new_session() { forget_templates(); }
void genie_capture_log_intercepts(uint8_t on) { log_intercepts = on != 0; }
void genie_capture_meta_infer(uint8_t on) { meta_infer = on != 0; }
void genie_capture_metas_imported() { metas_imported = true; }
void genie_capture_aten_impl(uint8_t on) { aten_impl = on != 0; }

}
