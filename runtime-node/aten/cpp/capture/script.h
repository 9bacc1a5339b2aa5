// What a thread's script notes need of the kernels: which storages are written, which are filled.
#pragma once
#include <unordered_set>
#include <vector>

#include "state.h"

namespace genie {

struct ScriptNotes {
  std::unordered_set<const c10::StorageImpl*> written;
  // Storages filled from the client. Held, so that those that turn out to be constants live on.
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> filled;

  template <class Storages, class Slots>
  void writes(const Storages& storages, const Slots& mutated) {
    for (uint32_t slot : mutated) written.insert(storages[slot]);
  }
  void keep(const at::Tensor& t) {
    filled.push_back(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(
        t.storage().unsafeGetStorageImpl()));
  }
};

// The notes that this thread takes, or null.
inline ScriptNotes*& notes() {
  thread_local ScriptNotes* current = nullptr;
  return current;
}

}  // namespace genie
