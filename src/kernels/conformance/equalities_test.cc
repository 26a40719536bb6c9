// What must be bit-equal inside one backend: chunking, batch mix, page placement, thread count; and
// what must agree within rounding: sparse and dense attention where they see the same tokens.
#include <algorithm>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

class Equalities : public TargetTest {
 protected:
  // Shapes with the target's page format.
  LayerShape Shape(size_t index) const {
    LayerShape shape = LayerShapes()[index];
    shape.format = GetParam().format;
    return shape;
  }
  Layer MakeLayer(const LayerShape& shape, uint64_t placement = 1) {
    return Layer(*backend_, shape, dtype(), RandomData(5), 640, placement);
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, Equalities,
                         testing::ValuesIn(WithEachFormat(Targets(BackendNames()))),
                         TargetTestName);

const std::vector<SequenceLengths>& Sequences() {
  static const std::vector<SequenceLengths> sequences = {{1, 20}, {130, 140}, {300, 330}};
  return sequences;
}

TEST_P(Equalities, PagePlacementChangesNothing) {
  for (const size_t shape_index : {0u, 1u, 4u, 8u}) {
    const LayerShape shape = Shape(shape_index);
    const std::vector<Step> schedule = RandomSchedule(Sequences(), 11);
    Layer one = MakeLayer(shape, 1);
    one.Run(schedule);
    Layer other = MakeLayer(shape, 2);
    other.Run(schedule);
    EXPECT_TRUE(Identical(other.record(), one.record())) << shape;
    for (int32_t s = 0; s < 3; ++s) {
      EXPECT_TRUE(Identical(other.Pages(s), one.Pages(s))) << shape;
    }
  }
}

// Pages more than 2^31 elements from the pool's start.
TEST_P(Equalities, DistantPagesChangeNothing) {
  constexpr int64_t kUnusedBytes = (int64_t{1} << 32) + 12345;
  for (const size_t shape_index : {1u, 8u}) {
    const LayerShape shape = Shape(shape_index);
    const std::vector<Step> schedule = RandomSchedule(Sequences(), 11);
    Layer near = MakeLayer(shape);
    near.Run(schedule);
    Layer distant(*backend_, shape, dtype(), RandomData(5), 640, 1, kUnusedBytes);
    distant.Run(schedule);
    EXPECT_TRUE(Identical(distant.record(), near.record())) << shape;
    for (int32_t s = 0; s < 3; ++s) {
      EXPECT_TRUE(Identical(distant.Pages(s), near.Pages(s))) << shape;
    }
  }
}

TEST_P(Equalities, ChunkingChangesNothing) {
  for (const size_t shape_index : {2u, 3u, 4u, 9u}) {
    const LayerShape shape = Shape(shape_index);
    const std::vector<SequenceLengths> sequence = {{275, 280}};
    Layer whole = MakeLayer(shape);
    whole.Run(PlainSchedule(sequence, 275));
    for (const int32_t chunk : {1, 63, 64, 65, 127, 128, 200}) {
      Layer chunked = MakeLayer(shape);
      chunked.Run(PlainSchedule(sequence, chunk));
      EXPECT_TRUE(Identical(chunked.record(), whole.record())) << shape << ", chunks of " << chunk;
      EXPECT_TRUE(Identical(chunked.Pages(0), whole.Pages(0))) << shape << ", chunks of " << chunk;
    }
  }
}

TEST_P(Equalities, BatchMixChangesNothing) {
  for (const size_t shape_index : {1u, 3u, 4u, 7u, 8u}) {
    const LayerShape shape = Shape(shape_index);
    Layer alone = MakeLayer(shape);
    alone.Run(PlainSchedule(Sequences(), 128));
    Layer mixed = MakeLayer(shape);
    mixed.Run(RandomSchedule(Sequences(), 12));
    EXPECT_TRUE(Identical(mixed.record(), alone.record())) << shape;
  }
}

TEST_P(Equalities, ThreadCountChangesNothing) {
  const std::vector<Step> schedule = RandomSchedule({{1, 4}, {130, 135}, {200, 205}}, 13);
  const LayerShape shape = Shape(4);
  BackendOptions options;
  options.threads = 1;
  const std::unique_ptr<Backend> single = MakeBackend(GetParam().backend, options).value();
  Layer want(*single, shape, dtype(), RandomData(5), 640);
  want.Run(schedule);
  for (const int32_t threads : {2, 3}) {
    options.threads = threads;
    const std::unique_ptr<Backend> several = MakeBackend(GetParam().backend, options).value();
    Layer got(*several, shape, dtype(), RandomData(5), 640);
    got.Run(schedule);
    EXPECT_TRUE(Identical(got.record(), want.record())) << threads << " threads";
  }
}

// Recomputing a sequence after it lost its slot: prompt by prefill, generated tokens as decode
// rows.
TEST_P(Equalities, RebuiltSequenceEqualsTheOriginal) {
  const LayerShape shape = Shape(1);
  const std::vector<SequenceLengths> sequence = {{200, 215}};
  Layer layer = MakeLayer(shape);
  layer.Run(PlainSchedule(sequence, 128));
  const Record original = layer.record();
  layer.Release(0);
  layer.Run(PlainSchedule(sequence, 64));
  EXPECT_TRUE(Identical(layer.record(), original));
}

TEST_P(Equalities, BudgetThatCoversTheContextEqualsDense) {
  for (const int32_t unit : {64, 32, 16}) {
    LayerShape sparse = Shape(0);
    sparse.policy = {320, unit, 1};
    LayerShape dense = sparse;
    dense.policy.token_budget = 0;
    Layer layer = MakeLayer(sparse);
    layer.Run(PlainSchedule({{310, 320}}, 128));
    Layer expected = MakeLayer(dense);
    expected.Run(PlainSchedule({{310, 320}}, 128));
    for (int32_t position = 310; position < 320; ++position) {
      EXPECT_TRUE(Identical(layer.row(0, position).output, expected.row(0, position).output))
          << "unit " << unit << ", position " << position;
      EXPECT_TRUE(layer.row(0, position).all[0]);
    }
  }
}

// One token over the budget, all units but one are kept; at the budget, all.
TEST_P(Equalities, SelectionStartsOneTokenBeyondTheBudget) {
  LayerShape shape = Shape(0);
  shape.policy = {256, 64, 1};
  Layer layer = MakeLayer(shape);
  layer.Run(PlainSchedule({{255, 258}}, 128));
  EXPECT_TRUE(layer.row(0, 255).all[0]);
  EXPECT_FALSE(layer.row(0, 256).all[0]);
  EXPECT_EQ(layer.row(0, 256).lists[0].size(), 4u);
  EXPECT_FALSE(layer.row(0, 257).all[0]);
}

// The same data through a streaming and a retrieval head: while the window covers the sequence,
// they agree.
TEST_P(Equalities, StreamingEqualsDenseWhileItsWindowCoversTheSequence) {
  LayerShape streaming{0, 2, 64, 2, 128, 100, {0, 64, 1}, false, false};
  LayerShape dense{2, 0, 64, 2, 128, 100, {0, 64, 1}, false, false};
  if (GetParam().format != KvFormat::kBFloat16) {
    GTEST_SKIP() << "streaming pages are never boxed";
  }
  Layer layer = MakeLayer(streaming);
  Layer expected = MakeLayer(dense);
  for (Layer* each : {&layer, &expected}) {
    each->Run(PlainSchedule({{150, 228}}, 70));
  }
  for (const auto& [key, row] : expected.record()) {
    EXPECT_TRUE(Near(layer.record().at(key).output, row.output, ToleranceOf(dtype(), 228)))
        << "position " << key.second;
  }
}

// Prefill and decode see the same: their own page in full, every page before it as it was closed.
TEST_P(Equalities, DecodeRowsEqualPrefillRows) {
  LayerShape shape = Shape(2);
  shape.policy.token_budget = 0;
  Layer decoded = MakeLayer(shape);
  decoded.Run(PlainSchedule({{140, 280}}, 128));
  Layer prefilled = MakeLayer(shape);
  prefilled.Run(PlainSchedule({{280, 280}}, 280));
  for (int32_t position = 140; position < 280; ++position) {
    EXPECT_TRUE(Near(decoded.row(0, position).output, prefilled.row(0, position).output,
                     AttentionTolerance(dtype(), GetParam().format, 280)))
        << "position " << position;
  }
  EXPECT_TRUE(Identical(decoded.Pages(0), prefilled.Pages(0)));
}

TEST_P(Equalities, ListOfAllBlocksEqualsDensePrefill) {
  const LayerShape shape = Shape(1);
  Layer dense = MakeLayer(shape);
  dense.Run(PlainSchedule({{300, 300}}, 100));
  Layer listed = MakeLayer(shape);
  listed.UseBlocks([](int32_t, int32_t query_block, int32_t) {
    std::vector<int32_t> blocks;
    for (int32_t block = 0; block < 2 * (query_block + 1); ++block) {
      blocks.push_back(block);
    }
    return blocks;
  });
  listed.Run(PlainSchedule({{300, 300}}, 100));
  EXPECT_TRUE(Identical(listed.record(), dense.record()));
}

TEST_P(Equalities, CapturedStepReadsItsArraysWhenItRuns) {
  constexpr int32_t kHidden = 33;
  constexpr int32_t kVocabulary = 7;
  const std::unique_ptr<Stream> stream = backend_->MakeStream();
  Batch batch(*backend_, 4, 4);
  const DeviceArray<float> table(*backend_, NormalVector(kVocabulary * kHidden, 3));
  DeviceArray<int32_t> last_token(*backend_, std::vector<int32_t>{6, 5, 4, 3});
  ActivationArray output(*backend_, dtype(), (4 + kRowSlack) * kHidden);
  const EmbedRowsParams params{batch.view(),  table.data(), DType::kFloat32, last_token.data(),
                               output.data(), dtype(),      kVocabulary,     kHidden};
  batch.Set({{0, 0}}, {}, {}, {1});
  stream->BeginCapture();
  backend_->ops().embed_rows.run(*stream, params);
  const std::unique_ptr<Graph> graph = stream->EndCapture();
  for (const std::vector<int32_t>& tokens : {std::vector<int32_t>{2}, {-1, 0}, {3, 3, -1}}) {
    std::vector<BatchRow> rows;
    std::vector<float> want;
    for (int32_t row = 0; row < static_cast<int32_t>(tokens.size()); ++row) {
      rows.push_back({row, 9});
      const int32_t token = tokens[static_cast<size_t>(row)];
      const std::vector<float> values =
          table.Download((token < 0 ? 6 - row : token) * kHidden, kHidden);
      want.insert(want.end(), values.begin(), values.end());
    }
    if (dtype() == DType::kBFloat16) {
      std::transform(want.begin(), want.end(), want.begin(), RoundToBFloat16);
    }
    batch.Set(rows, {}, {}, tokens);
    stream->Launch(*graph);
    ASSERT_TRUE(stream->Synchronize().ok());
    EXPECT_TRUE(Identical(output.Download(0, static_cast<int64_t>(want.size())), want));
  }
}

}  // namespace
}  // namespace lserve::conformance
