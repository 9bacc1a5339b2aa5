// Shapes of results, without data: hand-written rules here, generated ones in metas.h.
#pragma once
#include <ATen/ATen.h>

#include "../codec.h"

namespace genie {

// One tensor that an operator will return.
struct Result {
  bool defined = true;
  Meta meta;
  uint64_t bytes = 0;   // of its storage
  int64_t shares = -1;  // an earlier result with the same storage
};

using Results = std::vector<Result>;

// Fills `results` with the new tensors the operator returns (lists flattened; returned arguments
// left out). Returns false if the rule does not cover these arguments; throws what eager throws.
using Rule = bool (*)(const c10::IValue* args, size_t count, Results& results);

// The rule for "aten::name.overload", or null.
Rule rule_for(const std::string& name);

// The layout CPU attention chooses for these arguments: 0 math, 1 flash, as
// `_fused_sdp_choice` answers (asked with tensors that have no data).
int64_t attention_choice(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const std::optional<at::Tensor>& mask, double dropout, bool causal,
                         std::optional<double> scale, bool gqa);

}  // namespace genie
