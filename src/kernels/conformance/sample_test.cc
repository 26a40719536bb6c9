// Sample against `ref`, and what both must hold.
#include <cmath>
#include <limits>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

constexpr int32_t kSlots = 8;

struct Sampled {
  std::vector<int32_t> tokens, last_token, counts;
};

class Sampling : public TargetTest {
 protected:
  // One logit row a slot, slot s at position `position`; logits [kSlots, vocabulary].
  Sampled Sample(Backend& backend, const std::vector<float>& logits,
                 const std::vector<SlotSampling>& settings, int32_t position = 100) const {
    const auto vocabulary = static_cast<int32_t>(logits.size() / kSlots);
    Batch batch(backend, kSlots, kSlots);
    std::vector<BatchRow> rows;
    std::vector<int32_t> logit_rows;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      rows.push_back({kSlots - 1 - slot, position});  // row r is slot kSlots - 1 - r
      logit_rows.push_back(kSlots - 1 - slot);        // so logit row i is slot i
    }
    batch.Set(rows, {}, logit_rows);
    std::vector<int32_t> counts(logits.size(), 0);
    std::vector<uint8_t> seen(logits.size(), 0);
    for (size_t i = 0; i < logits.size(); ++i) {
      counts[i] = i % 5 == 0 ? static_cast<int32_t>(i % 3) : 0;
      seen[i] = i % 7 == 0 ? 1 : 0;
    }
    DeviceArray<float> device_logits(backend, (kSlots + kRowSlack) * int64_t{vocabulary});
    device_logits.Upload(logits);
    const DeviceArray<SlotSampling> device_settings(backend, settings);
    const DeviceArray<int32_t> device_counts(backend, counts);
    const DeviceArray<uint8_t> device_seen(backend, seen);
    DeviceArray<int32_t> last_token(backend, kSlots), sampled(backend, kSlots);
    SampleParams params{};
    params.batch = batch.view();
    params.logits = device_logits.data();
    params.sampling = device_settings.data();
    params.token_counts = device_counts.data();
    params.prompt_seen = device_seen.data();
    params.last_token = last_token.data();
    params.sampled = sampled.data();
    params.vocab_size = vocabulary;
    const std::unique_ptr<Stream> stream = backend.MakeStream();
    const DeviceArray<uint8_t> workspace(backend, backend.ops().sample.workspace_bytes(params));
    params.workspace = workspace.data();
    EXPECT_EQ(Validate(params).message(), "");
    backend.ops().sample.run(*stream, params);
    EXPECT_TRUE(stream->Synchronize().ok());
    return {sampled.Download(), last_token.Download(), device_counts.Download()};
  }

  static SlotSampling Greedy() { return {0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 1}; }
};

INSTANTIATE_TEST_SUITE_P(Backends, Sampling, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

TEST_P(Sampling, DrawsMatchRef) {
  std::mt19937_64 generator(1);
  int32_t draws = 0;
  int32_t differing = 0;
  for (const int32_t vocabulary : {1, 7, 64, 1001}) {
    for (uint64_t round = 0; round < 20; ++round) {
      const std::vector<float> logits = NormalVector(int64_t{kSlots} * vocabulary, round, 2.5f);
      std::vector<SlotSampling> settings;
      for (int32_t slot = 0; slot < kSlots; ++slot) {
        SlotSampling s = Greedy();
        s.seed = generator();
        s.temperature = slot == 0 ? 0.0f : 0.25f * static_cast<float>(slot);
        s.top_k = slot % 3 == 1 ? 5 : 0;
        s.top_p = slot % 2 == 1 ? 0.8f : 1.0f;
        s.min_p = slot == 4 || slot == 5 ? 0.1f : 0.0f;
        if (slot >= 5) {
          s.penalties = 1;
          s.repetition_penalty = 1.3f;
          s.presence_penalty = 0.5f;
          s.frequency_penalty = -0.25f;
        }
        settings.push_back(s);
      }
      const Sampled want = Sample(*ref_, logits, settings);
      const Sampled got = Sample(*backend_, logits, settings);
      EXPECT_EQ(got.tokens[0], want.tokens[0]) << "greedy";
      for (size_t slot = 0; slot < kSlots; ++slot) {
        ++draws;
        differing += got.tokens[slot] == want.tokens[slot] ? 0 : 1;
        EXPECT_EQ(got.last_token[slot], got.tokens[slot]);
      }
      if (got.tokens == want.tokens) {
        EXPECT_EQ(got.counts, want.counts);
      }
    }
  }
  // A draw may fall on the other side of a rounded sum.
  EXPECT_LE(differing, draws / 200);
}

TEST_P(Sampling, GreedyTakesTheLowestIdOfEqualLogits) {
  constexpr int32_t kVocabulary = 100;
  std::vector<float> logits(kSlots * kVocabulary, -1.0f);
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    for (const int32_t token : {17 + slot, 40, 99}) {
      logits[static_cast<size_t>(slot * kVocabulary + token)] = 3.0f;
    }
  }
  const Sampled sampled = Sample(*backend_, logits, std::vector<SlotSampling>(kSlots, Greedy()));
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(sampled.tokens[static_cast<size_t>(slot)], 17 + slot);
  }
}

TEST_P(Sampling, NanCountsAsMinusInfinity) {
  constexpr int32_t kVocabulary = 33;
  std::vector<float> logits(kSlots * kVocabulary, std::numeric_limits<float>::quiet_NaN());
  for (int32_t slot = 2; slot < kSlots; ++slot) {
    logits[static_cast<size_t>(slot * kVocabulary + 20 + slot)] = -1e30f;
  }
  std::vector<SlotSampling> settings(kSlots, Greedy());
  for (const size_t slot : {1u, 4u, 5u}) {
    settings[slot].temperature = 0.7f;
    settings[slot].top_p = 0.9f;
  }
  const Sampled sampled = Sample(*backend_, logits, settings);
  EXPECT_EQ(sampled.tokens[0], 0);
  EXPECT_EQ(sampled.tokens[1], 0);
  for (int32_t slot = 2; slot < kSlots; ++slot) {
    EXPECT_EQ(sampled.tokens[static_cast<size_t>(slot)], 20 + slot);
  }
}

// The frequencies of draws are the softmax of the logits.
TEST_P(Sampling, DrawsFollowTheDistribution) {
  constexpr int32_t kVocabulary = 4;
  constexpr float kProbabilities[kVocabulary] = {0.1f, 0.2f, 0.3f, 0.4f};
  std::vector<float> logits;
  for (int32_t i = 0; i < kSlots * kVocabulary; ++i) {
    logits.push_back(std::log(kProbabilities[i % kVocabulary]));
  }
  int32_t hits[kVocabulary] = {};
  constexpr int32_t kRounds = 250;
  for (int32_t round = 0; round < kRounds; ++round) {
    std::vector<SlotSampling> settings(kSlots, Greedy());
    for (size_t slot = 0; slot < kSlots; ++slot) {
      settings[slot].temperature = 1.0f;
      settings[slot].seed = slot;
    }
    for (const int32_t token : Sample(*backend_, logits, settings, round).tokens) {
      ++hits[token];
    }
  }
  for (int32_t token = 0; token < kVocabulary; ++token) {
    const double expected = static_cast<double>(kProbabilities[token]) * kSlots * kRounds;
    EXPECT_NEAR(hits[token], expected, 4.5 * std::sqrt(expected)) << "token " << token;
  }
}

}  // namespace
}  // namespace lserve::conformance
