// Monotonic time in seconds, as a double. Thread-safe.
#pragma once

#include <chrono>

namespace lserve {

inline double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace lserve
