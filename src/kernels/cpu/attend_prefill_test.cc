// Prefill attention, every variant that this machine runs, against attention written out plainly.
#include <gtest/gtest.h>

#include "kernels/cpu/attend_prefill_kernel.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_test_util.h"

namespace lserve::cpu {
namespace {

using testing::CacheShape;
using testing::TestCache;
using testing::TestChunk;

AttendPrefillParams MakeParams(const TestCache& cache, const BatchView& batch) {
  AttendPrefillParams params{};
  params.batch = batch;
  params.retrieval = cache.retrieval();
  params.streaming = cache.streaming();
  params.dtype = DType::kBFloat16;
  params.q_heads = cache.shape().q_heads();
  params.group = cache.shape().group;
  return params;
}

std::vector<uint16_t> OutputOf(AttendPrefillParams params, const PrefillVariant& variant,
                               const std::vector<uint16_t>& q, int32_t threads) {
  testing::Workspace workspace(AttendPrefillWorkspace(params));
  std::vector<uint16_t> output(q.size(), 0xFFFF);
  params.q = q.data();
  params.output = output.data();
  params.workspace = workspace.data();
  testing::RunTeam(threads, [&](Team& team) { RunAttendPrefill(params, variant, team); });
  return output;
}

class AttendPrefillVariants : public ::testing::TestWithParam<PrefillVariant> {
 protected:
  void SetUp() override {
    if (!GetParam().supports()) {
      GTEST_SKIP() << "this CPU does not run " << GetParam().name;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(All, AttendPrefillVariants, ::testing::ValuesIn(PrefillVariants()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Checks rows of every chunk, all heads, against the plain sum over the tokens that they see.
void ExpectPlainAttention(const TestCache& cache, const AttendPrefillParams& params,
                          const std::vector<uint16_t>& q, const std::vector<uint16_t>& output,
                          int32_t row_step) {
  const int32_t head_dim = cache.shape().head_dim;
  for (int32_t row = 0; row < params.batch.max_rows; row += row_step) {
    const int32_t position = params.batch.row_position[row];
    for (int32_t head = 0; head < params.q_heads; ++head) {
      const bool streams = head / params.group >= cache.shape().retrieval_heads;
      const size_t offset = static_cast<size_t>((row * params.q_heads + head) * head_dim);
      const std::vector<double> want =
          cache.Attend(q.data() + offset, params.batch.row_slot[row], head, position,
                       [&](int32_t token) { return !streams || cache.Streams(position, token); });
      ASSERT_LT(testing::RelativeError(output.data() + offset, want), 0.02)
          << "row " << row << " at position " << position << ", query head " << head;
    }
  }
}

TEST_P(AttendPrefillVariants, EqualsPlainAttention) {
  struct Case {
    CacheShape shape;
    std::vector<TestChunk> chunks;
  };
  const std::vector<Case> cases = {
      {{1, 1, 64, 2, 128, 256}, {{0, 0, 1}, {1, 300, 200}, {2, 511, 130}}},
      {{2, 0, 80, 3, 128, 256}, {{0, 0, 193}}},
      {{0, 2, 96, 1, 100, 70}, {{0, 200, 257}, {1, 64, 1}}},
      {{1, 2, 128, 5, 0, 1}, {{0, 60, 77}}},
      {{1, 1, 32, 8, 64, 65}, {{0, 129, 63}, {1, 0, 128}}},
      {{1, 1, 24, 1, 1, 200}, {{0, 250, 180}}},
  };
  for (const auto& [shape, chunks] : cases) {
    std::vector<int32_t> lengths;
    for (const TestChunk& chunk : chunks) {
      lengths.push_back(chunk.first + chunk.rows);
    }
    TestCache cache(shape, lengths, 7);
    const AttendPrefillParams params = MakeParams(cache, cache.PrefillBatch(chunks));
    const std::vector<uint16_t> q =
        cache.RandomBf16(int64_t{params.batch.max_rows} * params.q_heads * shape.head_dim);
    const std::vector<uint16_t> output = OutputOf(params, GetParam(), q, 2);
    ExpectPlainAttention(cache, params, q, output, 7);
  }
}

// A row's bits do not depend on where chunks begin and end, nor on the number of threads.
TEST_P(AttendPrefillVariants, ChunksAndThreadsChangeNothing) {
  const CacheShape shape{1, 1, 64, 2, 100, 130};
  constexpr int32_t kTokens = 700;
  const int32_t row_size = shape.q_heads() * shape.head_dim;
  TestCache whole(shape, {kTokens}, 3);
  const std::vector<uint16_t> q = whole.RandomBf16(int64_t{kTokens} * row_size);
  const std::vector<uint16_t> want =
      OutputOf(MakeParams(whole, whole.PrefillBatch({{0, 0, kTokens}})), GetParam(), q, 1);
  const std::vector<int32_t> cuts = {0, 1, 130, 200, 256, 449, 450, kTokens};
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    TestCache part(shape, {cuts[i + 1]}, 3);
    // The same tokens: a shorter cache draws the same numbers only up to its length.
    part.CopyTokens(whole);
    const int32_t rows = cuts[i + 1] - cuts[i];
    const std::vector<uint16_t> part_q(q.begin() + cuts[i] * row_size,
                                       q.begin() + cuts[i + 1] * row_size);
    const std::vector<uint16_t> got =
        OutputOf(MakeParams(part, part.PrefillBatch({{0, cuts[i], rows}})), GetParam(), part_q, 3);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), want.begin() + cuts[i] * row_size))
        << "positions " << cuts[i] << " to " << cuts[i + 1];
  }
}

TEST_P(AttendPrefillVariants, ReadsTheBlocksThatAListNames) {
  const CacheShape shape{2, 1, 64, 1, 64, 64};
  TestCache cache(shape, {600}, 5);
  AttendPrefillParams params = MakeParams(cache, cache.PrefillBatch({{0, 260, 340}}));
  // Query blocks 2, 3 and 4, two retrieval heads each.
  const std::vector<std::vector<int32_t>> lists = {{0, 4, 5}, {1, 2, 3, 4, 5},
                                                   {6, 7},    {0, 2, 4, 5, 6, 7},
                                                   {3, 8, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}};
  std::vector<int32_t> offsets = {0};
  std::vector<int32_t> ids;
  for (const std::vector<int32_t>& list : lists) {
    ids.insert(ids.end(), list.begin(), list.end());
    offsets.push_back(static_cast<int32_t>(ids.size()));
  }
  params.block_offsets = offsets.data();
  params.block_ids = ids.data();
  const std::vector<uint16_t> q = cache.RandomBf16(340 * 3 * 64);
  const std::vector<uint16_t> output = OutputOf(params, GetParam(), q, 2);
  for (int32_t row = 0; row < 340; row += 3) {
    const int32_t position = 260 + row;
    for (int32_t head = 0; head < 3; ++head) {
      const auto sees = [&](int32_t token) {
        if (head == 2) {
          return cache.Streams(position, token);
        }
        const auto& list = lists[static_cast<size_t>((position / 128 - 2) * 2 + head)];
        return std::find(list.begin(), list.end(), token / 64) != list.end();
      };
      const size_t offset = static_cast<size_t>(row * 3 + head) * 64;
      const std::vector<double> want = cache.Attend(q.data() + offset, 0, head, position, sees);
      ASSERT_LT(testing::RelativeError(output.data() + offset, want), 0.02)
          << "position " << position << ", head " << head;
    }
  }
}

}  // namespace
}  // namespace lserve::cpu
