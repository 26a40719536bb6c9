// Logits against the goldens of Hugging Face transformers, float32 (tests/goldens/README.md).
#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint/safetensors.h"
#include "model/llama_runner.h"
#include "model/testing/golden.h"

namespace lserve {
namespace {

const std::string kSource = LSERVE_SOURCE_DIR;

struct Device {
  std::string backend;
  DType dtype;
};

// The model, every head retrieving, ready to return the logits of many rows.
struct Instance {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<LlamaRunner> runner;
};

Result<Instance> Load(const std::string& folder, const Device& device, int32_t logit_rows) {
  Instance instance;
  ASSIGN_OR_RETURN(instance.backend, MakeBackend(device.backend, BackendOptions{}));
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(folder));
  const HeadPlan plan = HeadPlan::AllRetrieval(static_cast<int32_t>(config.num_layers),
                                               static_cast<int32_t>(config.num_kv_heads));
  ASSIGN_OR_RETURN(instance.weights, ModelWeights::Load(folder, config, plan, device.dtype,
                                                        *instance.backend, nullptr));
  RunnerOptions options;
  options.max_num_seqs = 1;
  options.max_batched_tokens = 1024;
  options.max_logit_rows = logit_rows;
  ASSIGN_OR_RETURN(instance.runner, LlamaRunner::Make(*instance.backend, instance.weights,
                                                      AttentionMode::Dense(plan), options));
  return instance;
}

// Logits of the rows at the given positions, prefilled in chunks of 1024.
Result<std::vector<float>> Logits(LlamaRunner& runner, const std::vector<int32_t>& tokens,
                                  const std::vector<int64_t>& positions) {
  const SlotSampling greedy{};
  ASSIGN_OR_RETURN(const int32_t slot, runner.OpenSlot(tokens, greedy));
  std::vector<float> logits;
  const auto total = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < total; first += 1024) {
    const int64_t end = std::min<int64_t>(total, first + 1024);
    std::vector<int32_t> rows;
    for (const int64_t position : positions) {
      if (position >= first && position < end) {
        rows.push_back(static_cast<int32_t>(position - first));
      }
    }
    RETURN_IF_ERROR(runner.Reserve(slot, end));
    StepInput input;
    input.chunks.push_back(
        PromptChunk{.slot = slot,
                    .first_position = first,
                    .tokens = std::span(tokens).subspan(static_cast<size_t>(first),
                                                        static_cast<size_t>(end - first))});
    ASSIGN_OR_RETURN(const std::vector<float> part, runner.StepLogits(input, rows));
    logits.insert(logits.end(), part.begin(), part.end());
  }
  runner.CloseSlot(slot);
  return logits;
}

void ExpectClose(const testing::LogitsError& error, const Device& device) {
  ::testing::Test::RecordProperty("relative_error", fmt::format("{:.3e}", error.relative));
  std::printf("relative error %.3e, argmax differs in %ld of %ld rows (%ld of %ld clear ones)\n",
              error.relative, static_cast<long>(error.argmax_differs),
              static_cast<long>(error.rows), static_cast<long>(error.clear_differs),
              static_cast<long>(error.clear_rows));
  if (device.dtype == DType::kFloat32) {
    EXPECT_LT(error.relative, 1e-3);
    EXPECT_EQ(error.argmax_differs, 0);
  } else {
    EXPECT_LT(error.relative, 2e-2);
    EXPECT_EQ(error.clear_differs, 0);
  }
}

class TinyGoldenTest : public ::testing::TestWithParam<std::tuple<Device, std::string>> {};

TEST_P(TinyGoldenTest, LogitsMatchTransformers) {
  const auto& [device, name] = GetParam();
  const std::string folder = kSource + "/tests/goldens/" + name;
  Result<Checkpoint> golden = Checkpoint::OpenFile(folder + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  const std::vector<int64_t> ids = golden->ReadIntegers("ids").value();
  const std::vector<float> want = golden->ReadFloats("logits").value();
  const std::vector<int32_t> tokens(ids.begin(), ids.end());
  std::vector<int64_t> positions;
  for (int64_t position = 0; position < std::ssize(tokens); position += 16) {
    positions.push_back(position);
  }
  Result<Instance> instance = Load(folder, device, static_cast<int32_t>(positions.size()));
  ASSERT_TRUE(instance.ok()) << instance.status().message();
  const Result<std::vector<float>> got = Logits(*instance->runner, tokens, positions);
  ASSERT_TRUE(got.ok()) << got.status().message();
  ExpectClose(testing::CompareLogits(*got, want, instance->weights->config.vocab_size), device);
}

class NeedleGoldenTest : public ::testing::TestWithParam<std::tuple<Device, int>> {};

TEST_P(NeedleGoldenTest, LogitsMatchTransformers) {
  const auto& [device, index] = GetParam();
  Result<Checkpoint> golden =
      Checkpoint::OpenFile(kSource + "/tests/goldens/needle-goldens.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  const std::vector<int64_t> ids = golden->ReadIntegers(fmt::format("ids_{}", index)).value();
  const std::vector<float> want =
      golden->ReadFloats(fmt::format("logits_last16_{}", index)).value();
  const std::vector<int32_t> tokens(ids.begin(), ids.end());
  std::vector<int64_t> positions(16);
  std::iota(positions.begin(), positions.end(), std::ssize(tokens) - 16);
  Result<Instance> instance = Load(kSource + "/models/needle-7m", device, 16);
  ASSERT_TRUE(instance.ok()) << instance.status().message();
  const Result<std::vector<float>> got = Logits(*instance->runner, tokens, positions);
  ASSERT_TRUE(got.ok()) << got.status().message();
  ExpectClose(testing::CompareLogits(*got, want, instance->weights->config.vocab_size), device);
}

const Device kDevices[] = {
    {"ref", DType::kFloat32}, {"ref", DType::kBFloat16}, {"cpu", DType::kBFloat16}};

std::string DeviceName(const Device& device) {
  return device.backend + "_" + DTypeName(device.dtype);
}

INSTANTIATE_TEST_SUITE_P(Families, TinyGoldenTest,
                         ::testing::Combine(::testing::ValuesIn(kDevices),
                                            ::testing::Values("tiny-llama2", "tiny-llama31",
                                                              "tiny-mistral", "tiny-qwen2",
                                                              "tiny-qwen3")),
                         [](const auto& test) {
                           std::string name =
                               DeviceName(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

INSTANTIATE_TEST_SUITE_P(Prompts, NeedleGoldenTest,
                         ::testing::Combine(::testing::ValuesIn(kDevices),
                                            ::testing::Values(0, 1, 2)),
                         [](const auto& test) {
                           return DeviceName(std::get<0>(test.param)) + "_prompt" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace lserve
