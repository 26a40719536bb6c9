#include "sparse/head_plan.h"

#include <gtest/gtest.h>

#include "base/file.h"

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
    const std::string path = ::testing::TempDir() + "/gates.tsv";
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

}  // namespace
}  // namespace lserve
