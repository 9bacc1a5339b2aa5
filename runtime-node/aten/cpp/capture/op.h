// Recording operators: one Operator per registered overload, with its templates.
#pragma once
#include <ATen/TracerMode.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "doubts.h"
#include "infer.h"
#include "state.h"

namespace genie {

struct Template;

// What is known of one operator, for the life of the process.
class Operator {
 public:
  explicit Operator(c10::OperatorHandle handle);
  ~Operator();

  // Records the call on top of the stack and replaces it by its results.
  void record(torch::jit::Stack* stack);

  const std::string& name() const { return name_; }

 private:
  struct Argument {
    bool number = false;   // declared as Scalar: an integer here may vary
    bool dim = false;      // names a dimension
    bool writes = false;   // written by the operator
  };
  struct Return {
    int argument = -1;     // this result is that argument
    bool tensor = false;
    bool list = false;     // of tensors
  };

  void miss(torch::jit::Stack* stack, struct Encoder& encoder);
  void run(torch::jit::Stack* stack, struct Encoder& encoder, Results* seen);
  void divide(torch::jit::Stack* stack, const char* reason);
  bool divide_lists(torch::jit::Stack* stack);
  bool divide_join(torch::jit::Stack* stack);
  void fall_back(torch::jit::Stack* stack, const char* reason);
  bool infer_fast(const torch::jit::Stack& stack, Results& results);
  bool infer_by_meta(const torch::jit::Stack& stack, Results& results);
  bool run_meta(torch::jit::Stack args, const c10::KernelFunction* kernel,
                const torch::jit::Stack& original, Results& results);
  std::shared_ptr<const Template> define(const torch::jit::Stack& stack, const Encoder& encoder,
                                         const Results& results);
  void emit(torch::jit::Stack* stack, const Template& tmpl, uint64_t first);
  bool node_runs_it();
  bool is_dynamic(const c10::IValue* args) const;
  uint64_t doubtful_dtypes(const c10::IValue* args) const;
  bool overlaps(const c10::IValue* args) const;
  bool names_no_dimension(const c10::IValue* args) const;
  uint64_t kind_of_call(const c10::IValue* args) const;
  int trust(uint64_t kind);
  bool pays_to_ask_metas(uint64_t kind);
  void judge(uint64_t kind, bool agrees);
  bool accepted(uint64_t signature);
  void accept(uint64_t signature);
  bool move_indices(torch::jit::Stack* stack);

  friend struct Encoder;

  c10::OperatorHandle handle_;
  std::string name_;
  uint64_t hash_;
  std::vector<Argument> arguments_;
  std::vector<Return> returns_;
  bool random_ = false;
  bool mask_decides_ = false; // dynamic only when indexed by masks
  bool dynamic_ = false;      // results' shapes depend on data, or are not all tensors
  bool writes_ = false;       // writes an argument
  bool picky_ = false;          // refuses by numbers or words, which its shape does not tell
  bool masks_ = false;          // takes bools beside floats
  bool indices_ = false;        // takes integers of 64 bits beside floats
  bool integers_only_ = false;  // refuses floating types
  bool pointwise_ = false;    // each element of a result depends on its own place alone
  bool multiplies_ = true;    // may multiply matrices: see current_settings
  bool values_shape_ = false; // floating scalars decide shapes: keep them in the key
  bool ambiguous_lists_ = false;
  Rule rule_ = nullptr;
  Doubt doubt_ = nullptr;
  Doubt doubt_of_numbers_ = nullptr;
  const c10::KernelFunction* structured_ = nullptr;
  // Whether the dispatcher's Meta kernel has agreed with the node, by kind of call: it counts up
  // to `kTrusted`, and -1 is for ever no.
  std::unordered_map<uint64_t, int> trust_;
  // Runs on the node before the first Meta kernel was asked, by kind of call.
  std::unordered_map<uint64_t, int> unasked_;
  // Signatures of calls that eager might have refused and the node has run.
  std::unordered_set<uint64_t> accepted_;
  uint64_t node_session_ = 0;
  bool node_has_ = false;

  struct Cache;
  std::unique_ptr<Cache> cache_;
};

// Guards encoding, template caches and the order of records. Never held while Python may run.
extern std::mutex capture_mutex;
// A number for `RemoteStorage::mark`. Under the capture lock.
uint64_t next_mark();
// Counts how often templates and scripts were forgotten.
uint64_t forgotten_so_far();
// Forgets every template and script, here and on the node. Under the capture lock.
void start_over();
uint64_t key_hash(std::string_view bytes);

struct CaptureCounters {
  std::atomic<uint64_t> ops{0}, hits{0}, misses{0}, runs{0}, fallbacks{0}, capture_ticks{0};
};
CaptureCounters& counters();

extern std::atomic<bool> log_intercepts;
extern std::atomic<bool> meta_infer;
extern std::atomic<bool> metas_imported;
extern std::atomic<bool> aten_impl;

// The boxed kernel that the dispatcher calls.
class CaptureKernel final : public c10::OperatorKernel {
 public:
  explicit CaptureKernel(c10::OperatorHandle handle)
      : operator_(std::make_shared<Operator>(handle)),
        composite_(!handle.hasKernelForDispatchKey(c10::DispatchKey::CPU) &&
                   handle.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    // A tracer that listens still has no kernel for this operator: it waits for what the operator
    // is made of (`convolution`).
    if (C10_UNLIKELY(composite_ && at::tracer::impl::is_dispatch_enabled()))
      return op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
    operator_->record(stack);
  }

 private:
  std::shared_ptr<Operator> operator_;
  bool composite_;
};

// Records any operator, finding its Operator by handle (operators outside aten, copies).
void record(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Raises for a quantized argument (refused.cpp).
void refuse_quantized(const std::string& name, const at::Tensor& argument);

}  // namespace genie
