#include "kernels/sketch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace lserve {
namespace {

TEST(Sketch, RoundsOutwardToTheNextFloat16) {
  std::mt19937 generator(7);
  for (int i = 0; i < 200000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(generator()));
    if (!(std::abs(x) <= 65504.0f)) {
      continue;
    }
    const Float16 down = RoundDownToFloat16(x);
    const Float16 up = RoundUpToFloat16(x);
    ASSERT_LE(ToFloat(down), x);
    ASSERT_GE(ToFloat(up), x);
    // Nothing lies between the two but x.
    const bool same = ToFloat(down) == ToFloat(up);
    ASSERT_EQ(same, ToFloat(down) == x);
    if (!same) {
      const float step = std::max(std::ldexp(1.0f, std::ilogb(x) - 10), std::ldexp(1.0f, -24));
      ASSERT_LE(ToFloat(up) - ToFloat(down), step) << x;
    }
  }
}

TEST(Sketch, RoundsAtTheEndsOfFloat16) {
  EXPECT_EQ(ToFloat(RoundDownToFloat16(1e6f)), 65504.0f);
  EXPECT_EQ(ToFloat(RoundUpToFloat16(1e6f)), 65504.0f);
  EXPECT_EQ(ToFloat(RoundDownToFloat16(-1e6f)), -65504.0f);
  EXPECT_EQ(RoundUpToFloat16(1e-30f).bits, 1);
  EXPECT_EQ(RoundDownToFloat16(1e-30f).bits, 0);
  EXPECT_EQ(RoundDownToFloat16(-1e-30f).bits, 0x8001);
  EXPECT_EQ(RoundDownToFloat16(-0.0f).bits, 0);
  EXPECT_EQ(RoundUpToFloat16(-1e-30f).bits, 0);
  EXPECT_EQ(RoundUpToFloat16(65503.0f).bits, 0x7BFF);
}

TEST(Sketch, CodesCountCells) {
  const float lo = -1.0f;
  const float step = SketchStep(lo, 3.0f);
  EXPECT_EQ(step, 1.0f);
  for (const auto& [key, code] : {std::pair{-1.0f, 0},
                                  {-0.001f, 0},
                                  {0.0f, 1},
                                  {0.999f, 1},
                                  {1.0f, 2},
                                  {2.0f, 3},
                                  {3.0f, 3},
                                  {4.0f, 3},
                                  {-5.0f, 0}}) {
    EXPECT_EQ(SketchCode(key, lo, step), code) << key;
  }
  EXPECT_EQ(SketchValue(2, lo, step), 1.5f);
}

TEST(Sketch, BoxWithoutWidthReadsBackItsKey) {
  const float step = SketchStep(2.0f, 2.0f);
  EXPECT_EQ(SketchCode(2.0f, 2.0f, step), 0);
  EXPECT_EQ(SketchValue(0, 2.0f, step), 2.0f);
  EXPECT_EQ(SketchCode(std::numeric_limits<float>::quiet_NaN(), 0.0f, 1.0f), 0);
}

}  // namespace
}  // namespace lserve
