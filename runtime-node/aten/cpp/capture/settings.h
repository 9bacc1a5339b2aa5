// The settings that operators are captured under.
#pragma once
#include "../capture.h"

namespace genie {

// What this thread's next operator runs under. `precise` is for operators that may multiply
// matrices: only these depend on how float32 is rounded for products. Valid until the thread asks
// again. Refuses settings that the session's other end does not know.
const GenieSettings& current_settings(bool precise);

}  // namespace genie
