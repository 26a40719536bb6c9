// What a runner tells of its page selection (Runner::Selection), and what changes it: the reuse of
// lists, the audit, another policy. A random 4-layer model with retrieval heads in every layer.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "model/llama_runner.h"
#include "model/testing/random_model.h"

namespace lserve {
namespace {

using testing::RandomModel;
using testing::RandomTokens;
using testing::WriteRandomModel;

constexpr int64_t kPrompt = 403;
constexpr int64_t kGenerated = 24;

class SelectionFigures : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = MakeBackend(GetParam(), BackendOptions{2});
    if (!backend.ok()) {
      GTEST_SKIP() << backend.status().message();
    }
    backend_ = std::move(backend).value();
  }

  std::unique_ptr<LlamaRunner> MakeRunner(const SelectionPolicy& policy, double audit_rate = 0) {
    const ModelConfig config = LoadModelConfig(folder_).value();
    const HeadPlan plan = HeadPlan::FromGates(
        ReadHeadGates(folder_ + "/full_attention_heads.tsv", 4, 2).value(), 0.5);
    const AttentionMode mode{.name = "lserve",
                             .plan = plan,
                             .sink_tokens = 16,
                             .local_tokens = 48,
                             .score = PageScore::kSketch,
                             .policy = policy};
    const auto weights =
        ModelWeights::Load(folder_, config, plan, DType::kBFloat16, *backend_, nullptr).value();
    RunnerOptions options;
    options.max_model_len = 1024;
    options.max_num_seqs = 2;
    options.max_batched_tokens = 1024;
    options.audit_rate = audit_rate;
    return LlamaRunner::Make(*backend_, weights, mode, options).value();
  }

  // The greedy answer to the prompt.
  std::vector<int32_t> Generate(LlamaRunner& runner) {
    constexpr SlotSampling kGreedy{};
    const int32_t slot = runner.OpenSlot(prompt_, kGreedy).value();
    CHECK_OK(runner.Reserve(slot, kPrompt + kGenerated));
    StepInput prefill;
    prefill.chunks.push_back(
        PromptChunk{.slot = slot, .first_position = 0, .tokens = prompt_, .sample = true});
    std::vector<int32_t> tokens = {runner.Step(prefill).value()[0].token};
    for (int64_t i = 0; i < kGenerated; ++i) {
      StepInput decode;
      decode.decode.push_back(DecodeRow{.slot = slot, .position = kPrompt + i});
      tokens.push_back(runner.Step(decode).value()[0].token);
    }
    runner.CloseSlot(slot);
    return tokens;
  }

  static constexpr SelectionPolicy Policy(int32_t interval, float distance = 0.0f) {
    return {.token_budget = 128,
            .unit_tokens = 16,
            .reuse_interval = interval,
            .reuse_distance = distance};
  }

  // Lists made in an answer under a policy, which reads 24 rows times 4 heads of them.
  int64_t ListsMade(const SelectionPolicy& policy) {
    const auto runner = MakeRunner(policy);
    Generate(*runner);
    const SelectionStats stats = runner->Selection().value();
    EXPECT_EQ(stats.uses, kGenerated * 4);
    EXPECT_TRUE(stats.layers.empty());
    return stats.made;
  }

  const std::string folder_ = WriteRandomModel(RandomModel{});
  const std::vector<int32_t> prompt_ = RandomTokens(kPrompt, 97, 5);
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, SelectionFigures, ::testing::Values("ref", "cpu", "cuda"),
                         [](const auto& test) { return std::string(test.param) + "_sketch"; });

TEST_P(SelectionFigures, CountTheListsThatWereMade) {
  EXPECT_EQ(ListsMade(Policy(1)), kGenerated * 4);
  EXPECT_EQ(ListsMade(Policy(5)), 5 * 4);  // generated tokens 0, 5, 10, 15, 20
  // A list lives until its query moves: every query does a little, none by a thousand lengths.
  EXPECT_EQ(ListsMade(Policy(1 << 20, 1e-6f)), kGenerated * 4);
  EXPECT_EQ(ListsMade(Policy(1 << 20, 1e3f)), 4);
  const int64_t some = ListsMade(Policy(1 << 20, 1.0f));
  EXPECT_GT(some, 4);
  EXPECT_LT(some, kGenerated * 4);
}

TEST_P(SelectionFigures, NothingIsSelectedWithinTheBudget) {
  SelectionPolicy policy = Policy(1);
  policy.token_budget = 1024;
  const auto runner = MakeRunner(policy, 1.0);
  Generate(*runner);
  const SelectionStats stats = runner->Selection().value();
  EXPECT_EQ(stats.uses, 0);
  EXPECT_EQ(stats.made, 0);
  ASSERT_EQ(stats.layers.size(), 4u);
  for (const LayerAudit& layer : stats.layers) {
    EXPECT_EQ(layer.rows, 0);
  }
}

TEST_P(SelectionFigures, AuditSeesEveryLayerAndChangesNoToken) {
  const auto runner = MakeRunner(Policy(1), 1.0);
  EXPECT_EQ(Generate(*runner), Generate(*MakeRunner(Policy(1))));
  const SelectionStats stats = runner->Selection().value();
  ASSERT_EQ(stats.layers.size(), 4u);
  for (size_t i = 0; i < stats.layers.size(); ++i) {
    const LayerAudit& layer = stats.layers[i];
    EXPECT_EQ(layer.layer, static_cast<int32_t>(i));
    EXPECT_EQ(layer.rows, kGenerated);
    EXPECT_GT(layer.captured_least, 0.0);
    EXPECT_LE(layer.captured_least, layer.captured_sum / kGenerated);
    EXPECT_LT(layer.captured_sum, kGenerated);
    EXPECT_GT(layer.error_sum, 0.0);
    EXPECT_GE(layer.error_most, layer.error_sum / kGenerated);
  }
}

// The larger the budget, the more the selection captures, up to nearly all of it.
TEST_P(SelectionFigures, AuditFollowsTheBudget) {
  double before = 0.0;
  for (const int32_t budget : {112, 192, 400}) {
    SelectionPolicy policy = Policy(1);
    policy.token_budget = budget;
    const auto runner = MakeRunner(policy, 1.0);
    Generate(*runner);
    double captured = 0.0;
    double error = 0.0;
    const SelectionStats stats = runner->Selection().value();
    for (const LayerAudit& layer : stats.layers) {
      captured += layer.captured_sum / static_cast<double>(4 * layer.rows);
      error += layer.error_sum / static_cast<double>(4 * layer.rows);
    }
    EXPECT_GT(captured, before) << budget;
    before = captured;
    if (budget == 400) {  // 25 to 27 of 26 to 27 units
      EXPECT_GT(captured, 0.98);
      EXPECT_LT(error, 0.05);
    }
  }
}

TEST_P(SelectionFigures, AuditRateIsAShareOfTheSteps) {
  const auto runner = MakeRunner(Policy(1), 0.5);
  Generate(*runner);
  Generate(*runner);
  const SelectionStats stats = runner->Selection().value();
  for (const LayerAudit& layer : stats.layers) {
    EXPECT_GT(layer.rows, kGenerated / 2);
    EXPECT_LT(layer.rows, 2 * kGenerated - kGenerated / 2);
  }
}

// A runner whose policy is replaced answers as one that was made with it.
TEST_P(SelectionFigures, SetPolicyEqualsAFreshRunner) {
  const auto runner = MakeRunner(Policy(1));
  Generate(*runner);
  for (const SelectionPolicy& policy :
       {SelectionPolicy{256, 64, 1}, SelectionPolicy{112, 16, 3}, Policy(16, 0.5f)}) {
    CHECK_OK(runner->SetPolicy(policy));
    EXPECT_EQ(Generate(*runner), Generate(*MakeRunner(policy)));
  }
  EXPECT_EQ(runner->SetPolicy({100, 16, 1}).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lserve
