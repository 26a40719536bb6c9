#include "eval/partial_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/testing/test_path.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

class PartialResultsTest : public ::testing::Test {
 protected:
  PartialResultsTest() { PartialResults::Discard(path_); }
  ~PartialResultsTest() override { PartialResults::Discard(path_); }

  const std::string path_ = TestPath("results.json");
  const std::string file_ = path_ + ".rows.partial";
  const OrderedJson header_ = {{"seed", 1}};
};

TEST_F(PartialResultsTest, ResumesWhatWasWritten) {
  {
    PartialResults partial = PartialResults::Open(path_, false, header_).value();
    partial.Write("dense", "a", "one\ntwo");
    partial.Write("lserve", "a", Json::array({1, 2}));
    EXPECT_EQ(*partial.Find("dense", "a"), "one\ntwo");
  }
  const PartialResults partial = PartialResults::Open(path_, true, header_).value();
  EXPECT_EQ(*partial.Find("dense", "a"), "one\ntwo");
  EXPECT_EQ(*partial.Find("lserve", "a"), Json::array({1, 2}));
  EXPECT_EQ(partial.Find("lserve", "b"), nullptr);
}

TEST_F(PartialResultsTest, ALineThatWasCutIsDoneAgain) {
  {
    PartialResults partial = PartialResults::Open(path_, false, header_).value();
    partial.Write("dense", "a", "one");
    partial.Write("dense", "b", "two");
  }
  const std::string text = ReadFile(file_).value();
  ASSERT_TRUE(WriteFileAtomically(file_, text.substr(0, text.size() - 5)).ok());
  const PartialResults partial = PartialResults::Open(path_, true, header_).value();
  EXPECT_NE(partial.Find("dense", "a"), nullptr);
  EXPECT_EQ(partial.Find("dense", "b"), nullptr);
}

TEST_F(PartialResultsTest, StartsAfreshWithoutResume) {
  PartialResults::Open(path_, false, header_).value().Write("dense", "a", "one");
  const PartialResults partial = PartialResults::Open(path_, false, header_).value();
  EXPECT_EQ(partial.Find("dense", "a"), nullptr);
}

TEST_F(PartialResultsTest, RefusesResultsOfOtherSettings) {
  PartialResults::Open(path_, false, header_).value().Write("dense", "a", "one");
  const Result<PartialResults> other = PartialResults::Open(path_, true, {{"seed", 2}});
  EXPECT_THAT(other.status().message(), HasSubstr("other settings"));
  // The refusal leaves them as they were.
  EXPECT_NE(PartialResults::Open(path_, true, header_).value().Find("dense", "a"), nullptr);
}

TEST_F(PartialResultsTest, RefusesAFileThatIsNone) {
  ASSERT_TRUE(WriteFileAtomically(file_, "{\"seed\":1}\n{\"run\":3}\n").ok());
  EXPECT_THAT(PartialResults::Open(path_, true, header_).status().message(),
              HasSubstr("no list of partial results"));
}

TEST_F(PartialResultsTest, KeepsNothingForStandardOutput) {
  PartialResults partial = PartialResults::Open("-", true, header_).value();
  partial.Write("dense", "a", "one");
  EXPECT_FALSE(FileExists("-.rows.partial"));
}

}  // namespace
}  // namespace lserve
