// PyTorch's settings that change what operators compute: flags of the process, and what a thread
// sets for itself. The capture reads them at each operator; the node makes them so before it runs
// one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genie {

// The settings of this process that are not PyTorch's own, encoded: number and value of each.
// Empty when all are as PyTorch starts with them. What a thread sets for itself is given.
std::string changed_settings(bool flushes_denormals);

// Makes these the settings of this process and thread; those not named become PyTorch's own.
// Throws CodecError for bytes that are no settings, and what PyTorch says of a value otherwise.
void apply_settings(const uint8_t* bytes, size_t len);

// What `torch.backends.*.fp32_precision` says of products and convolutions. Kept apart from the
// other settings in PyTorch, and dearer to read: those for CUDA only on demand.
uint64_t float32_precisions(bool of_cuda);

// Whether this thread's arithmetic takes denormal numbers for zero (`torch.set_flush_denormal`).
inline bool flushes_denormals() {
#if defined(__x86_64__)
  return (_mm_getcsr() & _MM_FLUSH_ZERO_MASK) != 0;
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return (control >> 24) & 1;
#else
  return false;
#endif
}

}  // namespace genie
