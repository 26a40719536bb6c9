// How a runner is sized on a device with memory of its own: the reference backend, said to be one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/memory_report.h"
#include "model/model_bytes.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

// Refuses what goes beyond its memory, and knows what is in use.
class SmallDevice : public Backend {
 public:
  explicit SmallDevice(int64_t memory_bytes) : facts_(host_->facts()) {
    facts_.own_memory = true;
    facts_.memory_bytes = facts_.free_bytes = memory_bytes;
  }

  const char* name() const override { return host_->name(); }
  const DeviceFacts& facts() const override { return facts_; }
  const Ops& ops() const override { return host_->ops(); }
  int64_t FreeBytes() const override { return facts_.memory_bytes - *used_; }
  Status SupportsActivations(DType dtype) const override {
    return host_->SupportsActivations(dtype);
  }
  Result<Buffer> Allocate(int64_t bytes) override {
    if (bytes > FreeBytes()) {
      return ResourceExhausted("{} bytes of {}", bytes, FreeBytes());
    }
    ASSIGN_OR_RETURN(Buffer memory, host_->Allocate(bytes));
    *used_ += bytes;
    std::byte* const data = memory.data();
    auto owned = std::make_shared<Buffer>(std::move(memory));
    return Buffer(data, bytes, [owned = std::move(owned), used = used_](std::byte*, int64_t size) {
      *used -= size;
    });
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) override {
    host_->CopyToDevice(device, host, bytes, stream);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) override {
    host_->CopyToHost(host, device, bytes, stream);
  }
  void Zero(void* device, int64_t bytes, Stream& stream) override {
    host_->Zero(device, bytes, stream);
  }
  std::unique_ptr<Stream> MakeStream() override { return host_->MakeStream(); }
  int64_t PackedBytes(const LinearWeight& weight, DType activations,
                      bool fused_silu) const override {
    return host_->PackedBytes(weight, activations, fused_silu);
  }
  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu, Buffer memory) override {
    return host_->PackLinear(weight, activations, fused_silu, std::move(memory));
  }

 private:
  std::unique_ptr<Backend> host_ = MakeBackend("ref", BackendOptions{}).value();
  DeviceFacts facts_;
  std::shared_ptr<int64_t> used_ = std::make_shared<int64_t>(0);
};

constexpr int64_t kMiB = int64_t{1} << 20;

class DeviceMemory : public ::testing::Test {
 protected:
  // The tiny shape on a device of so much memory, without its weights.
  LoadedModel Model(int64_t memory_bytes) const {
    LoadedModel model = LoadedModel::OpenShape("tiny", settings_).value();
    model.backend = std::make_unique<SmallDevice>(memory_bytes);
    return model;
  }
  LoadedModel LoadedOn(int64_t memory_bytes) const {
    LoadedModel model = Model(memory_bytes);
    CHECK_OK(model.LoadWeights(nullptr));
    return model;
  }
  static int64_t Used(const LoadedModel& model) {
    return model.backend->facts().memory_bytes - model.backend->FreeBytes();
  }

  Settings settings_ = [] {
    Settings settings;
    settings.device = "ref";
    settings.max_model_len = 4096;
    settings.max_num_seqs = 3;
    settings.max_num_batched_tokens = 128;
    settings.gpu_memory_utilization = 0.8;
    return settings;
  }();
};

TEST_F(DeviceMemory, PagesTakeWhatUtilizationLeaves) {
  const LoadedModel model = LoadedOn(40 * kMiB);
  const auto runner = model.MakeRunner("dense").value();
  const CacheConfig& cache = runner->cache().config();
  EXPECT_LT(cache.retrieval_pages, 3 * TwoLaneCache::PagesFor(4096));
  EXPECT_LE(Used(model), 32 * kMiB);
  EXPECT_GT(Used(model), 32 * kMiB - 2 * cache.RetrievalPageBytes());

  const MemoryReport report = ReportMemory(model, *runner);
  EXPECT_EQ(report.pool_pages, cache.retrieval_pages);
  EXPECT_NEAR(
      static_cast<double>(report.weight_bytes + report.activation_bytes + report.cache_bytes),
      static_cast<double>(Used(model)), 0.02 * 32 * kMiB);
  EXPECT_EQ(report.tokens, (cache.retrieval_pages + 3) * kPageTokens);
  EXPECT_LE(3 * report.tokens_per_sequence, report.tokens);
  EXPECT_EQ(report.context_tokens, std::min<int64_t>(4096, (cache.retrieval_pages + 1) * 64));
  EXPECT_EQ(report.streaming_heads, 0);
  EXPECT_GT(report.retrieval_heads, 0);
  const std::vector<std::string> lines = report.Lines();
  EXPECT_THAT(lines.at(1),
              HasSubstr(fmt::format("{:.0f} bytes a token in the retrieval lane ({} ",
                                    report.retrieval_bytes_per_token, report.retrieval_heads)));
  EXPECT_THAT(lines.at(2),
              HasSubstr(fmt::format("a context of {} tokens fits", report.context_tokens)));
  EXPECT_THAT(lines.at(2), HasSubstr(std::to_string(report.tokens) + " tokens in all"));
}

TEST_F(DeviceMemory, ModesShareIt) {
  const LoadedModel model = LoadedOn(60 * kMiB);
  const auto first = model.MakeRunner("dense", 2).value();
  const auto second = model.MakeRunner("lserve", 1).value();
  EXPECT_LE(Used(model), 48 * kMiB);
  EXPECT_GT(Used(model), 47 * kMiB);
  EXPECT_GT(2 * second->cache().config().retrieval_pages, first->limits().kv_pages);
}

TEST_F(DeviceMemory, FullContextsAreEnough) {
  settings_.max_model_len = 500;
  const LoadedModel model = LoadedOn(100 * kMiB);
  EXPECT_EQ(model.MakeRunner("dense").value()->limits().kv_pages, 3 * 7);
}

TEST_F(DeviceMemory, AContextThatDoesNotFitSaysWhatDoes) {
  settings_.max_model_len = 1 << 20;
  const LoadedModel model = LoadedOn(60 * kMiB);
  const Status status = model.MakeRunner("dense").status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("a sequence of 1048576 tokens takes"));
  const size_t at = status.message().find(" tokens fit");
  ASSERT_NE(at, std::string::npos) << status.message();
  const size_t number = status.message().rfind(' ', at - 1) + 1;
  settings_.max_model_len = std::stoll(status.message().substr(number, at - number));
  EXPECT_GT(settings_.max_model_len, 1000);
  // With a shorter context other memory is left, so at least so much fits.
  EXPECT_TRUE(LoadedOn(60 * kMiB).MakeRunner("dense").ok());
}

TEST_F(DeviceMemory, WeightsThatDoNotFitAreRefusedBeforeTheyAreMade) {
  LoadedModel model = Model(3 * kMiB);
  const Status status = model.LoadWeights(nullptr);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  const int64_t bytes = WeightBytes(model.config, DType::kBFloat16, *model.backend);
  EXPECT_THAT(status.message(),
              HasSubstr(fmt::format("the weights of tiny take {} bytes, {} of", bytes, 3 * kMiB)));
  EXPECT_EQ(Used(model), 0);

  EXPECT_EQ(LoadedOn(bytes + kMiB).MakeRunner("dense").status().code(),
            StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace lserve
