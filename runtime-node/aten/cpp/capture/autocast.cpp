// Mixed precision: which operators cast their arguments at AutocastPrivateUse1, and the state.
//
// From 2.5 on PyTorch keeps operator lists for backends outside its tree, and the state has
// Python functions. Before, the lists are here and the state is reached through `_native`.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../capture.h"
#include "../torch_version.h"
#include "state.h"

namespace genie {

#if !GENIE_TORCH_AT_LEAST(2, 5)
namespace {

enum class Policy { kLower, kFull, kFullDtype, kPromote };

struct Group {
  Policy policy;
  std::vector<const char*> names;
};

// What CUDA's autocast casts in these versions.
const std::vector<Group>& groups() {
  static const std::vector<Group> all{
      {Policy::kLower,
       {"_convolution.deprecated", "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc",
        "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "convolution",
        "prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv", "linalg_vecdot",
        "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot",
        "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell",
        "rnn_relu_cell", "_scaled_dot_product_flash_attention", "scaled_dot_product_attention"}},
      {Policy::kFull,
       {"acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p",
        "reciprocal", "rsqrt", "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor",
        "pow.Scalar", "softplus", "layer_norm", "native_layer_norm", "group_norm",
        "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim", "cosine_similarity",
        "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d",
        "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
        "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss",
        "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist",
        "pdist", "cdist", "renorm", "logsumexp", "norm.Scalar", "norm.ScalarOpt_dim",
        "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d",
        "_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d",
        "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
        "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa"}},
      {Policy::kFullDtype,
       {"prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum",
        "linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum",
        "sum.dim_IntList"}},
      {Policy::kPromote,
       {"addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler",
        "index_put", "tensordot", "scatter_add"}},
  };
  return all;
}

bool eligible(const at::Tensor& t) {
  return t.defined() && t.is_privateuseone() && t.is_floating_point() &&
         t.scalar_type() != at::kDouble;
}

bool is_half(const at::Tensor& t) {
  return eligible(t) && t.scalar_type() == at::autocast::get_autocast_privateuseone_dtype();
}

c10::IValue cast(const c10::IValue& v, at::ScalarType to) {
  if (v.isTensor()) return at::autocast::cached_cast(to, v.toTensor(), kRemote);
  if (!v.isTensorList()) return v;
  c10::List<at::Tensor> list;
  for (const at::Tensor& t : v.toTensorVector())
    list.push_back(at::autocast::cached_cast(to, t, kRemote));
  return list;
}

struct AutocastKernel final : c10::OperatorKernel {
  AutocastKernel(c10::OperatorHandle op, Policy policy) : op_(op), policy_(policy) {
    const auto& arguments = op_.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].name() == "dtype") dtype_ = static_cast<int>(i);
  }

  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
    c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::AutocastPrivateUse1);
    size_t n = op_.schema().arguments().size();
    auto* arguments = stack->data() + (stack->size() - n);
    if (policy_ == Policy::kFullDtype) {
      if (dtype_ >= 0 && arguments[dtype_].isNone() && eligible(arguments[0].toTensor()))
        arguments[dtype_] = static_cast<int64_t>(at::kFloat);
    } else {
      auto to = target(arguments, n);
      for (size_t i = 0; i < n; ++i) arguments[i] = cast(arguments[i], to);
    }
    op_.callBoxed(stack);
  }

 private:
  at::ScalarType target(const c10::IValue* arguments, size_t n) const {
    auto lower = at::autocast::get_autocast_privateuseone_dtype();
    if (policy_ == Policy::kLower) return lower;
    if (policy_ == Policy::kFull) return at::kFloat;
    // The widest argument decides.
    auto wide = [](const at::Tensor& t) { return eligible(t) && !is_half(t); };
    for (size_t i = 0; i < n; ++i) {
      if (arguments[i].isTensor() && wide(arguments[i].toTensor())) return at::kFloat;
      if (!arguments[i].isTensorList()) continue;
      for (const at::Tensor& t : arguments[i].toTensorVector())
        if (wide(t)) return at::kFloat;
    }
    return lower;
  }

  c10::OperatorHandle op_;
  Policy policy_;
  int dtype_ = -1;
};

}  // namespace

void register_autocast_operators(torch::Library& here) {
  for (const auto& group : groups()) {
    for (const char* name : group.names) {
      std::string full = std::string("aten::") + name, overload;
      auto dot = full.find('.');
      if (dot != std::string::npos) {
        overload = full.substr(dot + 1);
        full.resize(dot);
      }
      auto op = c10::Dispatcher::singleton().findSchema({full, overload});
      if (!op) continue;
      here.impl(name, torch::CppFunction::makeFromBoxedFunctor(
                           std::make_unique<AutocastKernel>(*op, group.policy)));
    }
  }
}
#else
}  // namespace genie

namespace at::autocast {
#define GENIE_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define GENIE_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define GENIE_SET_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define GENIE_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
static void register_autocast_operators(torch::Library& m) {
  AT_FORALL_LOWER_PRECISION_FP(GENIE_LOWER)
  AT_FORALL_FP32(GENIE_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(GENIE_SET_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(GENIE_PROMOTE)
}
}  // namespace at::autocast

namespace genie {

using at::autocast::register_autocast_operators;
#endif

void register_autocast() {
  auto* fall = new torch::Library(torch::Library::IMPL, "_",
                                  c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  fall->fallback(torch::CppFunction::makeFallthrough());
  auto* here = new torch::Library(torch::Library::IMPL, "aten",
                                  c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  register_autocast_operators(*here);
}

}  // namespace genie

extern "C" {

void genie_capture_autocast(uint8_t* enabled, uint8_t* dtype) {
#if GENIE_TORCH_AT_LEAST(2, 4)
  *enabled = at::autocast::is_autocast_enabled(genie::kRemote);
  *dtype = static_cast<uint8_t>(at::autocast::get_autocast_dtype(genie::kRemote));
#else
  *enabled = at::autocast::is_privateuseone_enabled();
  *dtype = static_cast<uint8_t>(at::autocast::get_autocast_privateuseone_dtype());
#endif
}

void genie_capture_set_autocast(uint8_t enabled, uint8_t dtype) {
  auto type = static_cast<at::ScalarType>(dtype);
#if GENIE_TORCH_AT_LEAST(2, 4)
  at::autocast::set_autocast_enabled(genie::kRemote, enabled != 0);
  at::autocast::set_autocast_dtype(genie::kRemote, type);
#else
  at::autocast::set_privateuseone_enabled(enabled != 0);
  at::autocast::set_autocast_privateuseone_dtype(type);
#endif
}

}
