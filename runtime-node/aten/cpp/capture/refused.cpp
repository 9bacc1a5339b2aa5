// What the device does not hold: sparse, quantized and strided nested tensors. PyTorch would end such a
// call with the list of all its backends, or in an assertion; here the way around is named.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "../torch_version.h"
#include "op.h"

namespace genie {

namespace {

using c10::DispatchKey;

enum class Kind { kSparse, kQuantized, kNested, kMkldnn };

const char* way_around(Kind kind) {
  switch (kind) {
    case Kind::kSparse:
      return "remote_accelerator holds dense tensors only, not sparse ones: send x.to_dense(), keep the sparse "
             "part on the CPU, and make nn.Embedding with sparse=False";
    case Kind::kQuantized:
      return "remote_accelerator holds no quantized tensors (torch.ao): run the quantized model on the CPU, or "
             "the model in bfloat16 on the device; fake quantization for training runs there";
    case Kind::kNested:
      return "remote_accelerator holds no nested tensors of layout torch.strided, which nested attention is "
             "made of: use layout=torch.jagged for the rest, and give attention padded tensors with a mask";
    case Kind::kMkldnn:
      return "tensors of layout mkldnn live on the CPU only, not on remote_accelerator: use x.cpu().to_mkldnn()";
  }
  return "";
}

template <Kind kind>
void refuse_call(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op_name(op), ": ", way_around(kind));
}

template <Kind kind>
torch::CppFunction refusal() {
  return torch::CppFunction::makeFromBoxedFunction<&refuse_call<kind>>();
}

// Every operator without a kernel for such tensors of this device.
template <Kind kind>
void refuse_all(DispatchKey key) {
  auto* library = new torch::Library(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
  library->fallback(refusal<kind>());
}

// Operators that make such tensors of the device's dense ones.
template <Kind kind>
void refuse_makers(torch::Library& here, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    std::string full = std::string("aten::") + name, overload;
    if (auto dot = full.find('.'); dot != std::string::npos) {
      overload = full.substr(dot + 1);
      full.resize(dot);
    }
    // Not every version has each.
    if (c10::Dispatcher::singleton().findSchema({full, overload})) here.impl(name, refusal<kind>());
  }
}

}  // namespace

void register_refused(torch::Library& here) {
  refuse_all<Kind::kSparse>(DispatchKey::SparsePrivateUse1);
#if GENIE_TORCH_AT_LEAST(2, 3)  // before, no such key: PyTorch refuses in words of its own
  refuse_all<Kind::kSparse>(DispatchKey::SparseCsrPrivateUse1);
#endif
  refuse_all<Kind::kQuantized>(DispatchKey::QuantizedPrivateUse1);
  refuse_all<Kind::kNested>(DispatchKey::NestedTensorPrivateUse1);
  refuse_makers<Kind::kSparse>(
      here, {"_to_sparse", "_to_sparse.sparse_dim", "_to_sparse_csr", "_to_sparse_csc", "_to_sparse_bsr",
             "_to_sparse_bsc"});
  refuse_makers<Kind::kQuantized>(
      here, {"quantize_per_tensor", "quantize_per_tensor.tensor_qparams", "quantize_per_tensor.tensors",
             "quantize_per_tensor_dynamic", "quantize_per_channel", "_make_per_tensor_quantized_tensor",
             "_make_per_channel_quantized_tensor"});
  refuse_makers<Kind::kNested>(here, {"_nested_tensor_from_tensor_list", "_nested_from_padded",
                                      "_nested_from_padded_and_nested_example"});
  refuse_makers<Kind::kMkldnn>(here, {"to_mkldnn"});
}

void refuse_quantized(const std::string& name, const at::Tensor& argument) {
  TORCH_CHECK_NOT_IMPLEMENTED(!argument.is_quantized(), name, ": ", way_around(Kind::kQuantized));
}

}  // namespace genie
