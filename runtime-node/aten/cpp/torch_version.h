// Guards for the differences between the PyTorch versions that Genie builds against.
#pragma once
#include <torch/version.h>

#define GENIE_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) ||        \
   (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

// getStream and exchangeStream lost their noexcept.
#if GENIE_TORCH_AT_LEAST(2, 7)
#define GENIE_STREAM_NOEXCEPT
#else
#define GENIE_STREAM_NOEXCEPT noexcept
#endif
