// Shapes: their head plans; random weights that are the same on every backend; random tokens that
// make the cache that an append makes.
#include "model/shapes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/llama_runner.h"
#include "model/testing/golden.h"
#include "model/testing/random_model.h"

namespace lserve {
namespace {

TEST(Shapes, HalfOfTheHeadsRetrieveUnevenly) {
  for (const std::string& name : ShapeNames()) {
    SCOPED_TRACE(name);
    const ModelShape shape = FindShape(name).value();
    const auto layers = static_cast<size_t>(shape.config.num_layers);
    ASSERT_EQ(shape.gates.size(), layers);
    const HeadPlan plan = HeadPlan::FromGates(shape.gates, 0.5);
    EXPECT_EQ(plan.kv_heads(), shape.config.num_kv_heads);
    EXPECT_EQ(plan.total_retrieval_heads(), shape.config.num_layers * plan.kv_heads() / 2);
    const std::vector<int32_t>& heads = plan.retrieval_heads();
    EXPECT_EQ(std::count(heads.begin(), heads.end(), 0), 1);
    EXPECT_EQ(heads[layers / 2], 0);
    EXPECT_GE(4 * *std::max_element(heads.begin(), heads.end()), 3 * plan.kv_heads());
  }
  // docs/benchmarks.md names them.
  EXPECT_EQ(HeadPlan::FromGates(FindShape("llama-3-8b").value().gates, 0.5).retrieval_heads(),
            (std::vector<int32_t>{6, 3, 6, 6, 4, 7, 8, 4, 2, 1, 7, 6, 3, 6, 3, 2,
                                  0, 4, 1, 4, 5, 5, 2, 6, 1, 8, 3, 3, 1, 3, 7, 1}));
  EXPECT_EQ(FindShape("llama-9").status().code(), StatusCode::kInvalidArgument);
}

// A runner of the tiny shape.
struct Device {
  std::string backend;
  DType dtype = DType::kBFloat16;
  KvFormat format = KvFormat::kBFloat16;
  PageScore score = PageScore::kMinMax;
  int32_t token_budget = 128;
};

class Instance {
 public:
  explicit Instance(const Device& device, uint64_t seed = kShapeSeed) {
    backend_ = MakeBackend(device.backend, BackendOptions{1}).value();
    const ModelShape shape = FindShape("tiny").value();
    const auto weights =
        ModelWeights::Random(shape.config, seed, device.dtype, *backend_, nullptr).value();
    AttentionMode mode;
    mode.name = "lserve";
    mode.plan = HeadPlan::FromGates(shape.gates, 0.5);
    mode.sink_tokens = 16;
    mode.local_tokens = 48;
    mode.score = device.score;
    mode.kv_format = device.format;
    mode.policy = {.token_budget = device.token_budget, .unit_tokens = 16, .reuse_interval = 1};
    RunnerOptions options;
    options.max_model_len = 1024;
    options.max_num_seqs = 3;
    options.max_batched_tokens = 512;
    runner_ = LlamaRunner::Make(*backend_, weights, mode, options).value();
  }

  LlamaRunner& runner() { return *runner_; }

  // Logits of a prompt's last token, then of four tokens decoded after it.
  std::vector<float> Logits(const std::vector<int32_t>& prompt) {
    const int32_t slot = runner_->OpenSlot(prompt, SlotSampling{}).value();
    const auto size = static_cast<int64_t>(prompt.size());
    CHECK_OK(runner_->Reserve(slot, size));
    StepInput input;
    input.chunks.push_back({.slot = slot, .first_position = 0, .tokens = prompt});
    std::vector<float> logits =
        runner_->StepLogits(input, std::vector<int32_t>{static_cast<int32_t>(size - 1)}).value();
    Decode(slot, size, 4, &logits);
    return logits;
  }

  // Logits of `count` tokens decoded behind `tokens` random ones, which came in chunks.
  std::vector<float> LogitsBehindRandom(int64_t tokens, int64_t chunk_tokens, int64_t count) {
    const int32_t slot =
        runner_->OpenSlot(std::vector<int32_t>(static_cast<size_t>(tokens)), SlotSampling{})
            .value();
    CHECK_OK(runner_->AppendRandom(slot, tokens, 5, chunk_tokens));
    std::vector<float> logits;
    Decode(slot, tokens, count, &logits);
    return logits;
  }

 private:
  void Decode(int32_t slot, int64_t first, int64_t count, std::vector<float>* logits) {
    for (int64_t position = first; position < first + count; ++position) {
      CHECK_OK(runner_->Reserve(slot, position + 1));
      StepInput input;
      input.decode.push_back(
          {.slot = slot, .position = position, .token = static_cast<int32_t>(position % 1000)});
      const std::vector<float> row = runner_->StepLogits(input, std::vector<int32_t>{0}).value();
      logits->insert(logits->end(), row.begin(), row.end());
    }
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LlamaRunner> runner_;
};

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want) {
  for (const float logit : got) {
    ASSERT_TRUE(std::isfinite(logit));
  }
  const testing::LogitsError error =
      testing::CompareLogits(got, want, FindShape("tiny").value().config.vocab_size);
  EXPECT_LT(error.relative, 2e-2);
  EXPECT_EQ(error.clear_differs, 0);
}

// The backends that there are on this machine, `ref` left out.
std::vector<std::string> OtherBackends() {
  std::vector<std::string> names = {"cpu"};
  if (MakeBackend("cuda", BackendOptions{}).ok()) {
    names.emplace_back("cuda");
  }
  return names;
}

TEST(RandomWeights, AreTheSameOnEveryBackend) {
  const std::vector<int32_t> prompt = testing::RandomTokens(100, 1003, 2);
  const std::vector<float> want = Instance({"ref"}).Logits(prompt);
  for (const std::string& backend : OtherBackends()) {
    SCOPED_TRACE(backend);
    ExpectClose(Instance({backend}).Logits(prompt), want);
  }
  ExpectClose(Instance({"ref", DType::kFloat32}).Logits(prompt), want);
  EXPECT_NE(Instance({"ref"}, kShapeSeed + 1).Logits(prompt), want);
}

// A random context is the same however it is cut into chunks, token by token included.
TEST(RandomTokens, ChunksDoNotShow) {
  for (const auto& [format, score] :
       std::vector<std::pair<KvFormat, PageScore>>{{KvFormat::kBFloat16, PageScore::kMinMax},
                                                   {KvFormat::kInt8, PageScore::kMinMax},
                                                   {KvFormat::kInt4, PageScore::kSketch}}) {
    Instance cpu({"cpu", DType::kBFloat16, format, score});
    const std::vector<float> want = cpu.LogitsBehindRandom(190, 1, 4);  // the third page closes
    EXPECT_EQ(cpu.LogitsBehindRandom(190, 512, 4), want);
    EXPECT_EQ(cpu.LogitsBehindRandom(190, 100, 4), want);
  }
}

TEST(RandomTokens, MakeTheSameCacheOnEveryBackend) {
  // All of it is read, and on a CPU a selection as well. Random units score so much alike that a
  // GPU, whose sums round in another order, may rightly keep others, which shows in the logits.
  for (const int32_t budget : {1024, 128}) {
    for (const KvFormat format : {KvFormat::kBFloat16, KvFormat::kInt4}) {
      const auto logits = [&](const std::string& backend) {
        return Instance({backend, DType::kBFloat16, format, PageScore::kSketch, budget})
            .LogitsBehindRandom(391, 512, 2);
      };
      const std::vector<float> want = logits("ref");
      for (const std::string& backend : OtherBackends()) {
        SCOPED_TRACE(backend);
        if (budget == 1024 || backend == "cpu") {
          ExpectClose(logits(backend), want);
        }
      }
    }
  }
}

TEST(RandomTokens, GoOnBehindWhatIsThere) {
  Instance ref({"ref"});
  LlamaRunner& runner = ref.runner();
  const int32_t slot = runner.OpenSlot({}, SlotSampling{}).value();
  EXPECT_TRUE(runner.AppendRandom(slot, 200, 1, 128).ok());
  EXPECT_TRUE(runner.AppendRandom(slot, 824, 1, 512).ok());
  EXPECT_EQ(runner.KvBytes(slot), runner.cache().config().SequenceBytes(1024));
}

}  // namespace
}  // namespace lserve
