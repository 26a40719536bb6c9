// Hand-computed sampling: which tokens top-k, top-p and min-p leave, and what penalties do.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "kernels/ref/operations.h"

namespace lserve::ref {
namespace {

constexpr int32_t kVocabulary = 5;

// One row, one slot.
struct Row {
  std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.25f),
                               std::log(0.05f)};
  SlotSampling settings = {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 0};
  std::vector<int32_t> counts = std::vector<int32_t>(kVocabulary, 0);
  std::vector<uint8_t> seen = std::vector<uint8_t>(kVocabulary, 0);

  int32_t Sample(uint64_t seed = 0) {
    const int32_t batch_counts[kBatchCounts] = {1, 0, 0, 1};
    const int32_t zero = 0;
    const int32_t position = 41;
    int32_t last_token = -1;
    int32_t sampled = -1;
    std::vector<float> scratch = logits;
    settings.seed = seed;
    SampleParams params{};
    params.batch = {batch_counts, &zero, &position, &zero, nullptr, &zero, 1, 1, 0, 1, 1};
    params.logits = scratch.data();
    params.sampling = &settings;
    params.token_counts = counts.data();
    params.prompt_seen = seen.data();
    params.last_token = &last_token;
    params.sampled = &sampled;
    params.vocab_size = kVocabulary;
    EXPECT_EQ(Validate(params).message(), "");
    RunSample(params);
    EXPECT_EQ(last_token, sampled);
    return sampled;
  }

  std::set<int32_t> Seen() {
    std::set<int32_t> tokens;
    for (uint64_t seed = 0; seed < 400; ++seed) {
      tokens.insert(Sample(seed));
    }
    return tokens;
  }
};

using Tokens = std::set<int32_t>;

TEST(RefSample, EverythingCanBeDrawn) { EXPECT_EQ(Row{}.Seen(), (Tokens{0, 1, 2, 3, 4})); }

TEST(RefSample, SeedAndPositionDecideTheDraw) {
  Row row;
  EXPECT_EQ(row.Sample(7), row.Sample(7));
}

TEST(RefSample, TopKKeepsTheLowerIdOfATie) {
  Row row;
  row.settings.top_k = 2;
  EXPECT_EQ(row.Seen(), (Tokens{1, 3}));
  row.logits = {1.0f, 1.0f, 2.0f, 1.0f, 1.0f};
  EXPECT_EQ(row.Seen(), (Tokens{0, 2}));
}

TEST(RefSample, TopPKeepsTheShortestPrefixThatReachesP) {
  Row row;
  row.settings.top_p = 0.3f;
  EXPECT_EQ(row.Seen(), (Tokens{1}));
  row.settings.top_p = 0.64f;  // 0.4 + 0.25 reaches it
  EXPECT_EQ(row.Seen(), (Tokens{1, 3}));
  row.settings.top_p = 0.66f;
  EXPECT_EQ(row.Seen(), (Tokens{1, 2, 3}));
  row.settings.top_p = 1e-6f;  // at least one
  EXPECT_EQ(row.Seen(), (Tokens{1}));
}

TEST(RefSample, TopPIsAShareOfWhatTopKLeft) {
  Row row;
  row.settings.top_k = 2;      // 0.4 and 0.25: shares 0.615 and 0.385
  row.settings.top_p = 0.61f;  // of everything, 0.61 would need both
  EXPECT_EQ(row.Seen(), (Tokens{1}));
}

TEST(RefSample, MinPIsRelativeToTheHighestProbability) {
  Row row;
  row.settings.min_p = 0.45f;  // 0.18 and more
  EXPECT_EQ(row.Seen(), (Tokens{1, 2, 3}));
  row.settings.min_p = 1.0f;
  EXPECT_EQ(row.Seen(), (Tokens{1}));
}

TEST(RefSample, RepetitionPenaltyShrinksPositiveAndGrowsNegativeLogits) {
  Row row;
  row.settings.temperature = 0.0f;
  row.settings.penalties = 1;
  row.settings.repetition_penalty = 2.0f;
  row.logits = {3.0f, 2.0f, 1.0f, 0.0f, -1.0f};
  row.seen[0] = 1;  // 3 becomes 1.5
  EXPECT_EQ(row.Sample(), 1);
  row.logits = {-1.5f, -2.0f, -9.0f, -9.0f, -9.0f};  // -1.5 becomes -3; token 1 was just counted
  row.counts[1] = 0;
  EXPECT_EQ(row.Sample(), 1);
}

TEST(RefSample, PresenceAndFrequencySeeGeneratedTokensOnly) {
  Row row;
  row.settings.temperature = 0.0f;
  row.settings.penalties = 1;
  row.settings.presence_penalty = 0.5f;
  row.settings.frequency_penalty = 0.25f;
  row.logits = {3.0f, 2.3f, 0.0f, 0.0f, 0.0f};
  row.seen[0] = 1;
  EXPECT_EQ(row.Sample(), 0);  // 3 - 0
  EXPECT_EQ(row.counts[0], 1);
  EXPECT_EQ(row.Sample(), 1);  // 3 - 0.5 - 0.25 < 2.3
  EXPECT_EQ(row.Sample(), 0);  // 2.25 > 2.3 - 0.75
  EXPECT_EQ(row.counts, (std::vector<int32_t>{2, 1, 0, 0, 0}));
}

TEST(RefSample, CountsStayWhenPenaltiesAreOff) {
  Row row;
  row.Sample();
  EXPECT_EQ(row.counts, std::vector<int32_t>(kVocabulary, 0));
}

}  // namespace
}  // namespace lserve::ref
