// Seeded normal numbers that are the same bits on every device: integer arithmetic, then one
// multiplication. A number is the sum of four uniform 16-bit numbers about its mean (Irwin and
// Hall), normal up to 3.46 deviations and never beyond. Free functions, thread-safe; usable in
// device code.
#pragma once

#include <array>
#include <cstdint>

#include "base/random.h"

namespace lserve {

// The sum of the four halves of two words, about its mean.
constexpr int32_t CenteredHalfSum(uint32_t a, uint32_t b) {
  constexpr int32_t kMean = 4 * 65535 / 2;
  return static_cast<int32_t>((a & 0xFFFFu) + (a >> 16) + (b & 0xFFFFu) + (b >> 16)) - kMean;
}

// Numbers (seed, 2 pair) and (seed, 2 pair + 1) in units of NormalUnit.
constexpr std::array<int32_t, 2> NormalPair(uint64_t seed, uint64_t pair) {
  const std::array<uint32_t, 4> words = Philox(seed, pair);
  return {CenteredHalfSum(words[0], words[1]), CenteredHalfSum(words[2], words[3])};
}

// What NormalPair's integers are multiplied with for numbers of this deviation.
constexpr float NormalUnit(float deviation) {
  constexpr float kSumDeviation = 37837.227f;  // sqrt(4 (2^32 - 1) / 12)
  return deviation / kSumDeviation;
}

}  // namespace lserve
