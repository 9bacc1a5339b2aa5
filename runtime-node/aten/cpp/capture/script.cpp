// Compiled graphs: what one run of a graph records is kept as a script and sent as one record from
// its second run on.
//
// The front end (genie/compile.py) runs a graph through `graph_run`; where that knows no script for
// inputs like these, it runs the graph operator by operator between `graph_note` and `graph_keep`.
// The key of a script is PyTorch's settings, the geometry of the inputs, which of them share storage,
// and the graph's integers: what a template's key is to an operator. What the values decide is in no script: a read
// makes the notes useless.
#include <torch/library.h>

#include <map>

#include "op.h"
#include "script.h"
#include "settings.h"

namespace genie {

namespace {

// Scripts of one graph; the least recently run is dropped for another.
constexpr size_t kScriptsOfGraph = 64;
// Runs of one key that may fail to make a script before it is left alone. The first runs of an
// operator may be synchronous, which a script cannot be.
constexpr int kAttempts = 6;
// Keys that a graph may meet in a row without meeting one again; after that only one run in
// `kRarely` takes notes, for a cache that grows by one has nothing to repeat.
constexpr uint64_t kFruitless = 32;
constexpr uint64_t kRarely = 16;
// Scripts and bytes of scripts defined at a time; then everything is forgotten and noted anew.

struct Output {
  int64_t input = -1;  // it is this input
  int64_t of = -1;     // or a view of this one
  int64_t made = -1;   // or its storage is the one of this number
  bool is_view = false;  // with what autograd knows of views; otherwise it shares the bytes only
  uint64_t bytes = 0;
  Meta meta;
};

struct Script {
  int64_t number = 0;
  std::string key;
  uint64_t generation = 0;
  uint64_t handle = 0;
  uint64_t bytes = 0;
  bool defined = false;
  uint64_t last_run = 0;
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> constants;
  std::vector<Output> outputs;
  std::vector<uint32_t> written;  // inputs whose storage it writes
  size_t frees = 0;
};

struct Graph {
  std::unordered_map<std::string, std::shared_ptr<Script>> scripts;
  std::unordered_map<std::string, int> refused;
  uint64_t fruitless = 0;
};

// Under the capture lock.
std::unordered_map<int64_t, Graph>& graphs() {
  static auto* all = new std::unordered_map<int64_t, Graph>;
  return *all;
}

uint32_t scripts_defined = 0;
uint64_t script_bytes_defined = 0;
uint64_t defined_in = 0;  // the generation that the two count

// The inputs of a run: their geometry and their storages, each once.
struct Inputs {
  Writer key;
  c10::SmallVector<uint64_t, 64> ids;
  c10::SmallVector<c10::StorageImpl*, 64> storages;

  // Under the capture lock. False for inputs that no script can have.
  bool encode(at::TensorList tensors, at::IntArrayRef sizes) {
    key.u64(current_settings(true).hash);
    uint64_t mark = next_mark();
    for (const at::Tensor& t : tensors) {
      if (!t.defined()) {
        key.u8(kUndefinedTensor);
        continue;
      }
      if (t.device().type() != kRemote || t.layout() != at::kStrided || t.is_quantized() ||
          t.is_conj() || t.is_neg())
        return false;
      auto* storage = t.storage().unsafeGetStorageImpl();
      auto& r = remote(*storage);
      if (r.mark != mark) {
        r.mark = mark;
        r.slot = static_cast<uint32_t>(ids.size());
        ids.push_back(r.id);
        storages.push_back(storage);
      }
      key.u8(kTensor);
      key.varint(r.slot);
      put_meta(key, t);
    }
    for (int64_t size : sizes) {
      key.u8(kInt);
      key.zigzag(size);
    }
    return true;
  }
};

// A run that is being noted by this thread.
struct Noting {
  ScriptNotes notes;
  std::string key;
  std::vector<uint64_t> ids;
};

std::unique_ptr<Noting>& noting() {
  thread_local std::unique_ptr<Noting> current;
  return current;
}

void drop(Graph& graph, const std::string& key) {
  auto found = graph.scripts.find(key);
  if (found == graph.scripts.end()) return;
  if (found->second->generation == forgotten_so_far()) tape().script_drop(found->second->handle);
  graph.scripts.erase(found);
}

// Whether there is room on the tape for one more definition. Under the capture lock.
bool make_room(const Script& script) {
  if (defined_in != forgotten_so_far()) {
    scripts_defined = 0;
    script_bytes_defined = 0;
    defined_in = forgotten_so_far();
  }
  if (scripts_defined >= kScriptsMax || script_bytes_defined + script.bytes > kScriptsBytesMax) {
    start_over();
    return false;
  }
  ++scripts_defined;
  script_bytes_defined += script.bytes;
  return true;
}

int64_t graph_new() {
  static int64_t next = 0;
  std::lock_guard<std::mutex> lock(capture_mutex);
  graphs()[++next];
  return next;
}

void graph_drop(int64_t number) {
  std::unordered_map<int64_t, Graph>::node_type dropped;  // its constants die without the lock
  std::lock_guard<std::mutex> lock(capture_mutex);
  auto found = graphs().find(number);
  if (found == graphs().end()) return;
  for (auto& [key, script] : found->second.scripts)
    if (script->generation == forgotten_so_far()) tape().script_drop(script->handle);
  dropped = graphs().extract(found);
}

// Shares the version of `base`, as PyTorch's own views do.
at::Tensor view_of(const at::Tensor& base, const Output& o) {
  auto offset = std::optional<int64_t>(o.meta.offset);
  if (o.is_view) return base.as_strided(o.meta.sizes, o.meta.strides, offset);
  auto view = base.detach();
  view.unsafeGetTensorImpl()->set_sizes_and_strides(o.meta.sizes, o.meta.strides, o.meta.offset);
  return view;
}

std::vector<at::Tensor> results(const Script& script, uint64_t first, at::TensorList inputs) {
  std::vector<at::Tensor> out;
  out.reserve(script.outputs.size());
  std::unordered_map<int64_t, at::Tensor> made;
  for (const Output& o : script.outputs) {
    if (o.input >= 0) {
      out.push_back(inputs[static_cast<size_t>(o.input)]);
    } else if (o.of >= 0) {
      out.push_back(view_of(inputs[static_cast<size_t>(o.of)], o));
    } else {
      auto& base = made[o.made];
      if (base.defined() && base.scalar_type() == o.meta.dtype) {
        out.push_back(view_of(base, o));
      } else {
        auto id = first + static_cast<uint64_t>(o.made);
        auto storage = base.defined()
                           ? c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(
                                 base.storage().unsafeGetStorageImpl())
                           : make_storage(id, o.bytes);
        base = make_tensor(std::move(storage), o.meta);
        out.push_back(base);
      }
    }
  }
  return out;
}

// Runs a graph's script for inputs like these. The number is the script's, or says that the graph
// should be run and noted (0) or run only (-1).
std::tuple<std::vector<at::Tensor>, int64_t> graph_run(int64_t number, at::TensorList tensors,
                                                       at::IntArrayRef sizes) {
  if (log_intercepts.load(std::memory_order_relaxed) || !aten_impl.load(std::memory_order_relaxed))
    return {std::vector<at::Tensor>(), -1};
  ensure();
  Inputs inputs;
  std::shared_ptr<Script> script;
  uint64_t first = 0;
  {
    std::lock_guard<std::mutex> lock(capture_mutex);
    Graph& graph = graphs()[number];
    if (!inputs.encode(tensors, sizes)) return {std::vector<at::Tensor>(), -1};
    std::string key(inputs.key.view());
    auto found = graph.scripts.find(key);
    if (found != graph.scripts.end() && found->second->generation != forgotten_so_far()) {
      script = std::move(found->second);  // dies without the lock
      graph.scripts.erase(found);
      found = graph.scripts.end();
    }
    if (found == graph.scripts.end()) {
      if (noting()) return {std::vector<at::Tensor>(), -1};
      auto refused = graph.refused.find(key);
      if (refused != graph.refused.end() && refused->second >= kAttempts)
        return {std::vector<at::Tensor>(), -1};
      bool hopeless = ++graph.fruitless > kFruitless && graph.fruitless % kRarely != 0;
      return {std::vector<at::Tensor>(), hopeless ? -1 : 0};
    }
    script = found->second;
    if (!script->defined) {
      if (!make_room(*script)) return {std::vector<at::Tensor>(), 0};
      script->defined = true;
    }
    for (auto& constant : script->constants) inputs.ids.push_back(remote(*constant).id);
    c10::SmallVector<bool, 64> frees(script->frees, false);
    first = tape().script_run(&current_settings(true), script->handle, inputs.ids.data(),
                              inputs.ids.size(), frees.data(), frees.size());
    if (first == kNoStorage) {
      graph.scripts.erase(key);
      return {std::vector<at::Tensor>(), 0};
    }
    graph.fruitless = 0;
    static uint64_t runs = 0;
    script->last_run = ++runs;
  }
  for (uint32_t written : script->written) {
    const at::Tensor& t = tensors[written];
    if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
  }
  return {results(*script, first, tensors), script->number};
}

// Begins to note a run of a graph. False when this thread takes notes already.
bool graph_note(int64_t, at::TensorList tensors, at::IntArrayRef sizes) {
  if (noting()) return false;
  auto fresh = std::make_unique<Noting>();
  {
    std::lock_guard<std::mutex> lock(capture_mutex);
    Inputs inputs;
    if (!inputs.encode(tensors, sizes)) return false;
    if (!tape().script_begin(&current_settings(true), inputs.ids.data(), inputs.ids.size()))
      return false;
    fresh->key = inputs.key.view();
    fresh->ids.assign(inputs.ids.begin(), inputs.ids.end());
  }
  noting() = std::move(fresh);
  notes() = &noting()->notes;
  return true;
}

void graph_abandon() {
  notes() = nullptr;
  noting().reset();
  tape().script_abandon();
}

// Fills in what the script returns. Returns why it cannot.
const char* describe(Script& script, const Noting& noted, at::TensorList tensors,
                     at::TensorList outputs, const Inputs& inputs) {
  if (inputs.key.view() != noted.key ||
      !std::equal(inputs.ids.begin(), inputs.ids.end(), noted.ids.begin(), noted.ids.end()))
    return "it changes the geometry of an input";
  for (const at::Tensor& t : outputs) {
    if (!is_remote(t) || t.layout() != at::kStrided || t.is_conj() || t.is_neg())
      return "it returns a tensor that is not an ordinary one of the device";
    Output o;
    o.is_view = t.is_view();
    for (size_t i = 0; i < tensors.size(); ++i) {
      const at::Tensor& input = tensors[i];
      if (!input.defined()) continue;
      if (input.unsafeGetTensorImpl() == t.unsafeGetTensorImpl())
        o.input = static_cast<int64_t>(i);
      else if (o.of < 0 && input.scalar_type() == t.scalar_type() && input.is_alias_of(t))
        o.of = static_cast<int64_t>(i);
    }
    bool known = o.input >= 0 || (o.of >= 0 && !t.grad_fn());
    if (!known && t.requires_grad()) return "it returns a tensor with gradients";
    o.bytes = remote(t).bytes;
    o.meta.dtype = t.scalar_type();
    o.meta.offset = t.storage_offset();
    o.meta.sizes.assign(t.sizes().begin(), t.sizes().end());
    o.meta.strides.assign(t.strides().begin(), t.strides().end());
    script.outputs.push_back(std::move(o));
  }
  for (size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i].defined() &&
        noted.notes.written.count(tensors[i].storage().unsafeGetStorageImpl()))
      script.written.push_back(static_cast<uint32_t>(i));
  return nullptr;
}

// Ends the notes and keeps what was noted as a script. Returns its number, or why there is none.
std::tuple<int64_t, std::string> graph_keep(int64_t number, at::TensorList tensors,
                                            at::IntArrayRef sizes, at::TensorList outputs) {
  if (!noting()) return {0, "nothing was noted"};
  notes() = nullptr;
  auto noted = std::move(noting());
  auto script = std::make_shared<Script>(), old = script;
  std::lock_guard<std::mutex> lock(capture_mutex);
  Graph& graph = graphs()[number];
  Inputs inputs;
  const char* refused = "an input left the device";
  if (inputs.encode(tensors, sizes)) refused = describe(*script, *noted, tensors, outputs, inputs);
  if (refused) {
    tape().script_abandon();
    // It will be so again.
    graph.refused[noted->key] = kAttempts;
    return {0, refused};
  }
  std::vector<uint64_t> ids;
  for (const at::Tensor& t : outputs) ids.push_back(remote(t).id);
  struct Kept {
    Script* script;
    std::vector<uint64_t> constants;
    std::vector<int64_t> made;
  } kept{script.get(), {}, {}};
  GenieError error;
  auto keep = [](void* context, const GenieNotedScript* s) {
    auto* kept = static_cast<Kept*>(context);
    kept->script->handle = s->handle;
    kept->script->bytes = s->bytes;
    kept->script->frees = s->n_frees;
    kept->constants.assign(s->constants, s->constants + s->n_constants);
    kept->made.assign(s->outputs, s->outputs + kept->script->outputs.size());
  };
  if (tape().script_end(ids.data(), ids.size(), keep, &kept, &error) != 0) {
    ++graph.refused[noted->key];
    return {0, error.message};
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    Output& o = script->outputs[i];
    o.made = kept.made[i];
    if (o.made < 0 && o.input < 0 && o.of < 0) {
      tape().script_drop(script->handle);
      graph.refused[noted->key] = kAttempts;
      return {0, "it returns an input as another type"};
    }
  }
  for (uint64_t id : kept.constants) {
    c10::StorageImpl* constant = nullptr;
    for (auto& storage : noted->notes.filled)
      if (remote(*storage).id == id) constant = storage.get();
    if (!constant || noted->notes.written.count(constant)) {
      tape().script_drop(script->handle);
      graph.refused[noted->key] = kAttempts;
      return {0, "it writes to a constant"};
    }
    script->constants.push_back(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(constant));
  }
  if (graph.scripts.size() >= kScriptsOfGraph) {
    auto oldest = graph.scripts.begin();
    for (auto each = graph.scripts.begin(); each != graph.scripts.end(); ++each)
      if (each->second->last_run < oldest->second->last_run) oldest = each;
    old = oldest->second;  // dies without the lock
    drop(graph, std::string(oldest->first));
  }
  if (graph.refused.size() > kScriptsOfGraph) graph.refused.clear();
  drop(graph, noted->key);
  script->generation = forgotten_so_far();
  script->key = noted->key;
  static int64_t scripts = 0;
  script->number = ++scripts;
  graph.scripts[noted->key] = script;
  return {script->number, ""};
}

}  // namespace

void register_graphs() {
  auto* library = new torch::Library(torch::Library::DEF, "genie", std::nullopt, __FILE__, __LINE__);
  library->def("graph_new() -> int", TORCH_FN(graph_new));
  library->def("graph_drop(int graph) -> ()", TORCH_FN(graph_drop));
  library->def("graph_run(int graph, Tensor[] inputs, int[] sizes) -> (Tensor[], int)",
               TORCH_FN(graph_run));
  library->def("graph_note(int graph, Tensor[] inputs, int[] sizes) -> bool",
               TORCH_FN(graph_note));
  library->def(
      "graph_keep(int graph, Tensor[] inputs, int[] sizes, Tensor[] outputs) -> (int, str)",
      TORCH_FN(graph_keep));
  library->def("graph_abandon() -> ()", TORCH_FN(graph_abandon));
}

}  // namespace genie
