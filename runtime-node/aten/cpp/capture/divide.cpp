// Calls that are too large for one record: more tensors, numbers or bytes than the wire carries.
//
// Operators that do the same to each element of their lists (`_foreach_*`, fused optimizers) become
// calls on parts of the lists. `cat` and `stack` join parts that were joined before: two copies
// instead of one. What cannot be divided runs on this CPU, as eager would.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>

#include <algorithm>

#include "op.h"
#include "names.h"

namespace genie {

namespace {

// Elements of a part. Parts of one length share a template, whatever the whole's length.
constexpr size_t kPart = 4096;

bool is_elementwise_over_lists(const std::string& name) {
  return starts_with_any(name, {"aten::_foreach_", "aten::_fused_ad", "aten::_fused_sgd",
                                "aten::_amp_foreach_"});
}

// Smaller than the whole, so that dividing comes to an end.
size_t part_of(size_t whole) { return std::min(kPart, (whole + 1) / 2); }

c10::IValue slice(const c10::IValue& list, size_t begin, size_t end) {
  auto whole = list.toList();
  c10::impl::GenericList part(whole.elementType());
  part.reserve(end - begin);
  for (size_t i = begin; i < end; ++i) part.push_back(whole.get(i));
  return part;
}

const c10::OperatorHandle& cat_op() {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::cat", "");
  return op;
}

}  // namespace

// `reason` says which limit the call is beyond.
void Operator::divide(torch::jit::Stack* stack, const char* reason) {
  if (divide_lists(stack) || divide_join(stack)) return;
  fall_back(stack, reason);
}

bool Operator::divide_lists(torch::jit::Stack* stack) {
  if (!is_elementwise_over_lists(name_)) return false;
  size_t base = stack->size() - arguments_.size();
  const auto& declared = handle_.schema().arguments();
  // A tensor with one number for each element of the lists.
  auto is_numbers = [&](size_t i) {
    const auto& v = (*stack)[base + i];
    return declared[i].name() == "scalars" && v.isTensor() && v.toTensor().dim() == 1;
  };
  size_t length = 0;
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const auto& v = (*stack)[base + i];
    size_t own = v.isList()       ? v.toListRef().size()
                 : is_numbers(i) ? static_cast<size_t>(v.toTensor().size(0))
                                 : 0;
    if (own == 0) continue;  // an option that was not taken
    if (length != 0 && own != length) return false;
    length = own;
  }
  if (length < 2) return false;

  std::vector<c10::impl::GenericList> lists;
  for (size_t begin = 0, step = part_of(length); begin < length; begin += step) {
    size_t end = std::min(begin + step, length);
    torch::jit::Stack part;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const auto& v = (*stack)[base + i];
      if (v.isList() && !v.toListRef().empty()) {
        part.push_back(slice(v, begin, end));
      } else if (is_numbers(i)) {
        at::AutoDispatchBelowADInplaceOrView below;
        part.emplace_back(v.toTensor().slice(0, static_cast<int64_t>(begin),
                                             static_cast<int64_t>(end)));
      } else {
        part.push_back(v);
      }
    }
    record(&part);
    for (size_t i = 0; i < part.size(); ++i) {
      if (!part[i].isList()) continue;
      auto made = part[i].toList();
      while (lists.size() <= i) lists.emplace_back(made.elementType());
      for (size_t k = 0; k < made.size(); ++k) lists[i].push_back(made.get(k));
    }
  }
  torch::jit::Stack results;
  for (size_t i = 0; i < returns_.size(); ++i) {
    if (returns_[i].argument >= 0)
      results.push_back((*stack)[base + static_cast<size_t>(returns_[i].argument)]);
    else
      results.emplace_back(std::move(lists.at(i)));
  }
  stack->resize(base);
  for (auto& result : results) stack->push_back(std::move(result));
  return true;
}

bool Operator::divide_join(torch::jit::Stack* stack) {
  bool stacks = name_ == "aten::stack";
  if (!stacks && name_ != "aten::cat") return false;
  size_t base = stack->size() - arguments_.size();
  if (!(*stack)[base].isTensorList()) return false;
  auto tensors = (*stack)[base].toTensorVector();
  c10::IValue dim = (*stack)[base + 1];
  if (tensors.size() < 2) return false;
  for (size_t i = 0; stacks && i < tensors.size(); ++i)
    TORCH_CHECK(tensors[i].sizes().equals(tensors[0].sizes()),
                "stack expects each tensor to be equal size, but got ", tensors[0].sizes(),
                " at entry 0 and ", tensors[i].sizes(), " at entry ", i);
  // The whole's checks, in eager's words, and its dtype: each part would find its own.
  Results whole;
  if (!infer_fast(*stack, whole) || whole.size() != 1) return false;
  check_storage_bytes(whole[0].bytes);
  at::AutoDispatchBelowADInplaceOrView below;
  for (auto& t : tensors)
    if (t.scalar_type() != whole[0].meta.dtype) t = t.to(whole[0].meta.dtype);

  c10::List<at::Tensor> parts;
  for (size_t begin = 0, step = part_of(tensors.size()); begin < tensors.size(); begin += step) {
    size_t end = std::min(begin + step, tensors.size());
    c10::List<at::Tensor> list;
    list.reserve(end - begin);
    for (size_t i = begin; i < end; ++i) list.push_back(tensors[i]);
    torch::jit::Stack part{std::move(list), dim};
    record(&part);
    parts.push_back(part.back().toTensor());
  }
  torch::jit::Stack join{std::move(parts), dim};
  genie::record(cat_op(), &join);
  stack->resize(base);
  stack->push_back(std::move(join.back()));
  return true;
}

}  // namespace genie
