// Operators of PyTorch that are made of others and ask something special of this device: arguments
// that must lie on the CPU, and what `torch.jit.trace` writes into its graphs.
#include <torch/library.h>

#include <unordered_map>

#include "../codec.h"
#include "op.h"
#include "state.h"

namespace genie {

namespace {

// Arguments whose values PyTorch reads on the host, in code that serves every device. It refuses
// them elsewhere; but where eager computes, everything lies on one device, and a program that says
// `device=` once puts them there. So they are fetched.
const std::unordered_map<std::string, const char*>& host_arguments() {
  static const std::unordered_map<std::string, const char*> names{
      {"aten::tensor_split.tensor_indices_or_sections", "tensor_indices_or_sections"},
      {"aten::_pack_padded_sequence", "lengths"},
      {"aten::_pack_padded_sequence_backward", "batch_sizes"},
      {"aten::_pad_packed_sequence", "batch_sizes"},
      {"aten::_reshape_from_tensor", "shape"},
      {"aten::lstm.data", "batch_sizes"},
      {"aten::gru.data", "batch_sizes"},
      {"aten::rnn_tanh.data", "batch_sizes"},
      {"aten::rnn_relu.data", "batch_sizes"},
      {"aten::randint_like.Tensor", "high"},
      {"aten::randint_like.Tensor_generator", "high"},
  };
  return names;
}

class FetchArgument final : public c10::OperatorKernel {
 public:
  // PyTorch's own code for every device is found at `rest`.
  FetchArgument(size_t argument, c10::DispatchKey rest) : argument_(argument), rest_(rest) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    auto& v = (*stack)[stack->size() - op.schema().arguments().size() + argument_];
    if (v.isTensor() && is_remote(v.toTensor())) v = v.toTensor().to(at::kCPU);
    op.callBoxedForDispatchKey(rest_, *stack);
  }

 private:
  size_t argument_;
  c10::DispatchKey rest_;
};

// Traced graphs hold this in place of `convolution`; its further arguments are settings of the
// process, which go their own way.
at::Tensor traced_convolution(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                              at::IntArrayRef output_padding, int64_t groups, bool, bool, bool,
                              bool) {
  return at::convolution(input, weight, bias, stride, padding, dilation, transposed,
                         output_padding, groups);
}

}  // namespace

void register_composites(torch::Library& here, torch::Library& autograd) {
  using c10::DispatchKey;
  for (const auto& [name, wanted] : host_arguments()) {
    auto dot = name.find('.');
    auto op = c10::Dispatcher::singleton().findSchema(
        {name.substr(0, dot), dot == std::string::npos ? "" : name.substr(dot + 1)});
    if (!op) continue;  // this PyTorch has not got it
    auto argument = op->schema().argumentIndexWithName(wanted);
    if (!argument) continue;
    bool implicit = op->hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
    auto rest = implicit ? DispatchKey::CompositeImplicitAutograd
                         : DispatchKey::CompositeExplicitAutograd;
    if (!op->hasKernelForDispatchKey(rest)) continue;
    auto fetch = [&](torch::Library& library) {
      library.impl(name.c_str(),
                   torch::CppFunction::makeFromBoxedFunctor(std::make_unique<FetchArgument>(
                       static_cast<size_t>(*argument), rest)));
    };
    fetch(here);
    if (implicit) fetch(autograd);
  }
  here.impl("_convolution", TORCH_FN(traced_convolution));
}

}  // namespace genie
