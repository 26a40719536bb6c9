#include "model/log_softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lserve {
namespace {

TEST(LogSumExp, IsTheLogOfTheDenominator) {
  EXPECT_NEAR(LogSumExp(std::vector<float>{0, std::log(3.0f), 0}), std::log(5.0), 1e-6);
  EXPECT_EQ(LogSumExp(std::vector<float>{-1e30f}), -1e30f);
}

TEST(NegativeLogLikelihood, HandValues) {
  const std::vector<float> logits = {0, std::log(3.0f), 0};  // probabilities 1/5, 3/5, 1/5
  EXPECT_NEAR(NegativeLogLikelihood(logits, 1), -std::log(0.6), 1e-6);
  EXPECT_NEAR(NegativeLogLikelihood(logits, 2), -std::log(0.2), 1e-6);
}

TEST(NegativeLogLikelihood, LargeLogitsDoNotOverflow) {
  const std::vector<float> logits = {1000.0f, 1000.0f, 998.0f, -1000.0f};
  EXPECT_NEAR(NegativeLogLikelihood(logits, 0), std::log(2 + std::exp(-2.0)), 1e-12);
  EXPECT_NEAR(NegativeLogLikelihood(logits, 3), 2000 + std::log(2 + std::exp(-2.0)), 1e-9);
}

}  // namespace
}  // namespace lserve
