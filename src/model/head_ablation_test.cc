// HeadAblation against LlamaRunner, and against itself run another way. Random 4-layer models.
#include "model/head_ablation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "model/llama_runner.h"
#include "model/log_softmax.h"
#include "model/testing/random_model.h"

namespace lserve {
namespace {

using testing::RandomModel;
using testing::RandomTokens;
using testing::ReferenceAttention;
using testing::ReferenceLogits;
using testing::WriteRandomModel;

constexpr int32_t kHeads = 8;  // 4 layers of 2

struct Device {
  std::string backend;
  DType dtype;
};

HeadSet Streaming(std::initializer_list<size_t> heads) {
  HeadSet set(kHeads, false);
  for (const size_t head : heads) {
    set[head] = true;
  }
  return set;
}

ScoredDocument RandomDocument(int64_t tokens, std::vector<int32_t> targets) {
  return {RandomTokens(tokens, 97, 11), std::move(targets)};
}

// A sum over several pieces of logit rows, the last token among them.
ScoredDocument LongDocument() {
  std::vector<int32_t> targets = {1, 64, 65};
  for (int32_t i = 102; i < 403; i += 2) {
    targets.push_back(i);
  }
  return RandomDocument(403, targets);
}

class HeadAblationTest : public ::testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    auto backend = MakeBackend(GetParam().backend, BackendOptions{2});
    if (!backend.ok()) {
      GTEST_SKIP() << backend.status().message();
    }
    backend_ = std::move(backend).value();
    config_ = LoadModelConfig(folder_).value();
    weights_ =
        ModelWeights::Load(folder_, config_, plan_, GetParam().dtype, *backend_, nullptr).value();
  }

  std::vector<std::vector<double>> Losses(const ScoredDocument& document, const HeadSet& base,
                                          const std::vector<HeadSet>& variants,
                                          int32_t max_variants = 3, int32_t sink = 64,
                                          int32_t local = 65) {
    const AblationOptions options{.max_tokens = 450,
                                  .max_variants = max_variants,
                                  .sink_tokens = sink,
                                  .local_tokens = local};
    const auto ablation = HeadAblation::Make(*backend_, weights_, options).value();
    return ablation->Losses(document, base, variants).value();
  }

  const std::string folder_ = WriteRandomModel(RandomModel{});
  const HeadPlan plan_ = HeadPlan::AllRetrieval(4, 2);
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ModelWeights> weights_;
};

TEST_P(HeadAblationTest, NothingAblatedEqualsTheDenseRunnerBitForBit) {
  const ScoredDocument document = LongDocument();
  RunnerOptions options;
  options.max_num_seqs = 1;
  options.max_batched_tokens = 1024;
  options.max_logit_rows = 256;
  const auto runner =
      LlamaRunner::Make(*backend_, weights_, AttentionMode::Dense(plan_), options).value();
  const int32_t slot = runner->OpenSlot(document.tokens, SlotSampling{}).value();
  ASSERT_TRUE(runner->Reserve(slot, 403).ok());
  StepInput input;
  input.chunks.push_back(PromptChunk{.slot = slot, .tokens = document.tokens});
  std::vector<int32_t> rows;
  for (const int32_t target : document.targets) {
    rows.push_back(target - 1);
  }
  const std::vector<float> logits = runner->StepLogits(input, rows).value();
  std::vector<double> want;
  for (size_t i = 0; i < rows.size(); ++i) {
    want.push_back(
        NegativeLogLikelihood(std::span(logits).subspan(i * 97, 97),
                              document.tokens[static_cast<size_t>(document.targets[i])]));
  }
  EXPECT_EQ(Losses(document, Streaming({}), {}), std::vector<std::vector<double>>{want});
}

TEST_P(HeadAblationTest, VariantsAloneTogetherAndFromScratchAreTheSame) {
  const ScoredDocument document = LongDocument();
  const HeadSet base = Streaming({1, 6});
  const std::vector<HeadSet> variants = {Streaming({1, 6, 7}), Streaming({1, 4, 6}),
                                         Streaming({0, 1, 6}), Streaming({1, 6}),
                                         Streaming({6}),       Streaming({1, 2, 3, 4, 6})};
  std::vector<std::vector<double>> scratch = Losses(document, base, {}, 1);
  for (const HeadSet& variant : variants) {
    scratch.push_back(Losses(document, variant, {}, 1)[0]);
  }
  EXPECT_EQ(Losses(document, base, variants, 7), scratch);
  EXPECT_EQ(Losses(document, base, variants, 2), scratch);
  EXPECT_EQ(Losses(document, base, variants, 1), scratch);
  EXPECT_EQ(scratch[4], scratch[0]);  // the variant that is the base
  for (const size_t other : {1, 2, 3, 5, 6}) {
    EXPECT_NE(scratch[other], scratch[0]) << other;
  }
}

TEST_P(HeadAblationTest, EarlierDocumentsLeaveNothing) {
  const AblationOptions options{
      .max_tokens = 300, .max_variants = 2, .sink_tokens = 64, .local_tokens = 65};
  const auto ablation = HeadAblation::Make(*backend_, weights_, options).value();
  const ScoredDocument document = RandomDocument(201, {150, 199});
  const std::vector<HeadSet> variants = {Streaming({0, 3}), Streaming({5})};
  const auto want = ablation->Losses(document, Streaming({}), variants).value();
  const ScoredDocument longer{RandomTokens(300, 97, 12), {290, 299}};
  EXPECT_NE(ablation->Losses(longer, Streaming({3}), variants).value(), want);
  EXPECT_EQ(ablation->Losses(document, Streaming({}), variants).value(), want);
}

TEST_P(HeadAblationTest, DocumentWithinSinkAndWindowLosesNothing) {
  const ScoredDocument document = RandomDocument(193, {3, 100, 192});
  const auto losses =
      Losses(document, Streaming({}), {Streaming({0, 1, 2, 3, 4, 5, 6, 7})}, 2, 64, 129);
  EXPECT_EQ(losses[1], losses[0]);
}

// Where blocks end with the exact window, the written-out reference agrees: a sink of one block,
// the query that begins a query block, and a window that begins with a block. The last layer's head
// streams, so that no other query's window matters.
TEST_P(HeadAblationTest, MatchesTheWrittenOutReferenceWhereBlocksAreExact) {
  const ScoredDocument document = RandomDocument(258, {257});
  ReferenceAttention reference;
  reference.streams = {{false, false}, {false, false}, {false, false}, {true, false}};
  reference.sink_tokens = 64;
  reference.local_tokens = 65;
  const std::vector<int32_t> prefix(document.tokens.begin(), document.tokens.begin() + 257);
  const std::vector<float> logits = ReferenceLogits(folder_, prefix, reference);
  const double want =
      NegativeLogLikelihood(std::span(logits).subspan(256 * 97, 97), document.tokens[257]);
  const auto got = Losses(document, Streaming({}), {Streaming({6})});
  const double tolerance = GetParam().dtype == DType::kFloat32 ? 1e-4 : 3e-2;
  EXPECT_NEAR(got[1][0], want, tolerance);
  EXPECT_GT(std::abs(got[0][0] - got[1][0]), 3 * tolerance)
      << "the head must matter for this to test it";
}

TEST_P(HeadAblationTest, BadInputIsNamed) {
  const auto make = [&](const AblationOptions& options) {
    return HeadAblation::Make(*backend_, weights_, options).status().message();
  };
  EXPECT_NE(make({.max_tokens = 5000}).find("5000 tokens are outside 1 to 4096"),
            std::string::npos);
  EXPECT_NE(make({.max_tokens = 0}).find("0 tokens"), std::string::npos);
  EXPECT_NE(make({.max_tokens = 4096, .max_variants = 33}).find("33 variants"), std::string::npos);
  EXPECT_NE(make({.max_tokens = 64, .local_tokens = 0}).find("0 local tokens"), std::string::npos);
  const auto ablation = HeadAblation::Make(*backend_, weights_, {.max_tokens = 64}).value();
  const auto losses = [&](const ScoredDocument& document) {
    return ablation->Losses(document, Streaming({}), {}).status().message();
  };
  EXPECT_NE(losses(RandomDocument(70, {65})).find("65 is outside 1 to 64"), std::string::npos);
  EXPECT_NE(losses(RandomDocument(70, {})).find("no target"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Backends, HeadAblationTest,
                         ::testing::Values(Device{"ref", DType::kFloat32},
                                           Device{"cpu", DType::kBFloat16},
                                           Device{"cuda", DType::kBFloat16}),
                         [](const auto& test) {
                           return test.param.backend + "_" + DTypeName(test.param.dtype);
                         });

}  // namespace
}  // namespace lserve
