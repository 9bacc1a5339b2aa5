// Calls that eager may refuse although no shape function looks: the node runs each once while the
// program waits, so that a refusal comes at the call.
#pragma once
#include <ATen/ATen.h>

namespace genie {

// Whether the operator's kernels refuse by numbers or words: then every new call is in doubt.
bool is_picky(const std::string& name);

// Whether tensors of bools, or of indices, are usual arguments beside floating ones.
bool takes_masks(const std::string& name);
bool takes_indices(const std::string& name);

// True for arguments that eager may refuse.
using Doubt = bool (*)(const c10::IValue* args);

// That of "aten::name.overload", or null: looks at shapes, dtypes and integers, which one template has
// in common.
Doubt doubt_for(const std::string& name);
// The same for numbers that vary from call to call.
Doubt doubt_of_numbers_for(const std::string& name);

}  // namespace genie
