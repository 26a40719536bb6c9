#include "server/ids.h"

#include <cstddef>
#include <mutex>
#include <random>

namespace lserve {

std::string RandomHex(int digits) {
  static std::mutex mutex;
  static std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  std::string text;
  text.reserve(static_cast<size_t>(digits));
  const std::lock_guard lock(mutex);
  uint64_t bits = 0;
  for (int i = 0; i < digits; ++i) {
    if (i % 16 == 0) {
      bits = generator();
    }
    text.push_back("0123456789abcdef"[bits & 15]);
    bits >>= 4;
  }
  return text;
}

}  // namespace lserve
