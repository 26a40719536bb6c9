#include "eval/suites.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

// What suites need of a model: tokenizer and chat template of needle-7m.
struct NeedleText {
  std::unique_ptr<Tokenizer> tokenizer;
  ChatTemplate chat_template;

  int64_t PromptTokens(const std::vector<ChatMessage>& messages) const {
    return std::ssize(tokenizer->EncodeRuns(chat_template.Render(messages, true).value()));
  }
  PromptMeasure Measure() const {
    return {.count_tokens =
                [this](std::string_view text) {
                  return static_cast<int64_t>(tokenizer->Encode(text).size());
                },
            .turn_tokens = PromptTokens({{"user", ""}}) + 4};
  }
};

const NeedleText& Needle() {
  static const auto* const needle = [] {
    const std::string folder = std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m";
    return new NeedleText{Tokenizer::Load(folder).value(), ChatTemplate::Load(folder).value()};
  }();
  return *needle;
}

QuestionSet Make(const std::string& name, const SuiteOptions& options) {
  return MakeSuite(name, options, Needle().Measure()).value();
}

class SuiteTest : public ::testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(All, SuiteTest, ::testing::ValuesIn(QuestionSuiteNames()),
                         [](const auto& suite) {
                           std::string name = suite.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(SuiteTest, ASeedGivesTheSameQuestionsAndAnotherSeedOthers) {
  const SuiteOptions options{.lengths = {2048}, .depths = 2, .samples = 2, .seed = 7};
  const QuestionSet set = Make(GetParam(), options);
  const QuestionSet again = Make(GetParam(), options);
  EXPECT_EQ(set.documents, again.documents);
  SuiteOptions other_options = options;
  other_options.seed = 8;
  const QuestionSet other = Make(GetParam(), other_options);
  ASSERT_EQ(set.questions.size(), again.questions.size());
  for (size_t i = 0; i < set.questions.size(); ++i) {
    EXPECT_EQ(set.questions[i].id, again.questions[i].id);
    EXPECT_EQ(set.questions[i].turns, again.questions[i].turns);
    EXPECT_EQ(set.questions[i].expected, again.questions[i].expected);
    EXPECT_NE(set.questions[i].expected, other.questions[i].expected);
  }
  for (size_t i = 0; i < set.documents.size(); ++i) {
    EXPECT_NE(set.documents[i], other.documents[i]);
  }
}

TEST_P(SuiteTest, PromptAndLongestAnswerFillTheLength) {
  for (const int64_t length : {kMinSuiteLength, int64_t{3000}, int64_t{8192}}) {
    const QuestionSet set =
        Make(GetParam(), {.lengths = {length}, .depths = 1, .samples = kQuestionsPerDocument});
    for (const Question& question : set.questions) {
      std::vector<ChatMessage> messages;
      for (const std::string& turn : question.turns) {
        messages.push_back(
            {"user", messages.empty() ? set.documents[question.document] + "\n\n" + turn : turn});
        messages.push_back({"assistant", ""});
      }
      messages.pop_back();
      const int64_t tokens =
          Needle().PromptTokens(messages) + std::ssize(question.turns) * question.max_answer_tokens;
      EXPECT_LE(tokens, length) << question.id;
      EXPECT_GT(tokens, length - 150) << question.id;
    }
  }
}

TEST_P(SuiteTest, ExpectedValuesStandInTheDocument) {
  const QuestionSet set = Make(GetParam(), {.lengths = {2048, 3072}, .depths = 3, .samples = 6});
  const size_t a_length = GetParam() == "niah" ? 3 * 6 : 6;
  EXPECT_THAT(set.questions, SizeIs(2 * a_length));
  std::set<std::string> ids;
  for (const Question& question : set.questions) {
    EXPECT_TRUE(ids.insert(question.id).second) << question.id;
    EXPECT_EQ(question.kind, GetParam());
    for (const std::string& value : question.expected) {
      EXPECT_THAT(set.documents[question.document], HasSubstr(value));
    }
  }
}

TEST(SuitesTest, NiahCoversItsDepths) {
  const QuestionSet set = Make("niah", {.lengths = {2048}, .depths = 3, .samples = 2});
  std::multiset<double> depths;
  for (const Question& question : set.questions) {
    const std::string& document = set.documents[question.document];
    const double at = static_cast<double>(document.find(question.expected[0])) /
                      static_cast<double>(document.size());
    EXPECT_NEAR(at, *question.depth, 0.03);
    depths.insert(*question.depth);
  }
  EXPECT_THAT(depths, ::testing::ElementsAre(0.0, 0.0, 0.5, 0.5, 1.0, 1.0));
}

TEST(SuitesTest, MultiqueryAsksFourDifferentThings) {
  const QuestionSet set = Make("multiquery", {.lengths = {4096}, .samples = 5});
  std::set<std::string> values;
  for (const Question& question : set.questions) {
    EXPECT_THAT(question.turns, SizeIs(4));
    values.insert(question.expected.begin(), question.expected.end());
  }
  EXPECT_THAT(values, SizeIs(20));
}

std::map<std::string, int64_t> CountWords(const std::string& text) {
  std::map<std::string, int64_t> counts;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    ++counts[word];
  }
  return counts;
}

TEST(SuitesTest, FrequentWordsAreTheMostFrequent) {
  const QuestionSet set = Make("frequent-words", {.lengths = {kMinSuiteLength}, .samples = 3});
  for (const Question& question : set.questions) {
    const std::map<std::string, int64_t> counts = CountWords(set.documents[question.document]);
    int64_t least = INT64_MAX;
    for (const std::string& word : question.expected) {
      least = std::min(least, counts.at(word));
    }
    for (const auto& [word, count] : counts) {
      EXPECT_TRUE(count < least ||
                  std::count(question.expected.begin(), question.expected.end(), word) == 1)
          << word;
    }
  }
}

TEST(SuitesTest, CommonWordsStandMoreOftenThanTheOthers) {
  const QuestionSet set = Make("common-words", {.lengths = {kMinSuiteLength, 8192}, .samples = 1});
  for (const Question& question : set.questions) {
    ASSERT_THAT(question.expected, SizeIs(10));
    const std::string& text = set.documents[question.document];
    for (const std::string& pair : question.expected) {
      int64_t times = 0;
      for (size_t at = text.find(pair); at != std::string::npos; at = text.find(pair, at + 1)) {
        ++times;
      }
      EXPECT_GE(times, question.length == 8192 ? 30 : 4);
    }
  }
}

TEST(SuitesTest, ManyShotLabelsFollowTheAdjective) {
  const QuestionSet set = Make("many-shot", {.lengths = {4096}, .samples = 5});
  for (const Question& question : set.questions) {
    const std::string& text = set.documents[question.document];
    const std::string& turn = question.turns[0];
    const size_t quote = turn.find('"');
    const std::string pair = turn.substr(quote + 1, turn.rfind('"') - quote - 1);
    EXPECT_THAT(text, ::testing::Not(HasSubstr("\n" + pair + ":")));
    const std::string adjective = pair.substr(0, pair.find(' '));
    int64_t shots = 0;
    for (size_t at = text.find("\n" + adjective + " "); at != std::string::npos;
         at = text.find("\n" + adjective + " ", at + 1)) {
      const size_t label = text.find(": ", at) + 2;
      EXPECT_EQ(text.substr(label, 4), question.expected[0]);
      ++shots;
    }
    EXPECT_GE(shots, 5);
  }
}

TEST(SuitesTest, AnUnknownSuiteListsTheKnown) {
  const Result<QuestionSet> set = MakeSuite("niha", {.lengths = {2048}}, Needle().Measure());
  EXPECT_THAT(set.status().message(), HasSubstr("\"niha\" is none of niah, multikey"));
}

TEST(SuitesTest, ATaskThatDoesNotFitNamesSuiteAndLength) {
  PromptMeasure measure = Needle().Measure();
  measure.turn_tokens = 600;  // as with a long system prompt
  const Result<QuestionSet> set = MakeSuite("multiquery", {.lengths = {2800}}, measure);
  EXPECT_THAT(set.status().message(), HasSubstr("suite multiquery at 2800 tokens"));
}

}  // namespace
}  // namespace lserve
