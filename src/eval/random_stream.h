// RandomStream: draws in order from one seed (base/random.h). A value: a copy repeats what follows.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"

namespace lserve {

class RandomStream {
 public:
  explicit RandomStream(uint64_t seed) : seed_(seed) {}

  uint64_t Next() {
    const std::array<uint32_t, 4> words = Philox(seed_, counter_++);
    return uint64_t{words[1]} << 32 | words[0];
  }
  // Uniform in [0, bound), bound > 0; its bias is below bound / 2^64.
  int64_t Below(int64_t bound) {
    CHECK_GT(bound, 0);
    return static_cast<int64_t>(Next() % static_cast<uint64_t>(bound));
  }
  // Uniform in [0, 1).
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  template <typename T>
  const T& Choose(const std::vector<T>& list) {
    return list[static_cast<size_t>(Below(std::ssize(list)))];
  }
  template <typename T>
  void Shuffle(std::vector<T>* list) {
    for (size_t i = list->size(); i > 1; --i) {
      std::swap((*list)[i - 1], (*list)[static_cast<size_t>(Below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  const uint64_t seed_;
  uint64_t counter_ = 0;
};

// A seed for one part of a larger whole: parts with other labels draw independently of it.
constexpr uint64_t DeriveSeed(uint64_t seed, uint64_t label) {
  const std::array<uint32_t, 4> words = Philox(seed, label);
  return uint64_t{words[3]} << 32 | words[2];
}

}  // namespace lserve
