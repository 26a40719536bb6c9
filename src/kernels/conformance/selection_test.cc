// Page selection and what decode rows of retrieval heads read.
#include <algorithm>
#include <cmath>

#include "kernels/conformance/uniform.h"

namespace lserve::conformance {
namespace {

class Selection : public TargetTest {
 protected:
  LayerShape Shape(int32_t budget, int32_t unit, int32_t interval = 1) const {
    return {1,
            0,
            64,
            1,
            128,
            256,
            {budget, unit, interval},
            false,
            false,
            GetParam().score,
            GetParam().format};
  }
  Layer MakeLayer(const LayerShape& shape, TokenData data) {
    return Layer(*backend_, shape, dtype(), std::move(data), 704);
  }
};

// Each score, and with a boxed format: int8 under minmax, int4 under the sketch.
std::vector<Target> SelectionTargets() {
  std::vector<Target> targets = WithEachFormat(WithEachScore(Targets(BackendNames())));
  std::erase_if(targets, [](const Target& target) {
    return target.format ==
           (target.score == PageScore::kSketch ? KvFormat::kInt8 : KvFormat::kInt4);
  });
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Backends, Selection, testing::ValuesIn(SelectionTargets()),
                         TargetTestName);

// The channel pair that RoPE turns least: as good as not at all over a few hundred tokens.
int32_t StillChannel(const LayerShape& shape) { return shape.head_dim / 2 - 1; }

// Element `channel` of query head h, or of the key of KV head h.
float& Query(std::span<float> qkv, const LayerShape& shape, int32_t h, int32_t channel) {
  return qkv[static_cast<size_t>(h * shape.head_dim + channel)];
}
float& Key(std::span<float> qkv, const LayerShape& shape, int32_t h, int32_t channel) {
  return qkv[static_cast<size_t>((shape.q_heads() + h) * shape.head_dim + channel)];
}

std::vector<int32_t> UnitsUnited(std::vector<int32_t> units, int32_t tokens, int32_t unit_tokens) {
  for (int32_t unit = FirstForcedNewestUnit(tokens, unit_tokens); unit * unit_tokens < tokens;
       ++unit) {
    units.push_back(unit);
  }
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  return units;
}

TEST_P(Selection, DenseDecodeReadsEveryCachedTokenOnce) {
  LayerShape shape = Shape(0, 64);
  const TokenData data = UniformData(shape, 4);
  Layer layer = MakeLayer(shape, data);
  layer.Run(PlainSchedule({{1, 200}}, 1));
  for (const auto& [key, row] : layer.record()) {
    ASSERT_TRUE(IsMeanOf(row.output, AllTokens(key.second + 1), shape, dtype(), data, 0, 0))
        << "position " << key.second;
  }
}

// The path of contexts within the budget reads exactly the cached tokens: no page too many.
TEST_P(Selection, PromptsAroundPageBoundariesReadExactlyTheirTokens) {
  const LayerShape shape = Shape(512, 64);
  const TokenData data = UniformData(shape, 4);
  for (const int32_t remainder : {0, 1, 15, 16, 17, 63}) {
    const int32_t prompt = 128 + remainder;
    Layer layer = MakeLayer(shape, data);
    layer.Run(PlainSchedule({{prompt, prompt + 2}}, 512));
    for (const auto& [key, row] : layer.record()) {
      ASSERT_TRUE(IsMeanOf(row.output, AllTokens(key.second + 1), shape, dtype(), data, 0, 0))
          << "prompt " << prompt << ", position " << key.second;
    }
  }
}

TEST_P(Selection, SparseDecodeReadsItsUnitsOnce) {
  for (const auto& [budget, unit] : {std::pair{256, 64}, {160, 32}, {112, 16}}) {
    const LayerShape shape = Shape(budget, unit);
    const TokenData data = UniformData(shape, 4);
    Layer layer = MakeLayer(shape, data);
    layer.Run(PlainSchedule({{300, 390}}, 128));
    for (int32_t position = 300; position < 390; ++position) {
      const RowRecord& row = layer.row(0, position);
      ASSERT_FALSE(row.all[0]);
      ASSERT_TRUE(IsMeanOf(row.output, TokensOf(row.lists[0], unit, position + 1), shape, dtype(),
                           data, 0, 0))
          << "unit " << unit << ", position " << position;
    }
  }
}

TEST_P(Selection, ListsAreFullUniqueAscendingAndHoldSinkAndNewestTokens) {
  for (const auto& [budget, unit] : {std::pair{256, 64}, {160, 32}, {112, 16}}) {
    const LayerShape shape = Shape(budget, unit);
    Layer layer = MakeLayer(shape, RandomData(6));
    layer.Run(PlainSchedule({{300, 390}}, 128));
    for (int32_t position = 300; position < 390; ++position) {
      const std::vector<int32_t>& list = layer.row(0, position).lists[0];
      SCOPED_TRACE(testing::Message() << "unit " << unit << ", position " << position);
      ASSERT_EQ(list.size(), static_cast<size_t>(budget / unit));
      ASSERT_EQ(UnitsUnited(list, position + 1, unit), list);
      ASSERT_EQ(list.front(), 0);
      ASSERT_EQ(list.back(), position / unit);
    }
  }
}

// A list that is older than a page boundary is united with the units opened since.
TEST_P(Selection, ReusedListStillReadsTheNewestTokens) {
  for (const auto& [budget, unit] : {std::pair{256, 64}, {112, 16}}) {
    const LayerShape shape = Shape(budget, unit, 8);
    const TokenData data = UniformData(shape, 4);
    Layer layer = MakeLayer(shape, data);
    layer.Run(PlainSchedule({{314, 400}}, 128));
    for (int32_t position = 314; position < 400; ++position) {
      const RowRecord& row = layer.row(0, position);
      SCOPED_TRACE(testing::Message() << "unit " << unit << ", position " << position);
      if ((position - 314) % 8 != 0) {
        ASSERT_EQ(row.lists, layer.row(0, position - 1).lists) << "selected before its turn";
      } else {
        ASSERT_EQ(row.lists[0].back(), position / unit) << "not selected in its turn";
      }
      const std::vector<int32_t> units = UnitsUnited(row.lists[0], position + 1, unit);
      ASSERT_TRUE(
          IsMeanOf(row.output, TokensOf(units, unit, position + 1), shape, dtype(), data, 0, 0));
    }
  }
}

TEST_P(Selection, ContextThatOutgrowsTheBudgetBetweenTurnsSelectsAtOnce) {
  const LayerShape shape = Shape(256, 64, 8);
  Layer layer = MakeLayer(shape, RandomData(6));
  layer.Run(PlainSchedule({{253, 260}}, 128));
  EXPECT_TRUE(layer.row(0, 255).all[0]);
  EXPECT_FALSE(layer.row(0, 256).all[0]);
  EXPECT_EQ(layer.row(0, 257).lists, layer.row(0, 256).lists);
}

// The statistics of pages that do not exist yet are NaN here: they must not be read, nor score 0.
TEST_P(Selection, ScoresOfMissingLogicalPagesAreMinusInfinity) {
  for (const int32_t prompt : {320, 321, 336, 337, 383, 384}) {
    const LayerShape shape = Shape(112, 16);
    Layer layer = MakeLayer(shape, RandomData(6));
    layer.Run(PlainSchedule({{prompt, prompt + 1}}, 128));
    const std::vector<float>& scores = layer.row(0, prompt).scores[0];
    for (int32_t unit = 0; unit < static_cast<int32_t>(scores.size()); ++unit) {
      const float score = scores[static_cast<size_t>(unit)];
      if (unit <= prompt / 16) {
        EXPECT_TRUE(std::isfinite(score)) << "prompt " << prompt << ", unit " << unit;
      } else {
        EXPECT_EQ(score, -INFINITY) << "prompt " << prompt << ", unit " << unit;
      }
    }
  }
}

TEST_P(Selection, LargerUnitsTakeTheMaximumOfTheirLogicalPages) {
  Layer fine = MakeLayer(Shape(112, 16), RandomData(6));
  fine.Run(PlainSchedule({{330, 331}}, 128));
  const std::vector<float>& logical = fine.row(0, 330).scores[0];
  for (const auto& [budget, unit] : {std::pair{256, 64}, {160, 32}}) {
    Layer layer = MakeLayer(Shape(budget, unit), RandomData(6));
    layer.Run(PlainSchedule({{330, 331}}, 128));
    const std::vector<float>& scores = layer.row(0, 330).scores[0];
    for (size_t u = 0; u < scores.size(); ++u) {
      const auto first = logical.begin() + static_cast<int64_t>(u) * (unit / 16);
      EXPECT_EQ(scores[u], *std::max_element(first, first + unit / 16)) << "unit " << u;
    }
  }
}

TEST_P(Selection, EqualScoresGoToTheLowerUnit) {
  const LayerShape shape = Shape(160, 32);
  Layer layer = MakeLayer(shape, [](int32_t, int32_t, std::span<float> qkv) {
    std::fill(qkv.begin(), qkv.end(), 0.0f);
  });
  layer.Run(PlainSchedule({{400, 401}}, 128));
  EXPECT_EQ(layer.row(0, 400).lists[0], (std::vector<int32_t>{0, 1, 10, 11, 12}));
}

// One query head of the group looks for the needle, the others for ten other units; a sum or mean
// over the group would drop the needle.
TEST_P(Selection, NeedleOfOneQueryHeadSurvivesGroupMerge) {
  for (const int32_t group : {2, 3, 4, 8}) {
    LayerShape shape = Shape(160, 32);
    shape.group = group;
    constexpr int32_t kNeedle = 111;  // unit 3
    const TokenData noise = RandomData(8, 0.01f);
    Layer layer = MakeLayer(shape, [&](int32_t, int32_t position, std::span<float> qkv) {
      noise(0, position, qkv);
      const int32_t channel = StillChannel(shape);
      for (int32_t h = 0; h < group; ++h) {
        Query(qkv, shape, h, h == group - 1 ? channel : channel - 1) = 10.0f;
      }
      Key(qkv, shape, 0, channel) = position == kNeedle ? 20.0f : 0.0f;
      Key(qkv, shape, 0, channel - 1) = position >= 128 && position % 32 == 5 ? 19.0f : 0.0f;
    });
    layer.Run(PlainSchedule({{500, 501}}, 128));
    const std::vector<int32_t>& list = layer.row(0, 500).lists[0];
    EXPECT_TRUE(std::binary_search(list.begin(), list.end(), kNeedle / 32)) << "group " << group;
  }
}

// A key bias of thousands, as some models have: scores leave float16's range, ranks must not.
TEST_P(Selection, OutlierChannelKeepsTheRank) {
  const LayerShape shape = Shape(160, 32);
  constexpr int32_t kNeedle = 300;  // unit 9
  const TokenData noise = RandomData(8, 0.01f);
  Layer layer = MakeLayer(shape, [&](int32_t, int32_t position, std::span<float> qkv) {
    noise(0, position, qkv);
    const int32_t channel = StillChannel(shape);
    Query(qkv, shape, 0, channel) = 300.0f;
    Key(qkv, shape, 0, channel) = 3000.0f;
    Query(qkv, shape, 0, channel - 1) = 100.0f;
    Key(qkv, shape, 0, channel - 1) = position == kNeedle ? 1000.0f : 0.0f;
  });
  layer.Run(PlainSchedule({{500, 501}}, 128));
  const std::vector<int32_t>& list = layer.row(0, 500).lists[0];
  EXPECT_TRUE(std::binary_search(list.begin(), list.end(), kNeedle / 32));
  EXPECT_GT(layer.row(0, 500).scores[0][0], 65504.0f);
}

// Keys times 8 and queries divided by 8 in three rotated pairs of channels: the same attention. A
// score that shares one scale among channels would rank other units.
TEST_P(Selection, ScaledChannelPairsChangeNothing) {
  const LayerShape shape = Shape(160, 32);
  const TokenData plain = RandomData(12);
  const TokenData scaled = [&](int32_t sequence, int32_t position, std::span<float> qkv) {
    plain(sequence, position, qkv);
    for (const int32_t pair : {1, 9, 30}) {
      for (const int32_t channel : {pair, pair + shape.head_dim / 2}) {
        Query(qkv, shape, 0, channel) /= 8.0f;
        Key(qkv, shape, 0, channel) *= 8.0f;
      }
    }
  };
  Layer layer = MakeLayer(shape, scaled);
  Layer expected = MakeLayer(shape, plain);
  for (Layer* each : {&layer, &expected}) {
    each->Run(PlainSchedule({{400, 440}}, 128));
  }
  EXPECT_TRUE(Identical(layer.record(), expected.record()));
}

TEST_P(Selection, MixedLengthsKeepTheirOwnScores) {
  LayerShape shape = LayerShapes()[4];
  shape.score = GetParam().score;
  shape.format = GetParam().format;
  const std::vector<int32_t> prompts = {130, 257, 400, 449};
  const auto prefill = [&](Layer& layer, int32_t s) {
    layer.Run(Step{{}, {{s, prompts[static_cast<size_t>(s)]}}, true});
  };
  Layer mixed = MakeLayer(shape, RandomData(9));
  for (int32_t s = 0; s < 4; ++s) {
    prefill(mixed, s);
  }
  mixed.Run(Step{{2, 0, 3, 1}, {}});
  for (int32_t s = 0; s < 4; ++s) {
    Layer alone = MakeLayer(shape, RandomData(9));
    prefill(alone, s);
    alone.Run(Step{{s}, {}});
    const int32_t position = prompts[static_cast<size_t>(s)];
    EXPECT_TRUE(Identical(mixed.row(s, position).scores[0], alone.row(s, position).scores[0]));
    EXPECT_EQ(mixed.row(s, position).lists, alone.row(s, position).lists);
  }
}

// Lists that are reused belong to the slot: other rows come, go and change places.
TEST_P(Selection, ReusedListsStayWithTheirSlotWhenRowsChangePlaces) {
  const LayerShape shape = Shape(112, 16, 4);
  const std::vector<SequenceLengths> lengths = {{200, 212}, {230, 242}, {333, 345}};
  Layer alone = MakeLayer(shape, RandomData(9));
  alone.Run(PlainSchedule(lengths, 512));
  Layer mixed = MakeLayer(shape, RandomData(9));
  mixed.Run(Step{{}, {{0, 200}, {1, 230}}});
  for (int32_t i = 0; i < 12; ++i) {
    mixed.Run(i % 2 == 0 ? Step{{0, 1}, {}} : Step{{1, 0}, {}});
    if (i == 5) {
      mixed.Run(Step{{}, {{2, 333}}});
    }
  }
  for (int32_t i = 0; i < 12; ++i) {
    mixed.Run(Step{{2}, {}});
  }
  EXPECT_TRUE(Identical(mixed.record(), alone.record()));
}

TEST_P(Selection, BlockListRestrictsWhatPrefillReads) {
  LayerShape shape = Shape(0, 64);
  shape.retrieval_heads = 2;
  const TokenData data = UniformData(shape, 4);
  // Head 0: the first block and the diagonal; head 1: every second block and the diagonal.
  const auto blocks = [](int32_t query_block, int32_t head) {
    std::vector<int32_t> list;
    for (int32_t block = 0; block < 2 * query_block; ++block) {
      if (head == 0 ? block == 0 : block % 2 == 1) {
        list.push_back(block);
      }
    }
    list.push_back(2 * query_block);
    list.push_back(2 * query_block + 1);
    return list;
  };
  for (const int32_t chunk : {90, 128, 600}) {
    Layer layer = MakeLayer(shape, data);
    layer.UseBlocks(
        [&](int32_t, int32_t query_block, int32_t head) { return blocks(query_block, head); });
    layer.Run(PlainSchedule({{400, 400}}, chunk));
    for (const auto& [key, row] : layer.record()) {
      for (int32_t head = 0; head < 2; ++head) {
        const std::vector<int32_t> tokens =
            TokensOf(blocks(key.second / kQueryBlockTokens, head), 64, key.second + 1);
        ASSERT_TRUE(IsMeanOf(row.output, tokens, shape, dtype(), data, 0, head))
            << "chunk " << chunk << ", position " << key.second;
      }
    }
  }
}

}  // namespace
}  // namespace lserve::conformance
