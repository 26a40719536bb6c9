// AttendDecodeParams::log_sums: the logarithm of a head's softmax denominator, in both lanes.
#include <algorithm>
#include <cmath>

#include "kernels/conformance/uniform.h"

namespace lserve::conformance {
namespace {

// Three segments of a split over the tokens, in backends that split by 512 or less.
constexpr SequenceLengths kLengths = {1300, 1303};

class LogSums : public TargetTest {
 protected:
  // Retrieval and streaming heads in groups of three; a budget of 0 is dense.
  LayerShape Shape(int32_t budget) const {
    LayerShape shape{2, 1, 80, 3, 70, 600, {budget, 16, 1}};
    shape.format = GetParam().format;
    return shape;
  }
  // A prompt of kLengths, whose prefill is of no interest, and its decode rows.
  static std::vector<Step> Schedule() {
    std::vector<Step> steps = PlainSchedule({kLengths}, 512);
    for (Step& step : steps) {
      step.append_only = step.decode.empty();
    }
    return steps;
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, LogSums,
                         testing::ValuesIn(WithEachFormat(Targets(BackendNames()))),
                         TargetTestName);

class LogSumsConformance : public LogSums {};

INSTANTIATE_TEST_SUITE_P(Backends, LogSumsConformance,
                         testing::ValuesIn(WithEachFormat(Targets(ComparedBackendNames()))),
                         TargetTestName);

// Zero queries: every token read adds exp(0).
TEST_P(LogSums, CountTheTokensOfUniformAttention) {
  for (const int32_t budget : {0, 608}) {
    const LayerShape shape = Shape(budget);
    Layer layer(*backend_, shape, dtype(), UniformData(shape, 4), kLengths.total);
    layer.Run(Schedule());
    for (int32_t position = kLengths.prompt; position < kLengths.total; ++position) {
      const RowRecord& row = layer.row(0, position);
      for (int32_t head = 0; head < shape.kv_heads(); ++head) {
        const std::vector<int32_t> tokens =
            head >= shape.retrieval_heads ? StreamingTokens(shape, position)
            : budget == 0                 ? AllTokens(position + 1)
                          : TokensOf(row.lists[static_cast<size_t>(head)], 16, position + 1);
        for (int32_t g = 0; g < shape.group; ++g) {
          ASSERT_NEAR(row.log_sums.at(static_cast<size_t>(head * shape.group + g)),
                      std::log(static_cast<double>(tokens.size())), 1e-5)
              << shape << ", position " << position << ", head " << head << ", query " << g;
        }
      }
    }
  }
}

// Large scores: exp of one overflows float32, and a segment's largest is far from another's.
TEST_P(LogSumsConformance, MatchRefWhereScoresAreLarge) {
  // Keys that are read back of a boxed page may be rounded to bf16 on one side only.
  const Tolerance tolerance =
      IsBoxed(GetParam().format) ? Tolerance{0.0, 0x1p-8} : Tolerance{1e-5, 1e-5};
  for (const int32_t budget : {0, 608}) {
    LayerShape shape = Shape(budget);
    shape.rope = false;  // scores without rounding apart
    const TokenData normal = RandomData(9);
    const TokenData data = [&](int32_t sequence, int32_t position, std::span<float> qkv) {
      normal(sequence, position, qkv);
      const auto queries = qkv.first(static_cast<size_t>(shape.q_heads() * shape.head_dim));
      for (float& q : queries) {
        q *= 40.0f;
      }
    };
    Layer want(*ref_, shape, dtype(), data, kLengths.total);
    Layer got(*backend_, shape, dtype(), data, kLengths.total);
    got.UseLists(&want.record());
    for (Layer* each : {&want, &got}) {
      each->Run(Schedule());
    }
    float largest = 0.0f;
    for (int32_t position = kLengths.prompt; position < kLengths.total; ++position) {
      const std::vector<float>& log_sums = want.row(0, position).log_sums;
      EXPECT_TRUE(Near(got.row(0, position).log_sums, log_sums, tolerance))
          << shape << ", position " << position;
      largest = std::max(largest, *std::max_element(log_sums.begin(), log_sums.end()));
    }
    EXPECT_GT(largest, 100.0f);
  }
}

}  // namespace
}  // namespace lserve::conformance
