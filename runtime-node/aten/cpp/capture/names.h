// Kinds of operators by the beginning of their names.
#pragma once
#include <initializer_list>
#include <string>

namespace genie {

inline bool starts(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

inline bool starts_with_any(const std::string& text, std::initializer_list<const char*> prefixes) {
  for (const char* prefix : prefixes)
    if (starts(text, prefix)) return true;
  return false;
}

}  // namespace genie
