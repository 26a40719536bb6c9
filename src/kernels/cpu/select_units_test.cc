// Unit selection, every variant that this machine runs, against scores and a sort written out
// plainly.
#include <gtest/gtest.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_test_util.h"
#include "kernels/cpu/select_units_kernel.h"
#include "kernels/sketch.h"

namespace lserve::cpu {
namespace {

using testing::CacheShape;
using testing::TestCache;

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Parameters with the arrays that they point to.
struct Selection {
  Selection(TestCache& cache, const SelectionPolicy& policy) {
    const CacheShape& shape = cache.shape();
    params.batch = cache.DecodeBatch();
    params.retrieval = cache.retrieval();
    params.policy = policy;
    params.dtype = DType::kBFloat16;
    params.q_heads = shape.q_heads();
    params.group = shape.group;
    q = cache.RandomBf16(int64_t{cache.slots()} * params.q_heads * shape.head_dim);
    const auto count = static_cast<size_t>(cache.slots() * shape.retrieval_heads);
    params.lists.slot_lists = shape.retrieval_heads;
    params.lists.capacity = policy.token_budget / policy.unit_tokens;
    units.assign(count * static_cast<size_t>(params.lists.capacity), -7);
    counts.assign(count, -1);
    prompt.assign(static_cast<size_t>(cache.slots()), 0);
    scores.assign(count * static_cast<size_t>(max_units()), 123.0f);
    params.q = q.data();
    params.lists.units = units.data();
    params.lists.counts = counts.data();
    params.prompt_tokens = prompt.data();
    params.scores = scores.data();
  }

  int32_t max_units() const { return params.retrieval.max_pages * 64 / params.policy.unit_tokens; }

  void Run(const SelectVariant& variant, int32_t threads) {
    testing::Workspace workspace(SelectUnitsWorkspace(params));
    params.workspace = workspace.data();
    testing::RunTeam(threads, [&](Team& team) { RunSelectUnits(params, variant, team); });
  }

  std::vector<int32_t> List(size_t index) const {
    const auto begin = units.begin() + static_cast<std::ptrdiff_t>(index) * params.lists.capacity;
    return {begin, begin + std::max(0, counts[index])};
  }

  SelectUnitsParams params{};
  std::vector<uint16_t> q;
  std::vector<int32_t> units, counts, prompt;
  std::vector<float> scores;
};

// What is kept given the scores, by a sort.
std::vector<int32_t> Kept(const float* scores, int32_t tokens, const SelectionPolicy& policy) {
  const int32_t count = (tokens - 1) / policy.unit_tokens + 1;
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const auto forced = [&](int32_t u) {
    return u == 0 || u >= FirstForcedNewestUnit(tokens, policy.unit_tokens);
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return forced(a) != forced(b) ? forced(a) : !forced(a) && scores[a] > scores[b];
  });
  order.resize(static_cast<size_t>(policy.token_budget / policy.unit_tokens));
  std::sort(order.begin(), order.end());
  return order;
}

class SelectUnitsVariants : public ::testing::TestWithParam<SelectVariant> {
 protected:
  void SetUp() override {
    if (!GetParam().supports()) {
      GTEST_SKIP() << "this CPU does not run " << GetParam().name;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, SelectUnitsVariants, ::testing::ValuesIn(SelectVariants()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// What a key's element reads back as from the sketch of its page.
float ReadBack(const TestCache& cache, int32_t row, int32_t head, int32_t token, int32_t dim) {
  const int32_t first = token / kPageTokens * kPageTokens;
  const auto key = [&](int32_t t) { return ToFloat(BFloat16{cache.Key(row, head, t, dim)}); };
  float lowest = key(first);
  float highest = lowest;
  for (int32_t t = first; t < first + kPageTokens; ++t) {
    lowest = std::min(lowest, key(t));
    highest = std::max(highest, key(t));
  }
  const float lo = ToFloat(RoundDownToFloat16(lowest));
  const float step = SketchStep(lo, ToFloat(RoundUpToFloat16(highest)));
  return SketchValue(SketchCode(key(token), lo, step), lo, step);
}

// The group score of a unit by the sketch: its best key, as read back or in the open page itself.
float PlainSketchScore(const TestCache& cache, const Selection& selection, int32_t row,
                       int32_t head, int32_t unit) {
  const CacheShape& shape = cache.shape();
  const int32_t tokens = selection.params.batch.row_position[row] + 1;
  const int32_t unit_tokens = selection.params.policy.unit_tokens;
  double best = -INFINITY;
  for (int32_t t = unit * unit_tokens; t < std::min(tokens, (unit + 1) * unit_tokens); ++t) {
    const bool open = t / kPageTokens == (tokens - 1) / kPageTokens;
    std::vector<double> key(static_cast<size_t>(shape.head_dim));
    for (int32_t d = 0; d < shape.head_dim; ++d) {
      key[static_cast<size_t>(d)] =
          open ? ToFloat(BFloat16{cache.Key(row, head, t, d)}) : ReadBack(cache, row, head, t, d);
    }
    for (int32_t g = 0; g < shape.group; ++g) {
      const size_t q = static_cast<size_t>(
          (row * selection.params.q_heads + head * shape.group + g) * shape.head_dim);
      double score = 0.0;
      for (size_t d = 0; d < key.size(); ++d) {
        score += double{ToFloat(BFloat16{selection.q[q + d]})} * key[d];
      }
      best = std::max(best, score / std::sqrt(double{static_cast<float>(shape.head_dim)}));
    }
  }
  return static_cast<float>(best);
}

// The group score of a unit from the keys themselves.
float PlainScore(const TestCache& cache, const Selection& selection, int32_t row, int32_t head,
                 int32_t unit) {
  const CacheShape& shape = cache.shape();
  const int32_t tokens = selection.params.batch.row_position[row] + 1;
  const int32_t unit_tokens = selection.params.policy.unit_tokens;
  double best = -INFINITY;
  for (int32_t first = unit * unit_tokens; first < std::min(tokens, (unit + 1) * unit_tokens);
       first += 16) {
    for (int32_t g = 0; g < shape.group; ++g) {
      const size_t q = static_cast<size_t>(
          (row * selection.params.q_heads + head * shape.group + g) * shape.head_dim);
      double score = 0.0;
      for (int32_t d = 0; d < shape.head_dim; ++d) {
        double largest = -INFINITY;
        for (int32_t t = first; t < std::min(tokens, first + 16); ++t) {
          largest =
              std::max(largest, double{ToFloat(BFloat16{selection.q[q + static_cast<size_t>(d)]})} *
                                    ToFloat(BFloat16{cache.Key(row, head, t, d)}));
        }
        score += largest;
      }
      best = std::max(best, score / std::sqrt(double{static_cast<float>(shape.head_dim)}));
    }
  }
  return static_cast<float>(best);
}

TEST_P(SelectUnitsVariants, ScoresAndKeepsTheBest) {
  const std::vector<int32_t> lengths = {200, 255, 256, 257, 272, 273, 321, 833, 1000};
  constexpr PageScore kSketch = PageScore::kSketch;
  for (const CacheShape& shape :
       {CacheShape{2, 1, 64, 2}, CacheShape{1, 0, 80, 3}, CacheShape{1, 1, 128, 1},
        CacheShape{3, 0, 24, 5}, CacheShape{2, 1, 64, 2, 128, 256, 16, kSketch},
        CacheShape{1, 0, 80, 3, 128, 256, 16, kSketch},
        CacheShape{1, 1, 128, 1, 128, 256, 16, kSketch},
        CacheShape{2, 0, 24, 7, 128, 256, 16, kSketch}}) {
    const auto plain_score = shape.score == kSketch ? PlainSketchScore : PlainScore;
    // Weights of at most 4 in steps of 2^-16 of the largest (select_units_kernel.h); else rounding.
    const float tolerance =
        shape.score == kSketch ? 3.0f * std::sqrt(float(shape.head_dim)) * 4.0f / 65536.0f : 1e-4f;
    TestCache cache(shape, lengths, 19);
    for (const int32_t unit : {64, 32, 16}) {
      Selection selection(cache, {256, unit, 1});
      selection.Run(GetParam(), 2);
      for (int32_t row = 0; row < cache.slots(); ++row) {
        const int32_t tokens = lengths[static_cast<size_t>(row)];
        for (int32_t head = 0; head < shape.retrieval_heads; ++head) {
          const auto list = static_cast<size_t>(row * shape.retrieval_heads + head);
          const float* scores =
              selection.scores.data() + list * static_cast<size_t>(selection.max_units());
          if (tokens <= 256) {
            EXPECT_EQ(selection.counts[list], -1);
            continue;
          }
          ASSERT_EQ(selection.List(list), Kept(scores, tokens, selection.params.policy))
              << tokens << " tokens, units of " << unit;
          for (int32_t u = 0; u < selection.max_units(); ++u) {
            if (u * unit >= tokens) {
              ASSERT_EQ(scores[u], kMinusInf);
            } else {
              ASSERT_NEAR(scores[u], plain_score(cache, selection, row, head, u), tolerance)
                  << "unit " << u << " of " << tokens << " tokens";
            }
          }
        }
      }
      // Without the optional scores, and with other threads, the same lists.
      const std::vector<int32_t> units = selection.units;
      for (const int32_t threads : {1, 3}) {
        selection.params.scores = nullptr;
        selection.units.assign(units.size(), -7);
        selection.Run(GetParam(), threads);
        EXPECT_EQ(selection.units, units);
      }
    }
  }
}

// Repeated text gives equal scores: the lower units win. A zero query makes all scores equal.
TEST_P(SelectUnitsVariants, EqualScoresGoToTheLowerUnit) {
  TestCache cache(CacheShape{1, 0, 64, 2}, {1000}, 23);
  Selection selection(cache, {256, 16, 1});
  for (size_t i = 0; i < selection.q.size(); ++i) {
    selection.q[i] = i % 2 == 0 ? uint16_t{0} : uint16_t{0x8000};  // 0 and -0
  }
  selection.Run(GetParam(), 2);
  std::vector<int32_t> want(11);
  std::iota(want.begin(), want.end(), 0);
  for (int32_t u = 936 / 16; u <= 999 / 16; ++u) {
    want.push_back(u);
  }
  ASSERT_EQ(want.size(), 16u);
  EXPECT_EQ(selection.List(0), want);
}

TEST_P(SelectUnitsVariants, NanScoresLose) {
  TestCache cache(CacheShape{1, 0, 64, 1}, {1000}, 29);
  Selection selection(cache, {256, 64, 1});
  const int64_t page = cache.retrieval().table[3] * cache.retrieval().layout.page_bytes();
  auto* stats = reinterpret_cast<uint16_t*>(cache.retrieval().pages + page +
                                            cache.retrieval().layout.stats_offset(0));
  std::fill(stats, stats + 4 * 64 * 2, uint16_t{0x7FC0});
  selection.Run(GetParam(), 2);
  EXPECT_EQ(selection.scores[3], kMinusInf);
  EXPECT_EQ(selection.List(0), Kept(selection.scores.data(), 1000, selection.params.policy));
}

TEST_P(SelectUnitsVariants, WorksOnlyWhenTheIntervalAsks) {
  const std::vector<int32_t> lengths = {600, 601, 602, 603, 604};
  TestCache cache(CacheShape{1, 0, 64, 1}, lengths, 31);
  Selection selection(cache, {256, 64, 4});
  selection.prompt.assign(5, 599);  // generated tokens 0 to 4
  selection.counts = {2, 2, -1, 2, 2};
  selection.Run(GetParam(), 2);
  EXPECT_EQ(selection.counts, (std::vector<int32_t>{4, 2, 4, 2, 4}));
  EXPECT_EQ(selection.units[4], -7);  // the second list is as it was
}

}  // namespace
}  // namespace lserve::cpu
