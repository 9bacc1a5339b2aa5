#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "torch_version.h"

namespace genie {

namespace {

// Before each allocation its size; as long as libtorch aligns, so that what follows lies as before.
struct alignas(64) Header {
  uint64_t bytes;
};

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

std::atomic<uint64_t> own_count{0};
const std::atomic<uint64_t> no_lease{kNoLimit};

// Replaced once, before other threads allocate.
std::atomic<uint64_t>* in_use = &own_count;
const std::atomic<uint64_t>* lease = &no_lease;
bool (*more)(uint64_t) = nullptr;

std::atomic<bool> scrub{false};
std::atomic<uint64_t> peak{0};
std::atomic<uint64_t> limit{kNoLimit};

bool& unlimited() {
  thread_local bool here = false;
  return here;
}

[[noreturn]] void refuse(size_t bytes, const char* why = "") {
  throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__},
                              std::to_string(bytes) + " bytes were asked for" + why);
}

// The allocator that was there before, which the counting one asks.
c10::Allocator* before = nullptr;

void give_back(void* data) {
  if (!data) return;
  auto* header = static_cast<Header*>(data) - 1;
  if (scrub.load(std::memory_order_relaxed)) std::memset(data, 0, header->bytes);
  in_use->fetch_sub(header->bytes);
  before->raw_deallocate(header);
}

class CountingAllocator final : public c10::Allocator {
 public:
#if GENIE_TORCH_AT_LEAST(2, 3)
  c10::DataPtr allocate(size_t bytes) override {
#else
  c10::DataPtr allocate(size_t bytes) const override {
#endif
    if (bytes == 0) return {nullptr, nullptr, &give_back, c10::Device(c10::kCPU)};
    // Sequentially consistent, as the lease is: see lease.rs.
    uint64_t now = in_use->fetch_add(bytes) + bytes;
    if (C10_UNLIKELY(now > limit.load(std::memory_order_relaxed)) && !unlimited()) {
      in_use->fetch_sub(bytes);
      refuse(bytes);
    }
    if (C10_UNLIKELY(now > lease->load()) && !unlimited() && !more(now)) {
      in_use->fetch_sub(bytes);
      refuse(bytes, ", more than the node's other clients leave of its memory");
    }
    auto* header = ask(bytes);
    header->bytes = bytes;
    uint64_t most = peak.load(std::memory_order_relaxed);
    while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
    }
    void* data = header + 1;
    return {data, data, &give_back, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static Header* ask(size_t bytes) {
    try {
      if (bytes <= std::numeric_limits<size_t>::max() - sizeof(Header))
        return static_cast<Header*>(before->raw_allocate(bytes + sizeof(Header)));
    } catch (const c10::Error&) {
      // It tells of a failed `posix_memalign`.
    }
    in_use->fetch_sub(bytes);
    refuse(bytes);
  }
};

}  // namespace

void count_memory() {
  static const bool counting = [] {
    before = c10::GetCPUAllocator();
    static auto* allocator = new CountingAllocator;
    c10::SetCPUAllocator(allocator, /*priority=*/1);
    return true;
  }();
  (void)counting;
}

void limit_memory(uint64_t bytes) { limit.store(bytes, std::memory_order_relaxed); }

void scrub_memory() { scrub.store(true, std::memory_order_relaxed); }

void borrow_memory(std::atomic<uint64_t>* count, const std::atomic<uint64_t>* lent,
                   bool (*ask)(uint64_t)) {
  count->store(in_use->load());
  more = ask;
  lease = lent;
  in_use = count;
}

MemoryInUse memory_in_use() {
  return {in_use->load(std::memory_order_relaxed), peak.load(std::memory_order_relaxed)};
}

Unlimited::Unlimited() : before_(std::exchange(unlimited(), true)) {}
Unlimited::~Unlimited() { unlimited() = before_; }

}  // namespace genie
