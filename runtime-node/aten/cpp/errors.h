// Turning C++ exceptions into codes that cross the C boundary.
#pragma once
#include <cstdio>
#include <string>

#include "codec.h"
#include "status.h"

namespace genie {

inline int fail(GenieError* error, uint8_t code, const char* message) {
  error->code = code;
  snprintf(error->message, sizeof error->message, "%s", message);
  return code;
}

// Runs `body` and reports what it throws.
template <class Body>
int guarded(GenieError* error, Body&& body) {
  try {
    body();
    return 0;
  } catch (const CodecError& e) {
    return fail(error, kProtocol, e.what());
  } catch (const c10::OutOfMemoryError& e) {
    return fail(error, kOutOfMemory, e.what_without_backtrace());
  } catch (const c10::IndexError& e) {
    return fail(error, kIndex, e.what_without_backtrace());
  } catch (const c10::ValueError& e) {
    return fail(error, kValue, e.what_without_backtrace());
  } catch (const c10::TypeError& e) {
    return fail(error, kType, e.what_without_backtrace());
  } catch (const c10::NotImplementedError& e) {
    return fail(error, kNotImplemented, e.what_without_backtrace());
  } catch (const c10::LinAlgError& e) {
    return fail(error, kLinalg, e.what_without_backtrace());
  } catch (const c10::Error& e) {
    std::string what = e.what_without_backtrace();
    bool memory = what.find("can't allocate memory") != std::string::npos ||
                  what.find("out of memory") != std::string::npos;
    return fail(error, memory ? kOutOfMemory : kRuntime, what.c_str());
  } catch (const std::bad_alloc&) {
    return fail(error, kOutOfMemory, "buffers beside tensors took more than their process may have");
  } catch (const std::exception& e) {
    return fail(error, kRuntime, e.what());
  } catch (...) {
    return fail(error, kRuntime, "unknown C++ exception");
  }
}

}  // namespace genie
