// RopeAppend, SelectUnits, AttendDecode, AttendPrefill and AppendStreaming against `ref`, over
// shapes and random schedules.
#include <algorithm>
#include <cmath>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

struct Case {
  Target target;
  size_t shape;
  uint64_t seed;
};

class AttentionConformance : public testing::TestWithParam<Case> {};

// Lowest score of a unit of the list that is not forced.
float CutOff(const RowRecord& row, size_t head, const LayerShape& shape, int32_t position) {
  const int32_t forced = FirstForcedNewestUnit(position + 1, shape.policy.unit_tokens);
  float lowest = INFINITY;
  for (const int32_t unit : row.lists[head]) {
    if (unit != 0 && unit < forced) {
      lowest = std::min(lowest, row.scores[head][static_cast<size_t>(unit)]);
    }
  }
  return lowest;
}

// A key that two backends round apart can fall into the next cell of its box, a quarter of the
// channel's range away.
Tolerance ScoreTolerance(const LayerShape& shape) {
  return shape.score == PageScore::kSketch ? Tolerance{0.1, 0.1} : ToleranceOf(DType::kBFloat16, 1);
}

// The same units, but for those whose score is within epsilon of the cut-off.
void ExpectSameSelection(const RowRecord& got, const RowRecord& want, const LayerShape& shape,
                         int32_t position) {
  ASSERT_EQ(got.all, want.all);
  for (size_t head = 0; head < want.lists.size(); ++head) {
    if (want.all[head] || std::isnan(want.scores[head][0])) {
      continue;  // dense, or the list was kept from an earlier row
    }
    EXPECT_TRUE(Near(got.scores[head], want.scores[head], ScoreTolerance(shape)))
        << "scores of head " << head;
    ASSERT_EQ(got.lists[head].size(), want.lists[head].size());
    const float cut_off = CutOff(want, head, shape, position);
    std::vector<int32_t> differing;
    std::set_symmetric_difference(got.lists[head].begin(), got.lists[head].end(),
                                  want.lists[head].begin(), want.lists[head].end(),
                                  std::back_inserter(differing));
    for (const int32_t unit : differing) {
      const float score = want.scores[head][static_cast<size_t>(unit)];
      EXPECT_NEAR(score, cut_off, ScoreTolerance(shape).relative * std::abs(cut_off) + 1e-3)
          << "unit " << unit << " of head " << head;
    }
  }
}

// The keys of a boxed page, but for one in a hundred: boxes are near each other, and a key at the
// edge of a cell, or one that two backends round apart, may fall into the next.
void ExpectSameBoxedPages(const PageContent& got, const PageContent& want, int32_t head_dim,
                          KvFormat format, Tolerance tolerance) {
  EXPECT_TRUE(Near(got.boxes, want.boxes, tolerance));
  EXPECT_TRUE(Near(got.grids, want.grids, tolerance));
  ASSERT_EQ(got.keys.size(), want.keys.size());
  const auto dim = static_cast<size_t>(head_dim);
  const float cells = format == KvFormat::kInt8 ? 256.0f : 16.0f;
  size_t keys_apart = 0;
  size_t values_apart = 0;
  for (size_t i = 0; i < want.keys.size(); ++i) {
    const float* box = want.boxes.data() + i / (kPageTokens * dim) * 2 * dim + i % dim;
    const float cell = (box[dim] - box[0]) / cells;
    const float key_error = std::abs(got.keys[i] - want.keys[i]);
    const float rounding =
        static_cast<float>(tolerance.relative) * (std::abs(box[0]) + std::abs(box[dim]));
    ASSERT_LE(key_error, 1.01f * cell + rounding) << "key " << i;
    keys_apart += key_error > 0.5f * cell ? 1 : 0;
    const float scale = want.grids[i / dim * 2 + 1];
    const float value_error = std::abs(got.values[i] - want.values[i]);
    ASSERT_LE(value_error, 1.01f * scale) << "value " << i;
    values_apart += value_error > 0.5f * scale ? 1 : 0;
  }
  EXPECT_LE(keys_apart * 100, want.keys.size());
  EXPECT_LE(values_apart * 100, want.values.size());
}

// Boxes near each other; codes the same but for one in a thousand, which may be a cell apart.
void ExpectSameSketches(const std::vector<float>& got, const std::vector<float>& want,
                        int32_t head_dim, Tolerance tolerance) {
  ASSERT_EQ(got.size(), want.size());
  const auto dim = static_cast<size_t>(head_dim);
  const size_t head_size = static_cast<size_t>(StatsRows(PageScore::kSketch)) * dim;
  size_t apart = 0;
  for (size_t head = 0; head < want.size(); head += head_size) {
    EXPECT_TRUE(Near({got.data() + head, 2 * dim}, {want.data() + head, 2 * dim}, tolerance));
    for (size_t i = head + 2 * dim; i < head + head_size; ++i) {
      ASSERT_LE(std::abs(got[i] - want[i]), 1.0f);
      apart += got[i] != want[i] ? 1 : 0;
    }
  }
  EXPECT_LE(apart * 1000, want.size());
}

void ExpectSamePages(const std::map<int32_t, PageContent>& got,
                     const std::map<int32_t, PageContent>& want, const LayerShape& shape,
                     DType dtype) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [page, content] : want) {
    const Tolerance tolerance = ToleranceOf(dtype, 1);
    SCOPED_TRACE(testing::Message() << "page " << page);
    if (content.boxes.empty()) {
      EXPECT_TRUE(Near(got.at(page).keys, content.keys, tolerance)) << "keys";
      EXPECT_TRUE(Near(got.at(page).values, content.values, tolerance)) << "values";
    } else {
      ExpectSameBoxedPages(got.at(page), content, shape.head_dim, shape.format, tolerance);
    }
    if (shape.score == PageScore::kSketch) {
      ExpectSameSketches(got.at(page).stats, content.stats, shape.head_dim, tolerance);
    } else {
      EXPECT_TRUE(Near(got.at(page).stats, content.stats, tolerance)) << "statistics";
    }
  }
}

TEST_P(AttentionConformance, RandomScheduleMatchesRef) {
  const auto [target, shape_index, seed] = GetParam();
  BackendOptions options;
  options.threads = static_cast<int32_t>(seed);
  Result<std::unique_ptr<Backend>> backend = MakeBackend(target.backend, options);
  if (!backend.ok()) {
    GTEST_SKIP() << backend.status().message();
  }
  if (const Status status = (*backend)->SupportsActivations(target.dtype); !status.ok()) {
    GTEST_SKIP() << status.message();
  }
  const std::unique_ptr<Backend> ref = MakeRefBackend(BackendOptions{}).value();
  LayerShape shape = LayerShapes()[shape_index];
  shape.format = target.format;
  SCOPED_TRACE(testing::Message() << shape);
  const std::vector<SequenceLengths> sequences =
      seed % 2 == 0
          ? std::vector<SequenceLengths>{{1, 70}, {63, 66}, {129, 140}, {400, 418}}
          : std::vector<SequenceLengths>{{16, 18}, {17, 49}, {64, 66}, {207, 260}, {449, 452}};
  const std::vector<Step> schedule = RandomSchedule(sequences, seed);

  Layer want(*ref, shape, target.dtype, RandomData(seed), 640, seed);
  want.Run(schedule);
  Layer got(**backend, shape, target.dtype, RandomData(seed), 640, seed);
  got.UseLists(&want.record());
  got.Run(schedule);

  Tolerance tolerance = AttentionTolerance(target.dtype, shape.format, 512);
  if (shape.format == KvFormat::kInt4) {  // a key that falls into the next cell is far off
    tolerance = {1.5 * tolerance.relative, 1.5 * tolerance.absolute};
  }
  for (const auto& [key, row] : want.record()) {
    SCOPED_TRACE(testing::Message() << "sequence " << key.first << ", position " << key.second);
    const RowRecord& other = got.record().at(key);
    ASSERT_TRUE(Near(other.output, row.output, tolerance));
    ASSERT_TRUE(Near(other.log_sums, row.log_sums, tolerance)) << "log sums";
    ExpectSameSelection(other, row, shape, key.second);
    if (HasFailure()) {
      return;
    }
  }
  for (int32_t s = 0; s < static_cast<int32_t>(sequences.size()); ++s) {
    SCOPED_TRACE(testing::Message() << "cache of sequence " << s);
    ExpectSamePages(got.Pages(s), want.Pages(s), shape, target.dtype);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Target& target : WithEachFormat(Targets(ComparedBackendNames()))) {
    for (size_t shape = 0; shape < LayerShapes().size(); ++shape) {
      for (uint64_t seed = 1; seed <= 2; ++seed) {
        if (target.format == KvFormat::kBFloat16 ||
            (seed == 2) == (target.format == KvFormat::kInt4)) {
          cases.push_back({target, shape, seed});
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionConformance, testing::ValuesIn(Cases()),
                         [](const auto& test) {
                           return TargetName(test.param.target) + "_shape" +
                                  std::to_string(test.param.shape) + "_seed" +
                                  std::to_string(test.param.seed);
                         });

}  // namespace
}  // namespace lserve::conformance
