// Calibration of the bundled model, end to end but small.
#include "eval/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

#include "base/file.h"
#include "base/testing/test_path.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m";

// A window so short that a document of 800 tokens shows what a head reads beyond it.
Settings SmallWindow() {
  Settings settings;
  settings.device = "cpu";
  settings.sink_tokens = 64;
  settings.local_tokens = 64;
  return settings;
}

Result<Calibration> RunSmall(const std::string& path, bool resume,
                             const CalibrationOptions& options) {
  ASSIGN_OR_RETURN(LoadedModel model,
                   LoadedModel::Open(kModel, SmallWindow(), PlanChoice::kAllRetrieval));
  RETURN_IF_ERROR(model.LoadWeights(nullptr));
  ASSIGN_OR_RETURN(PartialResults partial, PartialResults::Open(path, resume, options.ToJson()));
  return Calibrate(std::move(model), options, partial, [&](double done, const std::string&) {
    EXPECT_GE(done, 0.0);
    EXPECT_LE(done, 1.0);
  });
}

std::vector<std::string> SortedLines(const std::string& path) {
  std::istringstream text(ReadFile(path).value());
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) {
    lines.push_back(line);
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

class CalibrationTest : public ::testing::Test {
 protected:
  void TearDown() override { PartialResults::Discard(path_); }

  const CalibrationOptions options_{.samples = 1, .length = 800, .seed = 5};
  const std::string path_ = TestPath("calibrated.tsv");
};

// Layer 5's heads 1 and 2 carry the retrieval; an interruption anywhere changes nothing.
TEST_F(CalibrationTest, FindsTheRetrievalHeadsAndGoesOnWhereItStopped) {
  const Calibration whole = RunSmall(path_, false, options_).value();
  const OrderedJson& heads = whole.report["heads"];
  ASSERT_EQ(heads.size(), 24u);
  std::set<int> last;
  for (const size_t i : {0u, 1u}) {
    EXPECT_EQ(heads[i]["layer"], 5);
    last.insert(heads[i]["head"].get<int>());
  }
  EXPECT_EQ(last, (std::set<int>{1, 2}));
  ASSERT_EQ(whole.gates.size(), 6u);
  EXPECT_GT(std::min(whole.gates[5][1], whole.gates[5][2]), 0.5);

  const OrderedJson& curve = whole.report["curve"];
  ASSERT_EQ(curve.size(), 25u);
  EXPECT_GT(curve[24]["rise"].get<double>(), 0.5) << "without retrieval heads nothing is found";
  const auto largest = static_cast<size_t>(std::lround(24 * whole.largest_share));
  EXPECT_LE(curve[largest]["rise"].get<double>(), options_.max_loss_increase);
  int64_t exact = 0;
  for (const OrderedJson& point : curve) {
    if (point.contains("exact_loss")) {
      ++exact;
      EXPECT_NEAR(point["exact_loss"].get<double>(), point["loss"].get<double>(), 0.3);
    }
  }
  EXPECT_GE(exact, 2);

  const std::string file = path_ + ".rows.partial";
  const std::string complete = ReadFile(file).value();
  const std::vector<std::string> lines = SortedLines(file);
  for (const double kept : {0.4, 0.97}) {  // in the ranking, in the curve; mid-line
    const auto bytes = static_cast<size_t>(kept * static_cast<double>(complete.size()));
    ASSERT_TRUE(WriteFileAtomically(file, complete.substr(0, bytes)).ok());
    const Calibration resumed = RunSmall(path_, true, options_).value();
    EXPECT_EQ(resumed.report, whole.report);
    EXPECT_EQ(resumed.gates, whole.gates);
    EXPECT_EQ(SortedLines(file), lines);
  }
}

TEST_F(CalibrationTest, PartialResultsOfOtherSettingsAreRefused) {
  ASSERT_TRUE(WriteFileAtomically(path_ + ".rows.partial", "{\"samples\":2}\n").ok());
  EXPECT_THAT(RunSmall(path_, true, options_).status().message(), HasSubstr("other settings"));
}

TEST(CalibrationOptionsTest, NamesWhatIsOutOfRange) {
  const ModelConfig config = LoadModelConfig(kModel).value();
  const auto message = [&](const CalibrationOptions& options) {
    return Validate(options, config).message();
  };
  EXPECT_THAT(message({.samples = 0}), HasSubstr("--samples 0"));
  EXPECT_THAT(message({.length = 100}), HasSubstr("--length 100"));
  EXPECT_THAT(message({.length = 65537}), HasSubstr("--length 65537 is outside 512 to 65536"));
  EXPECT_THAT(message({.max_loss_increase = -1}), HasSubstr("--max-loss-increase -1"));
  EXPECT_THAT(message({.max_loss_increase = NAN}), HasSubstr("nan"));
  EXPECT_TRUE(Validate(CalibrationOptions{}, config).ok());
}

}  // namespace
}  // namespace lserve
