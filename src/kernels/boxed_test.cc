#include "kernels/boxed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

namespace lserve {
namespace {

TEST(Boxed, KeyCodesCountCells) {
  const float lo = -1.0f;
  const float step = KeyStep(lo, 3.0f, 4);
  EXPECT_EQ(step, 0.25f);
  for (const auto& [key, code] : {std::pair{-1.0f, 0},
                                  {-0.76f, 0},
                                  {-0.75f, 1},
                                  {0.0f, 4},
                                  {2.74f, 14},
                                  {2.75f, 15},
                                  {3.0f, 15},
                                  {9.0f, 15},
                                  {-9.0f, 0}}) {
    EXPECT_EQ(KeyCode(key, lo, step, 4), code) << key;
  }
  EXPECT_EQ(KeyOfCode(0, lo, step), -0.875f);
  EXPECT_EQ(KeyOfCode(15, lo, step), 2.875f);
  EXPECT_EQ(KeyStep(lo, 3.0f, 8), 1.0f / 64.0f);
  EXPECT_EQ(KeyCode(2.99f, lo, 1.0f / 64.0f, 8), 255);
  EXPECT_EQ(KeyCode(0.02f, lo, 1.0f / 64.0f, 8), 65);
}

TEST(Boxed, BoxWithoutWidthReadsBackItsKey) {
  const float step = KeyStep(2.0f, 2.0f, 8);
  EXPECT_EQ(KeyCode(2.0f, 2.0f, step, 8), 0);
  EXPECT_EQ(KeyOfCode(0, 2.0f, step), 2.0f);
  EXPECT_EQ(KeyCode(std::numeric_limits<float>::quiet_NaN(), 0.0f, 1.0f, 8), 0);
}

TEST(Boxed, UpperBitsOfEveryCodeAreTheSketch) {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 100000; ++i) {
    const float a = 5.0f * normal(generator);
    const float b = a + 3.0f * normal(generator);
    const float lo = ToFloat(RoundDownToFloat16(std::min(a, b)));
    const float hi = ToFloat(RoundUpToFloat16(std::max(a, b)));
    const float key = lo + (hi - lo) * 0.5f * (1.0f + normal(generator));
    const int32_t sketch = SketchCode(key, lo, SketchStep(lo, hi));
    ASSERT_EQ(KeyCode(key, lo, KeyStep(lo, hi, 4), 4) >> 2, sketch) << key << " in " << lo;
    ASSERT_EQ(KeyCode(key, lo, KeyStep(lo, hi, 8), 8) >> 6, sketch) << key << " in " << lo;
    ASSERT_EQ(KeyCode(key, lo, KeyStep(lo, hi, 2), 2), sketch) << key << " in " << lo;
  }
}

TEST(Boxed, ExportedKeysKeepTheirCodes) {
  for (const auto& [lo, hi] : {std::pair{-1.0f, 3.0f},
                               {65472.0f, 65504.0f},
                               {1000.0f, 1001.0f},
                               {-65504.0f, 65504.0f},
                               {0.0f, 0x1p-24f}}) {
    for (const int32_t bits : {2, 4, 8}) {
      const float step = KeyStep(lo, hi, bits);
      for (int32_t code = 0; code < 1 << bits; ++code) {
        ASSERT_EQ(KeyCode(KeyOfCode(code, lo, step), lo, step, bits), code) << lo << " to " << hi;
      }
    }
  }
}

TEST(Boxed, ValueGridReachesBothEnds) {
  const ValueGrid grid = GridOf(-1.5f, 6.0f, 4);
  EXPECT_EQ(ToFloat(grid.zero), -1.5f);
  EXPECT_EQ(ToFloat(grid.scale), 0.5f);
  EXPECT_EQ(ValueCode(-1.5f, grid, 4), 0);
  EXPECT_EQ(ValueCode(-1.26f, grid, 4), 0);
  EXPECT_EQ(ValueCode(-1.24f, grid, 4), 1);
  EXPECT_EQ(ValueCode(6.0f, grid, 4), 15);
  EXPECT_EQ(ValueOfCode(15, grid), 6.0f);
  EXPECT_EQ(ValueOfCode(3, grid), 0.0f);
  std::mt19937 generator(4);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 100000; ++i) {
    const float a = 5.0f * normal(generator);
    const float b = 5.0f * normal(generator);
    for (const int32_t bits : {4, 8}) {
      const ValueGrid other = GridOf(std::min(a, b), std::max(a, b), bits);
      const float half = 0.5001f * ToFloat(other.scale);
      ASSERT_NEAR(ValueOfCode(ValueCode(a, other, bits), other), a, half);
      ASSERT_NEAR(ValueOfCode(ValueCode(b, other, bits), other), b, half);
      const int32_t code = i % (1 << bits);
      ASSERT_EQ(ValueCode(ValueOfCode(code, other), other, bits), code);
    }
  }
}

TEST(Boxed, EqualValuesReadBackAsTheyAre) {
  const ValueGrid grid = GridOf(-0.375f, -0.375f, 8);
  EXPECT_EQ(ValueCode(-0.375f, grid, 8), 0);
  EXPECT_EQ(ValueOfCode(0, grid), -0.375f);
}

TEST(Boxed, ValuesBeyondFloat16Saturate) {
  const ValueGrid grid = GridOf(-1e6f, 1e6f, 4);
  EXPECT_EQ(ValueOfCode(ValueCode(-1e6f, grid, 4), grid), -65504.0f);
  EXPECT_NEAR(ValueOfCode(ValueCode(1e6f, grid, 4), grid), 15 * 65504.0f - 65504.0f, 1.0f);
}

}  // namespace
}  // namespace lserve
