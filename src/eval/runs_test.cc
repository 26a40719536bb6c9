#include "eval/runs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

Settings Modes(const std::string& attention) {
  Settings settings;
  settings.attention = attention;
  settings.token_budget = 2048;
  return settings;
}

TEST(PlanRunsTest, OneRunAModeWithItsOwnSettings) {
  const std::vector<EvalRun> runs = PlanRuns(Modes("dense,lserve"), {}).value();
  ASSERT_THAT(runs, SizeIs(2));
  EXPECT_EQ(runs[0].name, "dense");
  EXPECT_TRUE(runs[0].dense());
  EXPECT_EQ(runs[0].settings.attention, "dense");
  EXPECT_EQ(runs[1].name, "lserve");
  EXPECT_EQ(runs[1].settings.token_budget, 2048);
}

TEST(PlanRunsTest, BudgetsRepeatTheSparseModeOnly) {
  const std::vector<EvalRun> runs = PlanRuns(Modes("lserve,dense"), {256, 512}).value();
  ASSERT_THAT(runs, SizeIs(3));
  EXPECT_EQ(runs[0].name, "lserve@256");
  EXPECT_EQ(runs[0].settings.token_budget, 256);
  EXPECT_EQ(runs[1].name, "lserve@512");
  EXPECT_EQ(runs[2].name, "dense");
}

TEST(PlanRunsTest, ErrorsNameWhatIsWrong) {
  const auto error = [](const std::string& attention, const std::vector<int64_t>& budgets) {
    return PlanRuns(Modes(attention), budgets).status().message();
  };
  EXPECT_THAT(error("dense,quest", {}), HasSubstr("quest"));
  EXPECT_THAT(error("dense,lserve", {512, 512}), HasSubstr("--budgets names 512 twice"));
  EXPECT_THAT(error("dense,lserve", {100}), HasSubstr("--token-budget 100"));
  EXPECT_THAT(error("dense", {512}), HasSubstr("--attention is dense"));
}

}  // namespace
}  // namespace lserve
