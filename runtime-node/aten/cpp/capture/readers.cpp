// Operators whose code reads memory by itself, whatever device its tensors are on.
//
// They are composite, so the dispatcher gives them tensors of any device, and their code takes
// addresses: on this device that ends the process. Nothing in a schema tells them from composites
// that are made of other operators; so they are named, and `test_fallback.py` tries all composites.
#include <ATen/native/CPUFallback.h>

#include <unordered_map>

#include "op.h"
#include "state.h"

namespace genie {
namespace {

// They run on the client's CPU.
const char* const kOnClient[] = {
    "_rowwise_prune",
    "_saturate_weight_to_fp16",
    "_sobol_engine_draw",
    "_sobol_engine_ff_",
    "_sobol_engine_initialize_state_",
    "_sobol_engine_scramble_",
    "choose_qparams_optimized",
    "fbgemm_linear_int8_weight",
    "fbgemm_linear_int8_weight_fp32_activation",
    "fbgemm_linear_quantize_weight",
    "_wrapped_quantized_linear_prepacked",
};

// What they make, or take, is an object in the memory of this process behind a tensor's face: it
// does not travel.
const char* const kOfTheCpu[] = {
    "_wrapped_linear_prepack",
    "fbgemm_linear_fp16_weight",
    "fbgemm_linear_fp16_weight.out",
    "fbgemm_linear_fp16_weight_fp32_activation",
    "fbgemm_linear_fp16_weight_fp32_activation.out",
    "fbgemm_pack_gemm_matrix_fp16",
    "fbgemm_pack_quantized_matrix",
    "fbgemm_pack_quantized_matrix.KN",
};

void on_client(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  ensure();
  counters().fallbacks.fetch_add(1, std::memory_order_relaxed);
  tape().fell_back(toString(op.operator_name()).c_str(), "PyTorch has code for it on the CPU alone");
  Waiting waiting;
  at::native::cpu_fallback(op, stack);
}

void of_the_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(), ": it packs weights in the CPU's memory, which "
      "remote_accelerator has none of. Move its tensors to the CPU first: x.cpu()");
}

// By name; null where this version of PyTorch has no such operator, or code of its own for us.
std::optional<c10::OperatorHandle> composite(const std::string& name) {
  auto dot = name.find('.');
  auto base = "aten::" + name.substr(0, dot);
  auto overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  auto op = c10::Dispatcher::singleton().findSchema({base, overload});
  if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd))
    return std::nullopt;
  return std::optional<c10::OperatorHandle>(*op);
}

}  // namespace

void register_memory_readers(torch::Library& here) {
  for (const char* name : kOnClient)
    if (composite(name))
      here.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_client>());
  for (const char* name : kOfTheCpu)
    if (composite(name))
      here.impl(name, torch::CppFunction::makeFromBoxedFunction<&of_the_cpu>());
}

}  // namespace genie
