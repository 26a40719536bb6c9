// Prefill attention that leaves blocks out, against `ref` and against what must not change.
#include <cmath>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

// Every head size and group.
std::vector<LayerShape> AllShapes() {
  constexpr SelectionPolicy kDense = {0, 64, 1};
  return {
      {1, 1, 64, 2, 128, 256, kDense}, {2, 0, 80, 3, 128, 256, kDense},
      {1, 1, 96, 1, 64, 100, kDense},  {1, 0, 128, 4, 128, 256, kDense},
      {2, 1, 128, 5, 100, 65, kDense}, {1, 0, 256, 2, 128, 256, kDense},
      {1, 0, 64, 8, 128, 256, kDense}, {1, 1, 80, 6, 3, 17, kDense},
      {1, 0, 96, 7, 128, 256, kDense},
  };
}

// Of the threshold: e^-1.
constexpr float kBetweenLevels = 0.368f;

// Blocks whose highest scores are near 0, 2 or 4, so that kBetweenLevels separates the levels and
// rounding decides nothing. One key of a block is loud, in a channel that RoPE hardly turns; rows
// differ in the sign with which they ask for it. Quiet keys together weigh as much as a loud one:
// a block more or less shows in the output. The blocks that walks begin with have the highest score
// for either sign, so that the steps in which a backend walks decide nothing.
TokenData LoudBlocks(const LayerShape& shape, uint64_t seed) {
  const TokenData random = RandomData(seed);
  const auto dim = static_cast<size_t>(shape.head_dim);
  const auto q_heads = static_cast<size_t>(shape.q_heads());
  const auto kv_heads = static_cast<size_t>(shape.kv_heads());
  const size_t channel = dim / 2 - 1;  // turns with channel dim - 1
  return [=](int32_t sequence, int32_t position, std::span<float> qkv) {
    random(sequence, position, qkv);
    for (size_t head = 0; head < q_heads + kv_heads; ++head) {
      const std::span<float> x = qkv.subspan(head * dim, dim);
      x[channel] = x[dim - 1] = 0.0f;
      if (head < q_heads) {
        std::for_each(x.begin(), x.end(), [](float& element) { element *= 0.1f; });
        const bool negative = (static_cast<size_t>(position) / 50 + head) % 3 == 0;
        x[channel] = (negative ? -2.0f : 2.0f) * std::sqrt(static_cast<float>(dim));
      } else if (position % kPageTokens == 17) {
        const size_t block = static_cast<size_t>(position / kPageTokens);
        x[channel] =
            block < 2 ? 2.0f : static_cast<float>((block * 7 + head * 3 + seed) % 5) - 2.0f;
      } else if (position % kPageTokens == 18 && position < 2 * kPageTokens) {
        x[channel] = -2.0f;
      }
    }
  };
}

class PrefillConformance : public TargetTest {
 protected:
  // In the target's format; fewer of the boxed formats and on `ref`, which takes its time.
  std::vector<LayerShape> Shapes() const {
    const size_t step = GetParam().backend == "ref"                ? 8
                        : GetParam().format != KvFormat::kBFloat16 ? 4
                                                                   : 1;
    std::vector<LayerShape> shapes;
    for (size_t i = 0; i < AllShapes().size(); i += step) {
      shapes.push_back(AllShapes()[i]);
      shapes.back().format = GetParam().format;
    }
    return shapes;
  }
  // Runs the schedule on `backend`.
  Layer Run(Backend& backend, const LayerShape& shape, const TokenData& data,
            const PrefillPolicy& policy, const std::vector<Step>& schedule,
            const Layer::BlockList& blocks = nullptr) const {
    Layer layer(backend, shape, dtype(), data, 640);
    layer.UsePrefillPolicy(policy);
    layer.UseBlocks(blocks);
    layer.Run(schedule);
    return layer;
  }
  void ExpectNear(const Layer& got, const Layer& want) const {
    Tolerance tolerance = ToleranceOf(dtype(), 640);
    if (GetParam().format == KvFormat::kInt4) {  // a key that falls into the next cell is far off
      tolerance = {3.0 * tolerance.relative, 3.0 * tolerance.absolute};
    }
    for (const auto& [key, row] : want.record()) {
      ASSERT_TRUE(Near(got.record().at(key).output, row.output, tolerance))
          << "sequence " << key.first << ", position " << key.second;
    }
  }
};

class PrefillEqualities : public PrefillConformance {};

INSTANTIATE_TEST_SUITE_P(Backends, PrefillConformance,
                         testing::ValuesIn(WithEachFormat(Targets(ComparedBackendNames()))),
                         TargetTestName);
INSTANTIATE_TEST_SUITE_P(Backends, PrefillEqualities,
                         testing::ValuesIn(WithEachFormat(Targets(BackendNames()))),
                         TargetTestName);

const std::vector<SequenceLengths>& Sequences() {
  static const std::vector<SequenceLengths> sequences = {{590, 590}, {130, 131}};
  return sequences;
}

TEST_P(PrefillConformance, LeavesOutWhatRefLeavesOut) {
  for (size_t i = 0; i < Shapes().size(); ++i) {
    const LayerShape shape = Shapes()[i];
    SCOPED_TRACE(testing::Message() << shape);
    const TokenData data = LoudBlocks(shape, i);
    const PrefillPolicy policy{kBetweenLevels, i % 2 == 0 ? 0 : 210};
    const std::vector<Step> schedule = RandomSchedule(Sequences(), i);
    const Layer want = Run(*ref_, shape, data, policy, schedule);
    const Layer got = Run(*backend_, shape, data, policy, schedule);
    ExpectNear(got, want);
    EXPECT_LT(got.prefill_blocks().weighed, got.prefill_blocks().scored);
    // It shows: attention over everything is something else.
    const Layer everything = Run(*backend_, shape, data, {}, schedule);
    EXPECT_FALSE(Near(got.row(0, 589).output, everything.row(0, 589).output,
                      {0.0, 3.0 * ToleranceOf(dtype(), 640).absolute}));
    EXPECT_EQ(everything.prefill_blocks().weighed, everything.prefill_blocks().scored);
    EXPECT_EQ(everything.prefill_blocks().scored, got.prefill_blocks().scored);
  }
}

TEST_P(PrefillConformance, ListsAndThresholdGoTogether) {
  const LayerShape shape = Shapes()[0];
  const TokenData data = LoudBlocks(shape, 1);
  const auto odd_blocks = [](int32_t, int32_t query_block, int32_t) {
    std::vector<int32_t> blocks;
    for (int32_t block = 1; block < 2 * query_block; block += 2) {
      blocks.push_back(block);
    }
    blocks.push_back(2 * query_block);
    blocks.push_back(2 * query_block + 1);
    return blocks;
  };
  const std::vector<Step> schedule = PlainSchedule(Sequences(), 200);
  const PrefillPolicy policy{kBetweenLevels, 0};
  ExpectNear(Run(*backend_, shape, data, policy, schedule, odd_blocks),
             Run(*ref_, shape, data, policy, schedule, odd_blocks));
}

TEST_P(PrefillEqualities, ThresholdThatNothingFallsBelowChangesNothing) {
  for (const LayerShape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message() << shape);
    const TokenData data = RandomData(9);
    const std::vector<Step> schedule = RandomSchedule(Sequences(), 3);
    const Layer tiny = Run(*backend_, shape, data, {1e-30f, 0}, schedule);
    EXPECT_EQ(tiny.prefill_blocks().weighed, tiny.prefill_blocks().scored);
    // Rows that read everything do so in the same order.
    const Layer dense_rows = Run(*backend_, shape, data, {0.9f, 600}, schedule);
    EXPECT_TRUE(Identical(dense_rows.record(), tiny.record()));
    // Without a threshold only the order of the sums differs.
    ExpectNear(tiny, Run(*backend_, shape, data, {}, schedule));
  }
}

// Rows side by side leave out different blocks; none shows in another.
TEST_P(PrefillEqualities, ChunkingAndBatchMixChangeNothing) {
  for (const LayerShape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message() << shape);
    const TokenData data = LoudBlocks(shape, 5);
    const PrefillPolicy policy{kBetweenLevels, 70};
    const Layer whole = Run(*backend_, shape, data, policy, PlainSchedule(Sequences(), 600));
    EXPECT_LT(whole.prefill_blocks().weighed, whole.prefill_blocks().scored);
    for (const int32_t chunk : {63, 128, 200}) {
      const Layer chunked = Run(*backend_, shape, data, policy, PlainSchedule(Sequences(), chunk));
      EXPECT_TRUE(Identical(chunked.record(), whole.record())) << "chunks of " << chunk;
    }
    const Layer mixed = Run(*backend_, shape, data, policy, RandomSchedule(Sequences(), 8));
    EXPECT_TRUE(Identical(mixed.record(), whole.record()));
  }
}

}  // namespace
}  // namespace lserve::conformance
