// Hand-computed anchors of the scalar functions that define every backend.
#include "kernels/ref/scalar.h"

#include <gtest/gtest.h>

#include <array>
#include <random>

#include "base/random.h"
#include "kernels/normal_numbers.h"

namespace lserve::ref {
namespace {

TEST(Philox, KnownAnswer) {  // Random123's test vector for philox4x32-10
  const std::array<uint32_t, 4> want = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(Philox(0, 0), want);
}

TEST(NormalNumbers, AreSumsOfHalves) {  // of the words above
  EXPECT_EQ(NormalPair(0, 0)[0], 0x6627 + 0xe8d5 + 0xe169 + 0xc58d - 131070);
  EXPECT_EQ(NormalPair(0, 0)[1], 0xbc57 + 0xac4c + 0x9b00 + 0xdbd8 - 131070);
}

TEST(NormalNumbers, HaveTheirDeviation) {
  constexpr uint64_t kPairs = 50000;
  double sum = 0, squares = 0, fourth = 0, products = 0;
  for (uint64_t pair = 0; pair < kPairs; ++pair) {
    const std::array<int32_t, 2> sums = NormalPair(7, pair);
    for (const int32_t number : sums) {
      const double x = static_cast<double>(static_cast<float>(number) * NormalUnit(1.0f));
      sum += x;
      squares += x * x;
      fourth += x * x * x * x;
    }
    products += static_cast<double>(sums[0]) * sums[1] * std::pow(NormalUnit(1.0f), 2);
  }
  EXPECT_NEAR(sum / (2 * kPairs), 0, 0.01);
  EXPECT_NEAR(squares / (2 * kPairs), 1, 0.01);
  EXPECT_NEAR(fourth / (2 * kPairs), 2.7, 0.05);  // of four uniform numbers; a normal one has 3
  EXPECT_NEAR(products / kPairs, 0, 0.015);
}

TEST(Scalar, DotOfOddLength) {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  EXPECT_EQ(Dot(a.data(), a.data(), 11), 506.0);
  EXPECT_EQ(Dot(a.data(), a.data(), 0), 0.0);
}

TEST(Scalar, RmsNormOfThreeAndFour) {
  std::vector<double> x = {3.0, 4.0};  // rms = sqrt(12.5)
  const float weight[] = {1.0f, 2.0f};
  RmsNorm(std::span<double>(x), weight, 0.0);
  EXPECT_NEAR(x[0], 3.0 / std::sqrt(12.5), 1e-15);
  EXPECT_NEAR(x[1], 8.0 / std::sqrt(12.5), 1e-15);
  std::vector<double> zero = {0.0, 0.0};
  RmsNorm(std::span<double>(zero), weight, 1e-5);
  EXPECT_EQ(zero[0], 0.0);
}

TEST(Scalar, RotateByAQuarterTurnPairsTheHalves) {
  std::vector<double> x = {1.0, 2.0, 3.0, 4.0};  // pairs (1, 3) and (2, 4)
  const float angles[] = {0.0f, 1.0f, 1.0f, 0.0f};
  Rotate(std::span<double>(x), angles);
  EXPECT_EQ(x, (std::vector<double>{-3.0, 2.0, 1.0, 4.0}));
}

TEST(Scalar, SiluOfKnownValues) {
  EXPECT_EQ(Silu(0.0), 0.0);
  EXPECT_NEAR(Silu(1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(Silu(-1000.0), 0.0, 1e-15);
}

TEST(Scalar, AttentionOverTwoTokens) {
  // Scores 0 and log(3) * 2 / sqrt(4): weights 1/4 and 3/4.
  const float q[] = {1.0f, 0.0f, 0.0f, 0.0f};
  const float keys[2][4] = {{0.0f, 9.0f, 9.0f, 9.0f}, {2.0f * std::log(3.0f), 9.0f, 9.0f, 9.0f}};
  const float values[2][4] = {{4.0f, 0.0f, 1.0f, 0.0f}, {0.0f, 4.0f, 1.0f, 0.0f}};
  const std::vector<CachedToken<float>> tokens = {{keys[0], values[0]}, {keys[1], values[1]}};
  float output[4];
  SoftmaxAttention<float>(q, tokens, 4, output);
  EXPECT_NEAR(output[0], 1.0f, 1e-6f);
  EXPECT_NEAR(output[1], 3.0f, 1e-6f);
  EXPECT_NEAR(output[2], 1.0f, 1e-6f);
  EXPECT_EQ(output[3], 0.0f);
}

// The numerator sees bf16 weights, the denominator does not.
TEST(Scalar, AttentionRoundsProbabilitiesToBFloat16) {
  const BFloat16 q[] = {ToBFloat16(1.0f)};
  const BFloat16 keys[] = {ToBFloat16(0.0f), ToBFloat16(-1.0f)};
  const BFloat16 values[] = {ToBFloat16(0.0f), ToBFloat16(1.0f)};
  const std::vector<CachedToken<BFloat16>> tokens = {{&keys[0], &values[0]},
                                                     {&keys[1], &values[1]}};
  BFloat16 output;
  SoftmaxAttention<BFloat16>(q, tokens, 1, &output);
  const double p = std::exp(-1.0);
  const double want = static_cast<double>(RoundToBFloat16(static_cast<float>(p))) / (1.0 + p);
  EXPECT_EQ(ToFloat(output), RoundToBFloat16(static_cast<float>(want)));
}

TEST(Scalar, AttentionOverNothingIsZero) {
  const float q[] = {1.0f};
  float output[] = {7.0f};
  SoftmaxAttention<float>(q, {}, 1, output);
  EXPECT_EQ(output[0], 0.0f);
}

// Weights 1, 1/4, 2 and 1/8 in the first step, then 1/2, 4, 1 and 8.
TEST(Scalar, BlocksAreWeighedAgainstTheLargestWeightSoFar) {
  std::vector<double> scores;
  for (const double weight : {1.0, 0.25, 2.0, 0.125, 0.5, 4.0, 1.0, 8.0}) {
    scores.push_back(std::log(weight));
  }
  using Weighed = std::vector<bool>;
  EXPECT_EQ(WeighedBlocks(scores, 0.26, 4), (Weighed{1, 0, 1, 0, 0, 1, 0, 1}));
  EXPECT_EQ(WeighedBlocks(scores, 0.24, 2), (Weighed{1, 1, 1, 0, 0, 1, 0, 1}));
  EXPECT_EQ(WeighedBlocks(scores, 1.0, 1), (Weighed{1, 0, 1, 0, 0, 1, 0, 1}));
  EXPECT_EQ(WeighedBlocks(scores, 1.0, 8), (Weighed{0, 0, 0, 0, 0, 0, 0, 1}));
  EXPECT_EQ(WeighedBlocks(scores, 0.01, 4), Weighed(8, true));
}

TEST(Scalar, BlocksWithoutKeysAreLeftOut) {
  const std::vector<double> scores = {-INFINITY, -3.0, -INFINITY};
  EXPECT_EQ(WeighedBlocks(scores, 0.5, 1), (std::vector<bool>{false, true, false}));
}

TEST(Scalar, PageScoreOfTwoChannels) {
  const float q[] = {2.0f, -1.0f, 0.0f, 0.0f};
  const float minimum[] = {-3.0f, -5.0f, -100.0f, 0.0f};
  const float maximum[] = {1.0f, 4.0f, 100.0f, 0.0f};
  EXPECT_EQ(PageScoreOf(q, minimum, maximum, 4), (2.0 * 1.0 + -1.0 * -5.0) / 2.0);
}

TEST(Scalar, PageScoreBoundsEveryScore) {
  std::mt19937_64 generator(3);
  std::normal_distribution<float> normal;
  constexpr int32_t kDim = 48;
  for (int round = 0; round < 100; ++round) {
    float q[kDim], minimum[kDim], maximum[kDim], keys[16][kDim];
    for (int32_t d = 0; d < kDim; ++d) {
      q[d] = RoundToBFloat16(normal(generator));
      for (auto& key : keys) {
        key[d] = RoundToBFloat16(normal(generator));
        minimum[d] = &key == &keys[0] ? key[d] : std::min(minimum[d], key[d]);
        maximum[d] = &key == &keys[0] ? key[d] : std::max(maximum[d], key[d]);
      }
    }
    const double bound = PageScoreOf(q, minimum, maximum, kDim);
    for (const auto& key : keys) {
      EXPECT_LE(Dot(q, key, kDim) / std::sqrt(static_cast<double>(kDim)), bound + 1e-12);
    }
  }
}

}  // namespace
}  // namespace lserve::ref
