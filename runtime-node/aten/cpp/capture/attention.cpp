// Operators that PyTorch would decompose differently here than on the CPU: attention and the
// fused recurrent cells.
//
// `scaled_dot_product_attention` falls apart into matmul and softmax on a device that PyTorch does
// not know, and its gradients drift by 4e-5. Without gradients it is recorded whole; with them it
// takes the path that the CPU would take.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "infer.h"
#include "op.h"
#include "../torch_version.h"

namespace genie {

namespace {

// A CPU tensor with this geometry and no data, to ask questions about.
at::Tensor hollow(const at::Tensor& t) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), 0, c10::DataPtr(nullptr, c10::Device(at::kCPU)),
      nullptr, /*resizable=*/false);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), 0);
  if (t.requires_grad()) tensor.set_requires_grad(true);
  return tensor;
}

const c10::OperatorHandle& choice_op() {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::_fused_sdp_choice", "");
  return op;
}

const c10::OperatorHandle& sdpa_op() {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::scaled_dot_product_attention", "");
  return op;
}

at::Tensor additive_mask(const at::Tensor& mask, at::ScalarType dtype) {
  if (mask.scalar_type() != at::kBool) return mask;
  auto floating = at::zeros_like(mask, mask.options().dtype(dtype));
  floating.masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
  return floating;
}

bool wants_grad(const c10::IValue& v) {
  return v.isTensor() && v.toTensor().defined() && v.toTensor().requires_grad();
}

// With gradients: the differentiable operators the CPU would use.
void differentiable_attention(const c10::OperatorHandle&, c10::DispatchKeySet,
                              torch::jit::Stack* stack) {
  size_t n = sdpa_op().schema().arguments().size();
  size_t base = stack->size() - n;
  auto* a = stack->data() + base;
  bool grad = at::GradMode::is_enabled() &&
              (wants_grad(a[0]) || wants_grad(a[1]) || wants_grad(a[2]) || wants_grad(a[3]));
  if (!grad) {
    at::AutoDispatchBelowADInplaceOrView below;
    sdpa_op().callBoxed(stack);
    return;
  }
  ensure();
  auto q = a[0].toTensor(), k = a[1].toTensor(), v = a[2].toTensor();
  std::optional<at::Tensor> mask;
  if (a[3].isTensor() && a[3].toTensor().defined()) mask = a[3].toTensor();
  double dropout = a[4].toDouble();
  bool causal = a[5].toBool();
  auto scale = a[6].isNone() ? std::nullopt : std::optional<double>(a[6].toDouble());
  bool gqa = n > 7 && a[7].toBool();
  at::Tensor result;
  bool flash = tape().device_kind() == 0 &&
               attention_choice(q, k, v, mask, dropout, causal, scale, gqa) == 1;
  if (mask) mask = additive_mask(*mask, q.scalar_type());
  if (flash) {
#if GENIE_TORCH_AT_LEAST(2, 3)
    result = std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal,
                                                                         mask, scale));
#else
    result = std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, mask, dropout, causal,
                                                                std::nullopt, scale));
#endif
  } else {
#if GENIE_TORCH_AT_LEAST(2, 5)
    result = std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, mask, dropout, causal,
                                                                std::nullopt, scale, gqa));
#else
    result = std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, mask, dropout, causal,
                                                                std::nullopt, scale));
#endif
  }
  stack->resize(base);
  stack->emplace_back(std::move(result));
}

// The fused cells have no CPU kernel: the CPU's own formulas, operator by operator.
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& cx,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  auto x = input_bias && input_bias->defined() ? input_gates + *input_bias : input_gates;
  auto h = hidden_bias && hidden_bias->defined() ? hidden_gates + *hidden_bias : hidden_gates;
  auto gates = (h + x).chunk(4, 1);
  auto input = gates[0].sigmoid(), forget = gates[1].sigmoid(), cell = gates[2].tanh(),
       output = gates[3].sigmoid();
  auto cy = forget * cx + input * cell;
  auto hy = output * cy.tanh();
  return {hy, cy, at::empty({0}, cx.options())};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates,
                                            const at::Tensor& hidden_gates, const at::Tensor& hx,
                                            const std::optional<at::Tensor>& input_bias,
                                            const std::optional<at::Tensor>& hidden_bias) {
  auto x = input_bias && input_bias->defined() ? input_gates + *input_bias : input_gates;
  auto h = hidden_bias && hidden_bias->defined() ? hidden_gates + *hidden_bias : hidden_gates;
  auto xs = x.chunk(3, 1), hs = h.chunk(3, 1);
  auto reset = (hs[0] + xs[0]).sigmoid(), update = (hs[1] + xs[1]).sigmoid();
  auto fresh = (xs[2] + hs[2] * reset).tanh();
  return {(hx - fresh) * update + fresh, at::empty({0}, hx.options())};
}

}  // namespace

int64_t attention_choice(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const std::optional<at::Tensor>& mask, double dropout, bool causal,
                         std::optional<double> scale, bool gqa) {
  torch::jit::Stack stack{hollow(q), hollow(k), hollow(v),
                          mask ? c10::IValue(hollow(*mask)) : c10::IValue(), dropout, causal,
                          scale ? c10::IValue(*scale) : c10::IValue()};
  if (choice_op().schema().arguments().size() > 7) stack.emplace_back(gqa);
  choice_op().callBoxedForDispatchKey(c10::DispatchKey::CPU, stack);
  return stack.back().toInt();
}

void register_attention(torch::Library& here, torch::Library& autograd) {
  here.impl("scaled_dot_product_attention",
            torch::CppFunction::makeFromBoxedFunctor(std::make_unique<CaptureKernel>(sdpa_op())));
  autograd.impl("scaled_dot_product_attention",
                torch::CppFunction::makeFromBoxedFunction<&differentiable_attention>());
  for (auto* library : {&here, &autograd}) {
    library->impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
    library->impl("_thnn_fused_gru_cell", TORCH_FN(gru_cell));
  }
}

}  // namespace genie
