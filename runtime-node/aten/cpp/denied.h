// Which operators a node runs. PyTorch knows some that are no computation: they open files, change
// the process, or go where a pointer leads. A client asks for operators by name, so each is looked at
// here.
#pragma once
#include <ATen/core/function_schema.h>

#include <string>

namespace genie {

// Why no node runs this operator, in words that follow its name; empty when it may run.
std::string denied(const c10::FunctionSchema& schema);

// Leaves an operator to the clients from now on: `aten::tanh` with all its overloads, or one,
// `aten::add.Tensor`. Any thread may call it.
void withhold(const std::string& name);
bool withheld(const c10::FunctionSchema& schema);

}  // namespace genie
