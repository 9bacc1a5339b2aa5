// Raising a Python exception class of our own from C++ that does not know Python.
//
// torch's bindings turn a C++ `torch::PyTorchError` into the class that its `python_type` names.
// The class is declared in torch/csrc/Exceptions.h, which includes Python.h; the declaration here
// repeats its layout (unchanged from torch 2.2 to 2.11), and exception matching goes by the
// type's name. A frame of torch that does not know it sees a std::exception: a RuntimeError.
#pragma once
#include <exception>
#include <string>
#include <utility>

struct _object;  // PyObject

namespace torch {
struct __attribute__((visibility("default"))) PyTorchError : public std::exception {
  PyTorchError() = default;
  PyTorchError(std::string msg_) : msg(std::move(msg_)) {}
  virtual _object* python_type() = 0;
  const char* what() const noexcept override {
    return msg.c_str();
  }
  std::string msg;
};
}  // namespace torch

// What torch throws when Python code that it called raised: read only, and by its first member.
// Declared in torch/csrc/Exceptions.h (the same from torch 2.2 to 2.15).
struct __attribute__((visibility("default"))) python_error : public std::exception {
  _object* type{nullptr};
};

namespace genie {
struct __attribute__((visibility("default"))) PythonError : public torch::PyTorchError {
  PythonError(void* type, std::string message)
      : torch::PyTorchError(std::move(message)), type_(static_cast<_object*>(type)) {}
  _object* python_type() override {
    return type_;
  }

 private:
  _object* type_;  // lives for ever
};
}  // namespace genie
