// Decode attention, every variant that this machine runs, against attention written out plainly.
#include <gtest/gtest.h>

#include "kernels/cpu/attend_decode_kernel.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_test_util.h"

namespace lserve::cpu {
namespace {

using testing::CacheShape;
using testing::TestCache;

class AttendDecodeVariants : public ::testing::TestWithParam<DecodeVariant> {
 protected:
  void SetUp() override {
    if (!GetParam().supports()) {
      GTEST_SKIP() << "this CPU does not run " << GetParam().name;
    }
  }

  static AttendDecodeParams MakeParams(TestCache& cache) {
    AttendDecodeParams params{};
    params.batch = cache.DecodeBatch();
    params.retrieval = cache.retrieval();
    params.streaming = cache.streaming();
    params.policy = {0, 64, 1};
    params.dtype = DType::kBFloat16;
    params.q_heads = cache.shape().q_heads();
    params.group = cache.shape().group;
    return params;
  }

  static std::vector<uint16_t> OutputOf(AttendDecodeParams params, const std::vector<uint16_t>& q,
                                        int32_t threads) {
    testing::Workspace workspace(AttendDecodeWorkspace(params));
    std::vector<uint16_t> output(q.size(), 0xFFFF);
    params.q = q.data();
    params.output = output.data();
    params.workspace = workspace.data();
    testing::RunTeam(threads, [&](Team& team) { RunAttendDecode(params, GetParam(), team); });
    return output;
  }

  using Sees = std::function<bool(int32_t slot, int32_t kv_head, int32_t token)>;

  // Compares all rows and heads with the plain sum over the tokens that `sees` names, in retrieval
  // heads, and over the window in streaming heads.
  static void ExpectPlainAttention(const TestCache& cache, const AttendDecodeParams& params,
                                   const std::vector<uint16_t>& q,
                                   const std::vector<uint16_t>& output, const Sees& sees) {
    const int32_t head_dim = cache.shape().head_dim;
    for (int32_t row = 0; row < cache.slots(); ++row) {
      const int32_t position = params.batch.row_position[row];
      for (int32_t head = 0; head < params.q_heads; ++head) {
        const int32_t kv_head = head / params.group;
        const size_t offset = static_cast<size_t>((row * params.q_heads + head) * head_dim);
        const std::vector<double> want =
            cache.Attend(q.data() + offset, row, head, position, [&](int32_t token) {
              return kv_head < cache.shape().retrieval_heads ? sees(row, kv_head, token)
                                                             : cache.Streams(position, token);
            });
        ASSERT_LT(testing::RelativeError(output.data() + offset, want), 0.02)
            << "row " << row << " at position " << position << ", query head " << head;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, AttendDecodeVariants, ::testing::ValuesIn(DecodeVariants()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(AttendDecodeVariants, EqualsPlainAttention) {
  const std::vector<int32_t> lengths = {1, 2, 15, 16, 17, 63, 64, 65, 129, 384, 385, 449, 1000};
  for (const CacheShape& shape :
       {CacheShape{1, 1, 64, 2, 128, 256}, CacheShape{2, 0, 80, 3, 128, 256},
        CacheShape{0, 2, 96, 1, 100, 70}, CacheShape{1, 2, 128, 5, 0, 1},
        CacheShape{1, 1, 32, 8, 64, 65}, CacheShape{1, 1, 24, 7, 1, 200}}) {
    TestCache cache(shape, lengths, 11);
    const AttendDecodeParams params = MakeParams(cache);
    const std::vector<uint16_t> q =
        cache.RandomBf16(int64_t{cache.slots()} * params.q_heads * shape.head_dim);
    const std::vector<uint16_t> output = OutputOf(params, q, 2);
    ExpectPlainAttention(cache, params, q, output, [](int32_t, int32_t, int32_t) { return true; });
    EXPECT_EQ(OutputOf(params, q, 1), output);
    EXPECT_EQ(OutputOf(params, q, 3), output);
  }
}

// Lists of every unit size, stale by up to 70 tokens: the newest units of the row are read as well,
// and none twice.
TEST_P(AttendDecodeVariants, ReadsItsListAndTheNewestUnits) {
  const CacheShape shape{2, 1, 64, 2, 128, 256};
  const std::vector<int32_t> lengths = {705, 768, 769, 833, 1000};
  TestCache cache(shape, lengths, 13);
  AttendDecodeParams params = MakeParams(cache);
  const std::vector<uint16_t> q = cache.RandomBf16(int64_t{cache.slots()} * 6 * 64);
  for (const int32_t unit : {64, 32, 16}) {
    constexpr int32_t kCapacity = 40;
    const auto lists_count = static_cast<size_t>(cache.slots() * 2);
    std::vector<int32_t> units(lists_count * kCapacity, -7);
    std::vector<int32_t> counts(lists_count);
    std::mt19937 random(17);
    std::vector<std::vector<bool>> kept(lists_count);
    for (size_t list = 0; list < lists_count; ++list) {
      const int32_t now = lengths[list / 2];
      const int32_t then = now - static_cast<int32_t>(list * 31 % 71);
      kept[list].assign(static_cast<size_t>((now - 1) / unit + 1), false);
      for (int32_t u = 0; u <= (then - 1) / unit; ++u) {
        const bool forced = u == 0 || u >= FirstForcedNewestUnit(then, unit);
        if (forced || (random() % 4 == 0 && counts[list] < kCapacity - 8)) {
          units[list * kCapacity + static_cast<size_t>(counts[list]++)] = u;
          kept[list][static_cast<size_t>(u)] = true;
        }
      }
      for (int32_t u = FirstForcedNewestUnit(now, unit); u <= (now - 1) / unit; ++u) {
        kept[list][static_cast<size_t>(u)] = true;
      }
    }
    counts[3] = -1;
    kept[3].assign(kept[3].size(), true);
    params.lists = {units.data(), counts.data(), 2, 0, kCapacity};
    params.policy = {kCapacity * unit, unit, 4};
    const std::vector<uint16_t> output = OutputOf(params, q, 2);
    ExpectPlainAttention(cache, params, q, output, [&](int32_t slot, int32_t head, int32_t token) {
      return static_cast<bool>(
          kept[static_cast<size_t>(slot * 2 + head)][static_cast<size_t>(token / unit)]);
    });
  }
}

}  // namespace
}  // namespace lserve::cpu
