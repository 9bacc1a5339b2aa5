// The reviewed lists. Reviewed with libtorch 2.11: all 3,561 operators of its CPU and CUDA libraries,
// and the namespaces that Python adds in a client's process.
//
// What is denied has one of the reasons below, and the client runs it on its own CPU. What is allowed
// computes on the tensors that it is given: `as_strided` and the like look at the bounds of their
// storage. Not everything that is allowed checks the values in them: the backward of max-pooling
// writes where its indices say. So this list keeps programs apart from the node's files and process
// as far as operators mean what they say; it is not what keeps a hostile client in (SECURITY.md).
#include "denied.h"

#include <atomic>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace genie {

namespace {

constexpr const char* kUnnamed = "tensors have no names here";

struct Rule {
  const char* why;
  // What follows the last `::`, without overload. A `*` at the end stands for anything.
  std::vector<const char*> names;
};

// Operators of `aten`, which are allowed unless they stand here.
const std::vector<Rule>& rules() {
  static const auto* rules = new std::vector<Rule>{
      {"it opens a file by name", {"from_file"}},

      {"it makes views of any geometry, without a look at the bounds of their storage",
       {"_reshape_alias", "_reshape_alias_copy"}},

      {"it changes which memory a tensor has, or how much, which a record tells in its own way",
       {"set", "set_", "set_data", "resize", "resize_", "resize_as", "resize_as_", "_resize_output",
        "_resize_output_", "_copy_from", "_copy_from_and_resize", "_lazy_clone",
        "_efficientzerotensor"}},

      {"it gives out memory that nobody wrote, in which the work of others may lie",
       {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty",
        "new_empty_strided"}},

      {"it is about pinned memory, streams or the overlap of memory, which are the node's own",
       {"pin_memory", "_pin_memory", "is_pinned", "record_stream", "_debug_has_internal_overlap"}},

      {"it reads or changes what belongs to the whole process",
       {"_cufft_*", "is_vulkan_available", "_nnpack_available"}},

      {"it prints, or ends every session on a CUDA device when its condition does not hold",
       {"_print", "_assert_async", "_functional_assert_async"}},

      {"it exists to test PyTorch", {"_test_*", "_foobar"}},

      {"autograd, functorch and autocast end at the client",
       {"requires_grad_", "_backward", "retain_grad", "retains_grad", "output_nr", "is_leaf",
        "is_inference", "_version", "data", "_make_dual", "_make_dual_copy", "_unpack_dual",
        "_fw_primal", "_fw_primal_copy", "get_gradients", "_add_batch_dim", "_remove_batch_dim",
        "_autocast_to_full_precision", "_autocast_to_reduced_precision"}},

      {kUnnamed,
       {"rename", "rename_", "refine_names", "align_as", "align_tensors", "align_to"}},

      {"it makes or takes sparse tensors, and a node holds strided ones",
       {"sparse_*", "_sparse_*", "to_sparse*", "_to_sparse*", "_validate_sparse_*",
        "_validate_compressed_sparse_indices", "copy_sparse_to_sparse", "copy_sparse_to_sparse_",
        "resize_as_sparse", "resize_as_sparse_", "coalesce", "_coalesce", "_coalesced",
        "_coalesced_", "is_coalesced", "indices", "indices_copy", "_indices", "_indices_copy",
        "values", "values_copy", "_values", "_values_copy", "crow_indices", "crow_indices_copy",
        "col_indices", "col_indices_copy", "ccol_indices", "ccol_indices_copy", "row_indices",
        "row_indices_copy", "_nnz", "_dimI", "_dimV", "dense_dim", "hspmm", "smm", "sspaddmm",
        "_spdiags", "_spsolve", "_gather_sparse_backward", "embedding_sparse_backward",
        "_embedding_bag_sparse_backward", "_cslt_*"}},

      {"it makes or takes nested tensors, and a node holds strided ones",
       {"_nested_*", "nested_to_padded_tensor", "to_padded_tensor"}},

      {"it makes or takes quantized tensors, and a node holds dense ones",
       {"quantize_per_*", "dequantize", "int_repr", "qscheme", "q_*", "empty_quantized",
        "_empty_affine_quantized", "_empty_per_channel_affine_quantized",
        "_make_per_tensor_quantized_tensor", "_make_per_channel_quantized_tensor",
        "quantized_*"}},

      {"it keeps an object of the process behind a tensor's face",
       {"fbgemm_*", "_wrapped_linear_prepack", "_wrapped_quantized_linear_prepacked"}},

      {"it is one library's kernel, which PyTorch's operators choose by themselves",
       {"cudnn_*", "_cudnn_*", "_use_cudnn_*", "miopen_*", "_use_miopen_*", "mps_*", "_mps_*",
        "_lstm_mps", "lstm_mps_backward", "_scaled_dot_product_attention_math_for_mps", "mkldnn_*",
        "_mkldnn_*", "to_mkldnn", "to_mkldnn_backward", "_nnpack_spatial_convolution", "_triton_*",
        "_propagate_xla_data"}},

      // Tried: each ends the process, or overwrites its memory, with a few wrong numbers. What
      // programs need has the same fault and stays: see the beginning.
      {"it reads or writes as far as its arguments say, unchecked",
       {"segment_reduce", "_segment_reduce_backward", "_convert_indices_from_coo_to_csr",
        "_convert_indices_from_csr_to_coo", "_sobol_engine_*", "_cummax_helper", "_cummin_helper",
        "_flash_attention_*", "_efficient_attention_*",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention_backward",
        "_scaled_dot_product_cudnn_attention_backward", "_fill_mem_eff_dropout_mask_"}},
  };
  return *rules;
}

// Other namespaces are denied, each for a reason.
struct Namespace {
  const char* name;
  const char* why;  // nullptr: allowed but for the rules
};

constexpr const char* kPacked =
    "its namespace packs weights for the CPU into objects, or into layouts that it trusts";
constexpr const char* kCollective = "collectives run in the client, which is in the group";
constexpr const char* kPython = "its code is Python's, which the client runs";

constexpr Namespace kNamespaces[] = {
    {"aten", nullptr},
    {"quantized", kPacked},
    {"_quantized", kPacked},
    {"quantization", kPacked},
    {"sparse", kPacked},
    {"mkl", kPacked},
    {"mkldnn", kPacked},
    {"mkldnn_prepacked", kPacked},
    {"onednn", kPacked},
    {"prepacked", kPacked},
    {"inductor", "its namespace makes views of any geometry, without a look at their bounds"},
    {"static_runtime", "its namespace is for one interpreter of TorchScript"},
    {"profiler", "profiling happens in the client"},
    {"_test", "it exists to test PyTorch"},
    {"c10d", kCollective},
    {"c10d_functional", kCollective},
    {"_c10d_functional", kCollective},
    {"_c10d_functional_autograd", kCollective},
    {"_dtensor", kCollective},
    {"fsdp", kCollective},
    {"symm_mem", "it hands memory to other processes"},
    {"streams", "streams are the node's own"},
    {"prims", kPython},
    {"rngprims", kPython},
    {"debugprims", kPython},
    {"export", kPython},
    {"onnx", kPython},
    {"onnx_symbolic", kPython},
    {"flex_lib", kPython},
    {"quantized_decomposed", kPython},
    {"debug_mode_ops", kPython},
    {"_inductor_test", kPython},
    {"torchvision", "its library is the client's"},
    {"image", "it opens files, and its library is the client's"},
};

// Names without an end, and beginnings.
struct Names {
  std::unordered_map<std::string_view, const char*> whole;
  std::vector<std::pair<std::string_view, const char*>> beginnings;

  Names() {
    for (const Rule& rule : rules()) {
      for (std::string_view name : rule.names) {
        if (name.back() == '*') {
          name.remove_suffix(1);
          beginnings.emplace_back(name, rule.why);
        } else {
          whole.emplace(name, rule.why);
        }
      }
    }
  }

  const char* find(std::string_view name) const {
    if (auto found = whole.find(name); found != whole.end()) return found->second;
    for (const auto& [beginning, why] : beginnings)
      if (name.substr(0, beginning.size()) == beginning) return why;
    return nullptr;
  }
};

// Dimensions by name are strings in a schema; the overload tells.
bool takes_dimension_names(const std::string& overload) {
  return overload.find("names") != std::string::npos ||
         overload.find("imname") != std::string::npos;
}

// What no record carries.
const char* denied_type(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::ClassType:
    case c10::TypeKind::AnyType:
    case c10::TypeKind::StorageType:
    case c10::TypeKind::StreamObjType:
      return "an argument or result of it is an object of the process";
    default:
      break;
  }
  for (const auto& inner : type->containedTypes())
    if (const char* why = denied_type(inner)) return why;
  return nullptr;
}

const char* denied_types(const std::vector<c10::Argument>& arguments) {
  for (const auto& argument : arguments)
    if (const char* why = denied_type(argument.real_type())) return why;
  return nullptr;
}

std::string kept_from(const std::string& space) {
  return "nobody has reviewed the operators of the namespace " + space;
}

// Operators that this node's owner leaves to the clients.
struct Withheld {
  std::atomic<bool> any{false};
  std::mutex mutex;
  std::unordered_set<std::string> names;
};

Withheld& left_out() {
  static auto* instance = new Withheld;
  return *instance;
}

}  // namespace

std::string denied(const c10::FunctionSchema& schema) {
  const std::string& full = schema.name();
  auto colons = full.find("::");
  std::string space = colons == std::string::npos ? "" : full.substr(0, colons);
  const Namespace* reviewed = nullptr;
  for (const Namespace& each : kNamespaces)
    if (space == each.name) reviewed = &each;
  if (!reviewed) return kept_from(space);
  if (reviewed->why) return reviewed->why;
  static const auto* names = new Names;
  if (const char* why = names->find(std::string_view(full).substr(colons + 2))) return why;
  if (takes_dimension_names(schema.overload_name())) return kUnnamed;
  if (const char* why = denied_types(schema.arguments())) return why;
  if (const char* why = denied_types(schema.returns())) return why;
  return {};
}

void withhold(const std::string& name) {
  auto& left = left_out();
  std::lock_guard<std::mutex> lock(left.mutex);
  left.names.insert(name);
  left.any = true;
}

bool withheld(const c10::FunctionSchema& schema) {
  auto& left = left_out();
  if (!left.any) return false;
  std::lock_guard<std::mutex> lock(left.mutex);
  return left.names.count(schema.name()) || left.names.count(toString(schema.operator_name()));
}

}  // namespace genie
