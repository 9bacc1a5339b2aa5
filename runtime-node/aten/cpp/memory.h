// The CPU memory that libtorch has, counted where it is allocated: temporaries of operators and
// results of unknown size too, of which the executor's books know nothing.
#pragma once
#include <atomic>
#include <cstdint>

namespace genie {

// Counts from now on, for the rest of the process, what the CPU's allocator gives out. What was
// there before is not counted, and freed as it always was.
void count_memory();

// What may be in use before an allocation is refused with c10::OutOfMemoryError.
void limit_memory(uint64_t bytes);

// Zeroes memory from now on when it is given back.
void scrub_memory();

// Counts in `in_use` from now on, and lets nothing be in use beyond `lease` unless `more`, asked for
// so many bytes in all, says that it was raised. Both words lie in memory that another process reads
// and writes too (runtime-node/channel/src/lease.rs); all of it lasts as long as the process. On the
// CPU's allocator, after `count_memory`.
void borrow_memory(std::atomic<uint64_t>* in_use, const std::atomic<uint64_t>* lease,
                   bool (*more)(uint64_t bytes));

struct MemoryInUse {
  uint64_t now = 0;
  uint64_t peak = 0;
};
MemoryInUse memory_in_use();

// While it lives, no allocation of this thread is refused: for what must not fail.
class Unlimited {
 public:
  Unlimited();
  ~Unlimited();
  Unlimited(const Unlimited&) = delete;
  Unlimited& operator=(const Unlimited&) = delete;

 private:
  bool before_;
};

}  // namespace genie
