// Which head plan a model is opened with, and which window comes with it.
#include "engine/loaded_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/testing/test_path.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m";

class LoadedModelPlan : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    std::string gates;
    for (int layer = 0; layer < 6; ++layer) {
      gates += layer == 2 ? "1\t1\t1\t1\n" : "0\t0\t0\t0\n";
    }
    Write("full_attention_heads.tsv", gates);
    Write("config.json", R"({"sink_size": 64, "recent_size": 512})");
    settings_.device = "ref";
    settings_.streaming_share = 20.0 / 24;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const char* name, const std::string& text) const {
    CHECK_OK(WriteFileAtomically(JoinPath(folder_, name), text));
  }
  Result<LoadedModel> Open(PlanChoice choice = PlanChoice::kSettings) const {
    return LoadedModel::Open(kModel, settings_, choice);
  }

  Settings settings_;
  const std::string folder_ = TestPath("plan_folder");
};

TEST_F(LoadedModelPlan, AFolderBringsItsWindow) {
  settings_.head_plan = folder_;
  const LoadedModel model = Open().value();
  EXPECT_THAT(model.plan.retrieval_heads(), ::testing::ElementsAre(0, 0, 4, 0, 0, 0));
  EXPECT_EQ(model.plan_source, JoinPath(folder_, "full_attention_heads.tsv"));
  const AttentionMode mode = model.Mode("lserve").value();
  EXPECT_EQ(mode.sink_tokens, 64);
  EXPECT_EQ(mode.local_tokens, 512);
  EXPECT_EQ(model.settings.ToJson()["local_tokens"], 512) << "results name the window that ran";
}

TEST_F(LoadedModelPlan, TheUsersWindowGoesFirstAndAFileHasNone) {
  settings_.head_plan = folder_;
  settings_.local_tokens = 100;
  EXPECT_EQ(Open().value().settings.sink_tokens, 64);
  EXPECT_EQ(Open().value().settings.local_tokens, 100);
  settings_.head_plan = JoinPath(folder_, "full_attention_heads.tsv");
  settings_.local_tokens = kWindowOfPlan;
  EXPECT_EQ(Open().value().settings.sink_tokens, 128);
  EXPECT_EQ(Open().value().settings.local_tokens, 256);
}

TEST_F(LoadedModelPlan, TheDeviceSaysBelowWhatContextsAreReadWhole) {
  EXPECT_EQ(Open().value().Mode("lserve").value().policy.dense_tokens, 0);  // on the CPU
  settings_.decode_dense_tokens = 300;
  const LoadedModel model = Open().value();
  EXPECT_EQ(model.Mode("lserve").value().policy.dense_tokens, 300);
  EXPECT_EQ(model.Mode("dense").value().policy.dense_tokens, 0);
}

TEST_F(LoadedModelPlan, APlanOfAnotherModelIsRefused) {
  settings_.head_plan = folder_;
  Write("full_attention_heads.tsv", "0\t0\t0\t0\n");
  EXPECT_THAT(Open().status().message(), HasSubstr("1 lines of gates, the model has 6 layers"));
  Write("full_attention_heads.tsv", "0\t0\n");
  EXPECT_THAT(Open().status().message(), HasSubstr("line 1 has 2 gates, the model has 4 KV heads"));
  const LoadedModel model = Open(PlanChoice::kAllRetrieval).value();
  EXPECT_EQ(model.plan.total_retrieval_heads(), 24);
  EXPECT_TRUE(model.plan_source.empty());
}

}  // namespace
}  // namespace lserve
