#include "kernels/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/backend.h"

namespace lserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(SelectionPolicy, BudgetIsAMultipleOfTheUnitAndHoldsWhatIsForced) {
  EXPECT_TRUE(Validate(SelectionPolicy{4096, 64, 1}).ok());
  EXPECT_TRUE(Validate(SelectionPolicy{0, 64, 1}).ok());
  EXPECT_TRUE(Validate(SelectionPolicy{256, 64, 1}).ok());
  EXPECT_TRUE(Validate(SelectionPolicy{112, 16, 4}).ok());
  EXPECT_THAT(Validate(SelectionPolicy{192, 64, 1}).message(), HasSubstr("192"));
  EXPECT_THAT(Validate(SelectionPolicy{4100, 64, 1}).message(), HasSubstr("4100"));
  EXPECT_THAT(Validate(SelectionPolicy{96, 16, 1}).message(), HasSubstr("at least 112"));
  EXPECT_THAT(Validate(SelectionPolicy{4096, 48, 1}).message(), HasSubstr("48"));
  EXPECT_THAT(Validate(SelectionPolicy{4096, 64, 0}).message(), HasSubstr("interval is 0"));
  EXPECT_FALSE(Validate(SelectionPolicy{-64, 64, 1}).ok());
}

TEST(PrefillPolicy, ThresholdIsAFraction) {
  EXPECT_TRUE(Validate(PrefillPolicy{0.0f, 0}).ok());
  EXPECT_TRUE(Validate(PrefillPolicy{1.0f, 128}).ok());
  EXPECT_THAT(Validate(PrefillPolicy{1.5f, 0}).message(), HasSubstr("1.5"));
  EXPECT_THAT(Validate(PrefillPolicy{-0.1f, 0}).message(), HasSubstr("-0.1"));
  EXPECT_THAT(Validate(PrefillPolicy{std::nanf(""), 0}).message(), HasSubstr("nan"));
  EXPECT_THAT(Validate(PrefillPolicy{0.5f, -1}).message(), HasSubstr("-1"));
}

TEST(WalkedBlock, EveryBlockOnceSinkAndNewestFirst) {
  const auto walk = [](int32_t query_block) {
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < 2 * (query_block + 1); ++i) {
      blocks.push_back(WalkedBlock(query_block, i));
    }
    return blocks;
  };
  EXPECT_THAT(walk(0), ElementsAre(0, 1));
  EXPECT_THAT(walk(1), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(walk(2), ElementsAre(0, 3, 4, 5, 1, 2));
  EXPECT_THAT(walk(4), ElementsAre(0, 7, 8, 9, 1, 2, 3, 4, 5, 6));
}

TEST(StreamingRingSlot, SinkPagesStandAndTheRestTurns) {
  StreamingLane lane{};
  lane.sink_pages = 2;
  lane.ring_pages = 5;
  const int32_t want[] = {0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2};
  for (int32_t page = 0; page < 13; ++page) {
    EXPECT_EQ(StreamingRingSlot(lane, page), want[page]) << page;
  }
}

TEST(FirstForcedNewestUnit, HoldsTheNewest64Tokens) {
  EXPECT_EQ(FirstForcedNewestUnit(1, 64), 0);
  EXPECT_EQ(FirstForcedNewestUnit(64, 64), 0);
  EXPECT_EQ(FirstForcedNewestUnit(128, 64), 1);
  EXPECT_EQ(FirstForcedNewestUnit(129, 64), 1);  // tokens 65 to 128: units 1 and 2
  EXPECT_EQ(FirstForcedNewestUnit(192, 64), 2);
  EXPECT_EQ(FirstForcedNewestUnit(100, 16), 2);  // tokens 36 to 99
}

TEST(KvPageLayout, OffsetsOfAPaddedPage) {
  const KvPageLayout layout = MakeKvPageLayout(3, 80, KvFormat::kBFloat16, PageScore::kMinMax);
  EXPECT_EQ(layout.padded_head_dim, 96);
  EXPECT_EQ(layout.plane_bytes(), 64 * 96 * 2);
  EXPECT_EQ(layout.value_offset(1), 4 * 64 * 96 * 2);
  EXPECT_EQ(layout.stats_offset(2), 6 * 64 * 96 * 2 + 2 * 4 * 2 * 96 * 2);
  EXPECT_EQ(layout.page_bytes(), 3 * (2 * 64 * 96 * 2 + 4 * 2 * 96 * 2));
  EXPECT_EQ(MakeKvPageLayout(0, 64, KvFormat::kBFloat16, PageScore::kMinMax).page_bytes(), 0);
}

TEST(KvPageLayout, SketchOfABoxedPageIsItsUppermostPlane) {
  constexpr int64_t kPlane = 64 * 96 / 4;
  constexpr int64_t kBox = 2 * 96 * 2;
  constexpr int64_t kStats = 4 * 2 * 96 * 2;
  constexpr int64_t kGrids = 64 * 4;
  const KvPageLayout int4 = MakeKvPageLayout(3, 80, KvFormat::kInt4, PageScore::kSketch);
  EXPECT_EQ(int4.codes_offset(2, 1), 2 * kPlane);
  EXPECT_EQ(int4.value_offset(1), 3 * kPlane + kGrids + 64 * 96 / 2);
  EXPECT_EQ(int4.stats_offset(1), int4.box_offset(1));
  EXPECT_EQ(int4.codes_offset(1), int4.box_offset(1) + kBox);
  EXPECT_EQ(int4.page_bytes(), 3 * (2 * kPlane + kBox + kGrids + 64 * 96 / 2));
  // The sketch costs nothing beside the codes, minima and maxima their bytes.
  const KvPageLayout dense = MakeKvPageLayout(3, 80, KvFormat::kInt4, PageScore::kNone);
  EXPECT_EQ(dense.page_bytes(), int4.page_bytes());
  const KvPageLayout min_max = MakeKvPageLayout(3, 80, KvFormat::kInt4, PageScore::kMinMax);
  EXPECT_EQ(min_max.stats_offset(2), dense.page_bytes() + 2 * kStats);
  EXPECT_EQ(min_max.page_bytes(), dense.page_bytes() + 3 * kStats);
  const KvPageLayout int8 = MakeKvPageLayout(3, 80, KvFormat::kInt8, PageScore::kSketch);
  EXPECT_EQ(int8.codes_offset(1, 3), 5 * kPlane);
  EXPECT_EQ(int8.page_bytes(), 3 * (4 * kPlane + kBox + kGrids + 64 * 96));
}

TEST(KvPageLayout, OpenPagesAreInFullAndHaveNoSketch) {
  for (const PageScore score : {PageScore::kNone, PageScore::kMinMax, PageScore::kSketch}) {
    const KvPageLayout open = MakeKvPageLayout(3, 80, KvFormat::kInt8, score).open();
    EXPECT_EQ(open.format, KvFormat::kBFloat16);
    EXPECT_EQ(open.score, score == PageScore::kMinMax ? PageScore::kMinMax : PageScore::kNone);
    EXPECT_EQ(open.sketch_bytes(), 0);
  }
  EXPECT_EQ(MakeKvPageLayout(3, 80, KvFormat::kFloat32, PageScore::kNone).open().format,
            KvFormat::kFloat32);
}

// A valid POD of one row, to be spoiled.
class ValidateOps : public testing::Test {
 protected:
  ValidateOps() {
    std::byte* page = reinterpret_cast<std::byte*>(storage_);
    batch_ = {ints_, ints_, ints_, ints_, &chunk_, ints_, 4, 4, 1, 4, 2};
    decode_.batch = batch_;
    decode_.q = storage_;
    decode_.output = storage_;
    decode_.retrieval = {page, page, ints_, 4,
                         MakeKvPageLayout(1, 64, KvFormat::kBFloat16, PageScore::kMinMax)};
    decode_.streaming = {
        page, ints_, page, 128,
        256,  2,     5,    MakeKvPageLayout(1, 64, KvFormat::kBFloat16, PageScore::kNone)};
    decode_.lists = {ints_, ints_, 3, 2, 4};
    decode_.policy = {256, 64, 1};
    decode_.dtype = DType::kBFloat16;
    decode_.q_heads = 4;
    decode_.group = 2;
  }

  float storage_[4] = {};
  int32_t ints_[4] = {};
  PrefillChunk chunk_ = {};
  BatchView batch_{};
  AttendDecodeParams decode_{};
};

TEST_F(ValidateOps, AttendDecodeNamesWhatIsWrong) {
  EXPECT_EQ(Validate(decode_).message(), "");
  const auto expect = [&](const char* text, auto spoil) {
    AttendDecodeParams params = decode_;
    spoil(params);
    EXPECT_THAT(Validate(params).message(), HasSubstr(text));
  };
  expect("5 query heads", [](auto& p) { p.q_heads = 5; });
  expect("group is 0", [](auto& p) { p.group = 0; });
  expect("int32", [](auto& p) { p.dtype = DType::kInt32; });
  expect("cache format", [](auto& p) { p.dtype = DType::kFloat32; });
  expect("ring_pages is 4", [](auto& p) { p.streaming.ring_pages = 4; });
  expect("sink_pages is 1", [](auto& p) { p.streaming.sink_pages = 1; });
  expect("local_tokens is 0", [](auto& p) { p.streaming.local_tokens = 0; });
  expect("capacity is 5", [](auto& p) { p.lists.capacity = 5; });
  expect("slot_lists is 2", [](auto& p) { p.lists.slot_lists = 2; });
  expect("token budget is 100", [](auto& p) { p.policy.token_budget = 100; });
  expect("q is null", [](auto& p) { p.q = nullptr; });
  expect("max_rows is 0", [](auto& p) { p.batch.max_rows = 0; });
  expect("head_dim is 300", [](auto& p) { p.retrieval.layout.head_dim = 300; });
}

TEST_F(ValidateOps, BoxedPagesServeBFloat16AndNeedChunkPages) {
  decode_.retrieval.layout.format = KvFormat::kInt4;
  EXPECT_EQ(Validate(decode_).message(), "");
  AttendPrefillParams prefill{};
  prefill.batch = batch_;
  prefill.q = prefill.output = storage_;
  prefill.retrieval = decode_.retrieval;
  prefill.streaming = decode_.streaming;
  prefill.dtype = DType::kBFloat16;
  prefill.q_heads = 4;
  prefill.group = 2;
  EXPECT_THAT(Validate(prefill).message(), HasSubstr("retrieval.chunk_pages is null"));
  prefill.retrieval.chunk_pages = prefill.retrieval.open;
  EXPECT_EQ(Validate(prefill).message(), "");
  decode_.streaming.layout.format = KvFormat::kInt4;
  EXPECT_THAT(Validate(decode_).message(), HasSubstr("streaming pages are boxed"));
  decode_.streaming.layout.format = KvFormat::kBFloat16;
  decode_.dtype = DType::kFloat32;
  EXPECT_THAT(Validate(decode_).message(), HasSubstr("does not fit float32"));
}

TEST_F(ValidateOps, LaneWithoutHeadsNeedsNoPages) {
  decode_.retrieval = {nullptr, nullptr, nullptr, 0,
                       MakeKvPageLayout(0, 64, KvFormat::kBFloat16, PageScore::kMinMax)};
  decode_.lists = {};
  decode_.q_heads = 2;
  EXPECT_EQ(Validate(decode_).message(), "");
}

TEST(ValidateFillNormal, NamesWhatItRefuses) {
  float data[4];
  FillNormalParams params{
      .data = data, .dtype = DType::kFloat32, .count = 4, .seed = 1, .first = 1, .deviation = 1.0f};
  EXPECT_EQ(Validate(params).message(), "fill_normal: first is 1, must be even");
  params.first = 0;
  params.deviation = -1.0f;
  EXPECT_THAT(Validate(params).message(), HasSubstr("deviation is -1"));
  params.deviation = 0.0f;
  EXPECT_EQ(Validate(params).message(), "");
}

TEST(MakeBackend, NamesTheDevicesItKnows) {
  EXPECT_THAT(MakeBackend("tpu", {}).status().message(), HasSubstr("'tpu'"));
  const Result<std::unique_ptr<Backend>> ref = MakeBackend("ref", {});
  ASSERT_TRUE(ref.ok());
  EXPECT_STREQ((*ref)->name(), "ref");
  EXPECT_TRUE((*ref)->SupportsActivations(DType::kFloat32).ok());
  EXPECT_THAT((*ref)->SupportsActivations(DType::kFloat16).message(), HasSubstr("float16"));
}

}  // namespace
}  // namespace lserve
