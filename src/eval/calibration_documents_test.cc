#include "eval/calibration_documents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace lserve {
namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m";

class CalibrationDocuments : public ::testing::Test {
 protected:
  Result<ScoredDocument> Make(int64_t length, uint64_t seed, int64_t index) const {
    return MakeCalibrationDocument(model_, length, seed, index);
  }
  std::string Text(std::span<const int32_t> tokens) const {
    return model_.tokenizer->Decode(tokens, false);
  }

  LoadedModel model_ = LoadedModel::Open(kModel, Settings{}).value();
};

TEST_F(CalibrationDocuments, FitTheirLengthAndFillMostOfIt) {
  for (const int64_t length : {512, 1000, 4096}) {
    for (int64_t index = 0; index < 5; ++index) {
      const ScoredDocument document = Make(length, 3, index).value();
      EXPECT_LE(std::ssize(document.tokens), length) << index;
      EXPECT_GE(std::ssize(document.tokens), length - 60) << index;
    }
  }
}

// The targets are the answers, each with the token that ends its turn.
TEST_F(CalibrationDocuments, TargetsAreTheAnswers) {
  for (int64_t index = 0; index < 5; ++index) {
    const ScoredDocument document = Make(2048, 7, index).value();
    const std::string text = Text(document.tokens);
    std::string answers;
    for (const int32_t target : document.targets) {
      answers += Text({&document.tokens[static_cast<size_t>(target)], 1});
    }
    std::string wanted;
    const std::string header = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    const std::string end = "<|eot_id|>";
    int64_t turns = 0;
    for (size_t at = text.find(header); at != std::string::npos; at = text.find(header, at)) {
      at += header.size();
      wanted += text.substr(at, text.find(end, at) + end.size() - at);
      ++turns;
    }
    EXPECT_EQ(answers, wanted);
    EXPECT_GE(turns, 8) << "a 2048-token document has at least 8 facts";
    EXPECT_LE(turns, 12);
  }
}

TEST_F(CalibrationDocuments, KindsTakeTurnsAndSeedsDiffer) {
  std::set<std::vector<int32_t>> seen;
  for (const uint64_t seed : {1, 2}) {
    for (int64_t index = 0; index < 10; ++index) {
      seen.insert(Make(600, seed, index).value().tokens);
    }
  }
  EXPECT_EQ(seen.size(), 20u);
  EXPECT_EQ(Make(600, 1, 4).value().tokens, Make(600, 1, 4).value().tokens);
  const auto text = [&](int64_t index) { return Text(Make(600, 1, index).value().tokens); };
  EXPECT_THAT(text(4), HasSubstr("code"));
  EXPECT_THAT(text(6), HasSubstr("What is the value of"));
  EXPECT_THAT(text(7), HasSubstr("maps to"));
}

TEST(KeepGivenAnswers, DropsAnswersWithAnImprobableToken) {
  ScoredDocument document{.tokens = std::vector<int32_t>(20, 1),
                          .targets = {3, 4, 5, 8, 9, 12, 15, 16}};
  const AnswerCount count = KeepGivenAnswers({0.1, 0.69, 0, 0.1, 0.7, 0.2, 9, 0.1}, &document);
  EXPECT_THAT(document.targets, ::testing::ElementsAre(3, 4, 5, 12));
  EXPECT_EQ(count.asked, 4);
  EXPECT_EQ(count.given, 2);
}

TEST_F(CalibrationDocuments, TooShortALengthIsRefused) {
  EXPECT_THAT(Make(511, 1, 0).status().message(), HasSubstr("511 tokens are too short"));
}

// A template that shows only the last turn, or that shows earlier answers in another form than they
// were generated in: what came before an answer is then not what the model saw.
TEST_F(CalibrationDocuments, TemplatesThatRewriteEarlierTurnsAreRefused) {
  model_.chat_template =
      ChatTemplate::Parse("{{ messages[-1].content }}{% if add_generation_prompt %}>{% endif %}",
                          "<|begin_of_text|>", "<|eot_id|>")
          .value();
  const Status status = Make(600, 1, 0).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("does not keep what came before"));
}

}  // namespace
}  // namespace lserve
