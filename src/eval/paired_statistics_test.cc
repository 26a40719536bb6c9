#include "eval/paired_statistics.h"

#include <gtest/gtest.h>

namespace lserve {
namespace {

TEST(McNemarTest, HandValues) {
  EXPECT_DOUBLE_EQ(McNemarExactP(0, 0), 1.0);
  EXPECT_DOUBLE_EQ(McNemarExactP(1, 0), 1.0);  // 2 / 2
  EXPECT_NEAR(McNemarExactP(5, 0), 2.0 / 32, 1e-12);
  EXPECT_NEAR(McNemarExactP(10, 2), 2.0 * (1 + 12 + 66) / 4096, 1e-12);
  EXPECT_NEAR(McNemarExactP(4, 1), 2.0 * (1 + 5) / 32, 1e-12);
  EXPECT_DOUBLE_EQ(McNemarExactP(6, 6), 1.0);
}

TEST(McNemarTest, IsTheSameEitherWay) {
  EXPECT_DOUBLE_EQ(McNemarExactP(3, 17), McNemarExactP(17, 3));
}

// 2^-n itself underflows beyond n = 1074.
TEST(McNemarTest, ManyFlipsNeitherUnderflowNorOverflow) {
  EXPECT_NEAR(McNemarExactP(1000, 1000), 1.0, 1e-9);
  // Normal approximation with continuity correction: z = 79 / sqrt(4000), p = 0.2116.
  EXPECT_NEAR(McNemarExactP(2040, 1960), 0.2116, 2e-3);
  EXPECT_GT(McNemarExactP(1300, 700), 0.0);
  EXPECT_LT(McNemarExactP(1300, 700), 1e-30);
}

TEST(PairedTallyTest, CountsFlipsAndPartialCredit) {
  PairedTally tally;
  tally.Add(1, 1);
  tally.Add(1, 0.75);
  tally.Add(0.5, 1);
  tally.Add(1, 0);
  tally.Add(0, 0);
  EXPECT_EQ(tally.total, 5);
  EXPECT_EQ(tally.dense_right, 3);
  EXPECT_EQ(tally.sparse_right, 2);
  EXPECT_EQ(tally.lost, 2);
  EXPECT_EQ(tally.gained, 1);
  EXPECT_DOUBLE_EQ(tally.dense_score, 3.5);
  EXPECT_DOUBLE_EQ(tally.sparse_score, 2.75);
  EXPECT_DOUBLE_EQ(tally.DifferencePoints(), -20.0);
}

TEST(DifferenceIntervalTest, HandValues) {
  // No flip among 10: half a pair each way of 12, variance (1 / 12) / 12.
  const auto [low, high] = DifferenceInterval({.total = 10, .dense_right = 7, .sparse_right = 7});
  EXPECT_NEAR(high, 100 * 1.959964 / 12, 1e-6);
  EXPECT_NEAR(low, -high, 1e-12);
  // 9 lost and 1 gained of 98: difference -8 / 100, variance (11 / 100 - 0.0064) / 100.
  const auto [lower, upper] = DifferenceInterval({.total = 98, .lost = 9, .gained = 1});
  EXPECT_NEAR((lower + upper) / 2, -8.0, 1e-9);
  EXPECT_NEAR((upper - lower) / 2, 196 * 0.0321870, 0.01);
}

TEST(DifferenceIntervalTest, StaysWithinAHundredPoints) {
  const auto [low, high] = DifferenceInterval({.total = 3, .lost = 3});
  EXPECT_GE(low, -100.0);
  EXPECT_LT(high, 100.0);
}

}  // namespace
}  // namespace lserve
