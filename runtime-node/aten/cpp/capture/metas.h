// The table of C++ shape functions that build/metas.rs generates.
#pragma once
#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

namespace genie {

struct MetaRow {
  const char* name;
  const char* overload;
  c10::KernelFunction kernel;
};

std::vector<MetaRow> metas();

}  // namespace genie
