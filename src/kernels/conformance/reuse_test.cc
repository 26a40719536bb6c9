// When a decode row makes its lists anew: in its turn, without a list, or when a query of the group
// has moved (SelectionPolicy::reuse_distance). Layers here do not rotate, so every backend judges
// the same queries.
#include <cmath>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

constexpr int32_t kPrompt = 300;
constexpr int32_t kNever = 1 << 20;  // an interval that no test reaches

class Reuse : public TargetTest {
 protected:
  LayerShape Shape(int32_t interval, float distance) const {
    LayerShape shape{1, 0, 64, 3, 128, 256, {112, 16, interval, distance}};
    shape.score = GetParam().score;
    shape.format = GetParam().format;
    shape.rope = false;
    return shape;
  }

  // Whether each generated token of one sequence made the list, as '1' or '0'. `query` gives two
  // channels of the group's last query; the others stay what they are.
  using QueryPath = std::function<std::pair<float, float>(int32_t generated)>;
  std::string Made(const LayerShape& shape, int32_t generated, const QueryPath& query) {
    const TokenData random = RandomData(21);
    Layer layer(*backend_, shape, dtype(), [&](int32_t s, int32_t position, std::span<float> qkv) {
      random(s, position, qkv);
      const auto dim = static_cast<size_t>(shape.head_dim);
      std::fill(qkv.begin(), qkv.begin() + static_cast<std::ptrdiff_t>(shape.group * dim), 0.0f);
      for (int32_t g = 0; g < shape.group; ++g) {
        const auto [x, y] =
            g == shape.group - 1 ? query(position - kPrompt) : std::pair{1.0f, 2.0f};
        qkv[static_cast<size_t>(g) * dim + 3] = x;
        qkv[static_cast<size_t>(g) * dim + dim - 5] = y;
      }
    });
    layer.Run(PlainSchedule({{kPrompt, kPrompt + generated}}, 128));
    std::string made;
    for (int32_t i = 0; i < generated; ++i) {
      const RowRecord& row = layer.row(0, kPrompt + i);
      made += row.made[0] ? '1' : '0';
      if (i > 0 && !row.made[0]) {
        EXPECT_EQ(row.lists, layer.row(0, kPrompt + i - 1).lists) << "generated token " << i;
      }
    }
    return made;
  }

  static std::pair<float, float> Turned(float angle) {
    return {4.0f * std::cos(angle), 4.0f * std::sin(angle)};
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, Reuse, testing::ValuesIn(WithEachScore(Targets(BackendNames()))),
                         TargetTestName);

TEST_P(Reuse, AQueryThatStaysKeepsTheListUntilItsTurn) {
  const QueryPath stays = [](int32_t) { return Turned(0.7f); };
  EXPECT_EQ(Made(Shape(5, 1e-6f), 12, stays), "100001000010");
  EXPECT_EQ(Made(Shape(kNever, 1e-6f), 12, stays), "100000000000");
}

// Turned by a radian, a query of length 4 moves by 2 sin(1/2) of its length, 0.96.
TEST_P(Reuse, AQueryThatJumpsMakesTheListAtOnce) {
  const QueryPath jumps = [](int32_t i) { return Turned(i < 4 ? 0.0f : i < 7 ? 1.0f : 2.0f); };
  EXPECT_EQ(Made(Shape(kNever, 0.9f), 12, jumps), "100010010000");
  EXPECT_EQ(Made(Shape(kNever, 1.0f), 12, jumps), "100000010000") << "2 sin(1) is 1.68";
  EXPECT_EQ(Made(Shape(kNever, 0.9f), 12, jumps), Made(Shape(kNever, 0.1f), 12, jumps));
}

// Steps are small; what counts is the way from the query that made the list.
TEST_P(Reuse, AQueryThatDriftsMakesTheListWhenItIsFarFromTheOneThatMadeIt) {
  const QueryPath drifts = [](int32_t i) { return Turned(0.1f * static_cast<float>(i)); };
  // 2 sin(0.25) = 0.495 after five steps, 2 sin(0.3) = 0.591 after six.
  EXPECT_EQ(Made(Shape(kNever, 0.54f), 14, drifts), "10000010000010");
  // A list that was made in its turn counts from there.
  EXPECT_EQ(Made(Shape(8, 0.54f), 16, drifts), "1000001010000010");
}

// The way is measured in lengths of the row's own query, not of the earlier one.
TEST_P(Reuse, TheDistanceIsAShareOfTheNewQuery) {
  const auto scaled = [](float factor) {
    return [=](int32_t i) { return std::pair{i == 0 ? 4.0f : 4.0f * factor, 0.0f}; };
  };
  EXPECT_EQ(Made(Shape(kNever, 0.75f), 2, scaled(2.0f)), "10");  // moved by half its length
  EXPECT_EQ(Made(Shape(kNever, 0.75f), 2, scaled(0.5f)), "11");  // by its length
  EXPECT_EQ(Made(Shape(kNever, 0.5f), 2, scaled(2.0f)), "10") << "not beyond the distance";
  EXPECT_EQ(Made(Shape(kNever, 0.4375f), 2, scaled(2.0f)), "11");
  EXPECT_EQ(Made(Shape(kNever, 1000.0f), 2, scaled(0.0f)), "11") << "any way is far for no length";
}

TEST_P(Reuse, ATinyDistanceMakesTheListAtAnyChangeAHugeOneInItsTurnOnly) {
  const QueryPath alternates = [](int32_t i) { return Turned(i % 3 == 0 ? 0.0f : 3.0f); };
  EXPECT_EQ(Made(Shape(kNever, 1e-30f), 12, alternates), "110110110110");
  EXPECT_EQ(Made(Shape(5, 1e6f), 12, alternates), "100001000010");
  EXPECT_EQ(Made(Shape(5, 0.0f), 12, alternates), "100001000010") << "0 is off";
}

TEST_P(Reuse, NothingIsMadeOrCountedWithinTheBudget) {
  LayerShape shape = Shape(kNever, 1e-6f);
  shape.policy.token_budget = 304;  // generated token 4 is the first beyond it
  const QueryPath drifts = [](int32_t i) { return Turned(0.5f * static_cast<float>(i)); };
  EXPECT_EQ(Made(shape, 8, drifts), "00001111");
  shape.policy.dense_tokens = 306;
  EXPECT_EQ(Made(shape, 8, drifts), "00000011") << "nor of a context that is read whole";
}

class ReuseConformance : public Reuse {
 protected:
  static constexpr float kDistance = 0.05f;

  // Each query head stays, drifts or jumps for seven rows, then starts elsewhere.
  static TokenData WanderingQueries(const LayerShape& shape) {
    const TokenData random = RandomData(31);
    return [=](int32_t sequence, int32_t position, std::span<float> qkv) {
      random(sequence, position, qkv);
      std::vector<float> start(qkv.size());
      random(sequence + 100, position / 7, start);
      const auto dim = static_cast<size_t>(shape.head_dim);
      for (size_t i = 0; i < static_cast<size_t>(shape.q_heads()) * dim; ++i) {
        const int32_t kv_head = static_cast<int32_t>(i / dim) / shape.group;
        const float drift = 0.02f * static_cast<float>(position % 7);
        switch ((position / 7 + sequence + kv_head) % 3) {
          case 0: qkv[i] = start[i]; break;
          case 1: qkv[i] = start[i] + (i % 2 == 0 ? drift : -drift); break;
          default:  // where the random row is
            break;
        }
      }
    };
  }
};

INSTANTIATE_TEST_SUITE_P(
    Backends, ReuseConformance,
    testing::ValuesIn(WithEachFormat(WithEachScore(Targets(ComparedBackendNames())))),
    TargetTestName);

TEST_P(ReuseConformance, WanderingQueriesMakeTheListsThatRefMakes) {
  for (const int32_t interval : {16, kNever}) {
    LayerShape shape = Shape(interval, kDistance);
    shape.retrieval_heads = 3;
    shape.streaming_heads = 1;
    SCOPED_TRACE(testing::Message() << shape);
    const TokenData data = WanderingQueries(shape);
    const std::vector<Step> schedule = RandomSchedule({{105, 140}, {211, 250}, {340, 380}}, 3);
    Layer want(*ref_, shape, dtype(), data, 448);
    Layer got(*backend_, shape, dtype(), data, 448);
    for (Layer* layer : {&want, &got}) {
      layer->Run(schedule);
      layer->Release(1);  // a new sequence in its slot starts without lists
      layer->Run(PlainSchedule({{0, 0}, {211, 225}}, 512));
    }
    int32_t made = 0;
    int32_t used = 0;
    for (const auto& [key, row] : want.record()) {
      SCOPED_TRACE(testing::Message() << "sequence " << key.first << ", position " << key.second);
      const RowRecord& other = got.record().at(key);
      ASSERT_EQ(other.all, row.all);
      ASSERT_EQ(other.made, row.made);
      ASSERT_EQ(other.lists, row.lists);
      for (size_t head = 0; head < row.made.size(); ++head) {
        made += row.made[head] ? 1 : 0;
        used += row.all[head] ? 0 : 1;
      }
    }
    EXPECT_GT(made, used / 4);
    EXPECT_LT(made, 3 * used / 4);
  }
}

}  // namespace
}  // namespace lserve::conformance
