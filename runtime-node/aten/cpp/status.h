// Errors that cross the C boundary: a code (genie_wire::ErrorCode) and a message.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

// Filled by the callee when it returns a code other than 0. `message` is NUL-terminated and
// truncated to fit.
struct GenieError {
  uint8_t code;
  char message[4095];
};

}
