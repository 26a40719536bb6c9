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
  const std::vector<EvalRun> runs =
      PlanRuns(Modes("lserve,dense"), {.budgets = {256, 512}, .selections = {}}).value();
  ASSERT_THAT(runs, SizeIs(3));
  EXPECT_EQ(runs[0].name, "lserve@256");
  EXPECT_EQ(runs[0].settings.token_budget, 256);
  EXPECT_EQ(runs[1].name, "lserve@512");
  EXPECT_EQ(runs[2].name, "dense");
}

TEST(PlanRunsTest, SelectionsSetUnitBudgetAndReuse) {
  const Sweep sweep{.budgets = {}, .selections = {"16/512/1", "64/4096/auto:0.5"}};
  const std::vector<EvalRun> runs = PlanRuns(Modes("dense,lserve"), sweep).value();
  ASSERT_THAT(runs, SizeIs(3));
  EXPECT_EQ(runs[1].name, "lserve@16/512/1");
  EXPECT_EQ(runs[1].settings.selection_unit, 16);
  EXPECT_EQ(runs[1].settings.token_budget, 512);
  EXPECT_EQ(runs[2].settings.selection_unit, 64);
  EXPECT_EQ(runs[2].settings.reuse_interval, "auto:0.5");
  EXPECT_TRUE(SharePrefill(runs[1], runs[2]));
  EXPECT_FALSE(SharePrefill(runs[0], runs[1]));
  EvalRun other = runs[2];
  other.settings.streaming_share = 0.75;
  EXPECT_FALSE(SharePrefill(other, runs[2]));
}

TEST(PlanRunsTest, ErrorsNameWhatIsWrong) {
  const auto error = [](const std::string& attention, const Sweep& sweep) {
    return PlanRuns(Modes(attention), sweep).status().message();
  };
  const auto budgets = [](std::vector<int64_t> list) { return Sweep{std::move(list), {}}; };
  const auto selections = [](std::vector<std::string> list) { return Sweep{{}, std::move(list)}; };
  EXPECT_THAT(error("dense,quest", {}), HasSubstr("quest"));
  EXPECT_THAT(error("dense,lserve", budgets({512, 512})), HasSubstr("--budgets names 512 twice"));
  EXPECT_THAT(error("dense,lserve", budgets({100})), HasSubstr("--token-budget 100"));
  EXPECT_THAT(error("dense", budgets({512})), HasSubstr("--attention is dense"));
  for (const char* bad : {"", "16", "16/512", "x/512/1", "16/512x/1", "/512/1"}) {
    EXPECT_THAT(error("lserve", selections({bad})), HasSubstr(bad)) << bad;
  }
  EXPECT_THAT(error("lserve", selections({"24/512/1"})), HasSubstr("--selection-unit 24"));
  EXPECT_THAT(error("lserve", selections({"16/512/0"})), HasSubstr("--reuse-interval \"0\""));
  EXPECT_THAT(error("lserve", selections({"16/512/1", "16/512/1"})), HasSubstr("twice"));
  EXPECT_THAT(error("lserve", Sweep{{512}, {"16/512/1"}}), HasSubstr("give one"));
}

}  // namespace
}  // namespace lserve
