#include "eval/questions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lserve {
namespace {

using ::testing::HasSubstr;

Question Expecting(Scoring scoring, std::vector<std::string> expected) {
  Question question;
  question.scoring = scoring;
  question.expected = std::move(expected);
  return question;
}

Question WithId(std::string id) {
  Question question;
  question.id = std::move(id);
  return question;
}

TEST(ScoreTest, ExactComparesEveryByte) {
  const Question question = Expecting(Scoring::kExact, {"The code is 12."});
  EXPECT_EQ(Score(question, "The code is 12."), 1.0);
  EXPECT_EQ(Score(question, "The code is 12"), 0.0);
  EXPECT_EQ(Score(question, "the code is 12."), 0.0);
}

TEST(ScoreTest, ValuesCountsWholeWordsInAnyCase) {
  const Question question = Expecting(Scoring::kValues, {"12345", "Amber Anchor"});
  EXPECT_EQ(Score(question, "It is 12345, in the amber anchor."), 1.0);
  EXPECT_EQ(Score(question, "AMBER ANCHOR"), 0.5);
  EXPECT_EQ(Score(question, "123456 and 012345 and amber anchors"), 0.0);
  EXPECT_EQ(Score(question, "123456 but also 12345"), 0.5);
  EXPECT_EQ(Score(question, ""), 0.0);
}

TEST(ScoreTest, SubstringsScoreAsRulerDoes) {
  EXPECT_EQ(Score(Expecting(Scoring::kSubstring, {"12", "Ab"}), "0123 xAB"), 1.0);
  EXPECT_EQ(Score(Expecting(Scoring::kSubstring, {"12", "Ab"}), "0123"), 0.5);
  EXPECT_EQ(Score(Expecting(Scoring::kAnySubstring, {"Paris", "paris, France"}), "in PARIS"), 1.0);
  EXPECT_EQ(Score(Expecting(Scoring::kAnySubstring, {"Paris", "Lyon"}), "in Rome"), 0.0);
}

TEST(ScoreTest, OnlyAFullScoreIsRight) {
  EXPECT_TRUE(IsRight(1.0));
  EXPECT_FALSE(IsRight(0.999));
}

TEST(QuestionSetTest, AppendMovesDocumentsAlongAndRefusesARepeatedId) {
  QuestionSet set{.documents = {"one"}, .questions = {WithId("a")}};
  const QuestionSet other{.documents = {"two"}, .questions = {WithId("b")}};
  ASSERT_TRUE(set.Append(other).ok());
  EXPECT_EQ(set.documents[set.questions[1].document], "two");
  const Status twice = set.Append(other);
  EXPECT_THAT(twice.message(), HasSubstr("\"b\""));
}

TEST(QuestionTest, WholeAnswerIsKnownOrNot) {
  Question question = Expecting(Scoring::kValues, {"a"});
  EXPECT_EQ(*question.WholeAnswer(), "a");
  question.expected = {"a", "b"};
  EXPECT_EQ(question.WholeAnswer(), nullptr);
  question.answer = "They are a and b.";
  EXPECT_EQ(*question.WholeAnswer(), "They are a and b.");
  question.turns = {"one", "two"};
  EXPECT_EQ(question.WholeAnswer(), nullptr);
}

}  // namespace
}  // namespace lserve
