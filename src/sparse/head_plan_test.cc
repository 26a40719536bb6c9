#include "sparse/head_plan.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/testing/test_path.h"

namespace lserve {
namespace {

// Which (layer, head) stream, as a string of '.' (retrieval) and 's', layers separated by '/'.
std::string Picture(const HeadPlan& plan) {
  std::string picture;
  for (int32_t layer = 0; layer < plan.layers(); ++layer) {
    std::string row(static_cast<size_t>(plan.kv_heads()), 's');
    for (int32_t i = 0; i < plan.retrieval_heads(layer); ++i) {
      row[static_cast<size_t>(plan.order(layer)[static_cast<size_t>(i)])] = '.';
    }
    picture += (layer > 0 ? "/" : "") + row;
  }
  return picture;
}

TEST(HeadPlan, LowestGatesStreamOverAllLayers) {
  const HeadGates gates = {{0.9, 0.1, 0.5}, {0.2, 0.3, 1.0}};
  EXPECT_EQ(Picture(HeadPlan::FromGates(gates, 0.0)), ".../...");
  EXPECT_EQ(Picture(HeadPlan::FromGates(gates, 0.5)), ".s./ss.");
  EXPECT_EQ(Picture(HeadPlan::FromGates(gates, 1.0)), "sss/sss");
}

TEST(HeadPlan, RoundsTheShareToTheNearestHead) {
  const HeadGates gates = {{0.1, 0.2, 0.3}};
  EXPECT_EQ(HeadPlan::FromGates(gates, 0.49).total_retrieval_heads(), 2);  // 1.47 + .5 -> 1
  EXPECT_EQ(HeadPlan::FromGates(gates, 0.5).total_retrieval_heads(), 1);   // 1.5 + .5 -> 2
}

// Classification must not differ between processes: no random tie breaking.
TEST(HeadPlan, EqualGatesStreamFromTheLowestLayerAndHead) {
  const HeadGates gates(3, std::vector<double>(4, 0.25));
  EXPECT_EQ(Picture(HeadPlan::FromGates(gates, 0.5)), "ssss/ss../....");
}

TEST(HeadPlan, OrderPutsRetrievalFirstAndKeepsTheirOrder) {
  const HeadGates gates = {{0.0, 1.0, 0.0, 1.0}};
  const HeadPlan plan = HeadPlan::FromGates(gates, 0.5);
  EXPECT_EQ(plan.order(0), (std::vector<int32_t>{1, 3, 0, 2}));
  EXPECT_EQ(plan.retrieval_heads(0), 2);
}

class HeadGatesFile : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) {
    const std::string path = TestPath("gates.tsv");
    EXPECT_TRUE(WriteFileAtomically(path, text).ok());
    return path;
  }
};

TEST_F(HeadGatesFile, ReadsAndClips) {
  const Result<HeadGates> gates = ReadHeadGates(Write("0.5\t1.25\n-0.5\t1e-3\r\n\n"), 2, 2);
  ASSERT_TRUE(gates.ok()) << gates.status().message();
  EXPECT_EQ(*gates, (HeadGates{{0.5, 1.0}, {0.0, 0.001}}));
}

TEST_F(HeadGatesFile, NamesWhatIsWrong) {
  const auto message = [&](const std::string& text) {
    const Result<HeadGates> gates = ReadHeadGates(Write(text), 2, 2);
    EXPECT_EQ(gates.status().code(), StatusCode::kInvalidArgument);
    return gates.status().message();
  };
  EXPECT_NE(message("0\t1\n0\t1\t0\n").find("line 2 has 3 gates"), std::string::npos);
  EXPECT_NE(message("0\t1\n").find("1 lines of gates, the model has 2 layers"), std::string::npos);
  EXPECT_NE(message("0\tx1\n0\t1\n").find("\"x1\" is not a number"), std::string::npos);
  EXPECT_NE(message("0\tnan\n0\t1\n").find("\"nan\""), std::string::npos);
  EXPECT_EQ(ReadHeadGates("/no/such/file", 2, 2).status().code(), StatusCode::kNotFound);
}

// As DuoAttention publishes them: numbers as numpy writes them, a few below 0, and much else in
// config.json.
class HeadPlanFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    Write("full_attention_heads.tsv",
          "8.593750000000000000e-01\t-9.250640869140625000e-05\n"
          "1.000000000000000000e+00\t3.398437500000000000e-01\n");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const char* name, const std::string& text) const {
    CHECK_OK(WriteFileAtomically(JoinPath(folder_, name), text));
  }

  const std::string folder_ = TestPath("published_plan");
};

TEST_F(HeadPlanFolder, GivesGatesAndWindow) {
  Write("config.json", R"({"config_name": null, "sink_size": 64, "recent_size": 512, "lr": 0.02})");
  const HeadPlanFiles files = FindHeadPlan(folder_).value();
  EXPECT_EQ(files.sink_tokens, 64);
  EXPECT_EQ(files.local_tokens, 512);
  EXPECT_EQ(ReadHeadGates(files.gates, 2, 2).value(),
            (HeadGates{{0.859375, 0.0}, {1.0, 0.33984375}}));
}

TEST_F(HeadPlanFolder, WindowIsOptionalAndAFileHasNone) {
  EXPECT_EQ(FindHeadPlan(folder_).value().sink_tokens, std::nullopt);
  Write("config.json", R"({"sink_size": 0, "recent_size": null})");
  EXPECT_EQ(FindHeadPlan(folder_).value().sink_tokens, 0);
  EXPECT_EQ(FindHeadPlan(folder_).value().local_tokens, std::nullopt);
  const std::string file = JoinPath(folder_, "full_attention_heads.tsv");
  EXPECT_EQ(FindHeadPlan(file).value().gates, file);
  EXPECT_EQ(FindHeadPlan(file).value().sink_tokens, std::nullopt);
}

TEST_F(HeadPlanFolder, NamesWhatIsWrong) {
  const auto message = [&](const std::string& config) {
    Write("config.json", config);
    return FindHeadPlan(folder_).status().message();
  };
  EXPECT_NE(message("{").find("config.json is not valid JSON"), std::string::npos);
  EXPECT_NE(message(R"({"sink_size": -1})").find("sink_size -1"), std::string::npos);
  EXPECT_NE(message(R"({"recent_size": 0})").find("recent_size 0"), std::string::npos);
  EXPECT_NE(message(R"({"recent_size": "256"})").find("recent_size \"256\""), std::string::npos);
  EXPECT_NE(message(R"({"recent_size": 1e30})").find("recent_size 1e+30"), std::string::npos);
  std::filesystem::remove(JoinPath(folder_, "full_attention_heads.tsv"));
  EXPECT_EQ(FindHeadPlan(folder_).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace lserve
