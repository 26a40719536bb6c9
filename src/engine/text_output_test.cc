#include "engine/text_output.h"

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/testing/stub_runner.h"

namespace lserve {
namespace {

std::shared_ptr<const Tokenizer> NeedleTokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer = [] {
    Result<std::unique_ptr<Tokenizer>> loaded =
        Tokenizer::Load(LSERVE_SOURCE_DIR "/models/needle-7m");
    CHECK_MSG(loaded.ok(), "{}", loaded.status().message());
    return std::shared_ptr<const Tokenizer>(std::move(*loaded));
  }();
  return tokenizer;
}

struct Outcome {
  std::string text;
  bool stopped = false;
};

Outcome Generate(const std::vector<int32_t>& tokens, const std::vector<std::string>& stop) {
  TextOutput output(NeedleTokenizer().get(), stop);
  Outcome outcome;
  for (const int32_t token : tokens) {
    outcome.text += output.Push(token);
    if (output.stopped()) break;
  }
  if (!output.stopped()) outcome.text += output.Finish();
  outcome.stopped = output.stopped();
  return outcome;
}

TEST(TextOutput, StopStringsAcrossTokensAndCodePoints) {
  const std::string text = "The river-code is 4711 🙂🙂, 終わり。\n\nUser: more";
  const std::vector<int32_t> tokens = NeedleTokenizer()->Encode(text);
  ASSERT_GT(tokens.size(), 20u);
  EXPECT_EQ(Generate(tokens, {}).text, text);
  for (const std::string stop : {"er-co", "11 🙂", "🙂,", "り。\n", "\n\nUser:", "more"}) {
    const Outcome outcome = Generate(tokens, {"not in it", stop});
    EXPECT_TRUE(outcome.stopped) << stop;
    EXPECT_EQ(outcome.text, text.substr(0, text.find(stop))) << stop;
  }
  EXPECT_EQ(Generate(tokens, {"more!", "🙃"}).text, text);
}

TEST(TextOutput, AnUnfinishedCharacterEndsAsReplacement) {
  std::vector<int32_t> tokens = NeedleTokenizer()->Encode("ok 🙂");
  tokens.pop_back();
  const Outcome outcome = Generate(tokens, {"STOP"});
  EXPECT_EQ(outcome.text.substr(0, 3), "ok ");
  EXPECT_NE(outcome.text.find("\xEF\xBF\xBD"), std::string::npos);
  // It may even complete a stop string.
  EXPECT_TRUE(Generate(tokens, {"\xEF\xBF\xBD"}).stopped);
}

TEST(TextOutput, WithoutTokenizerNoText) {
  TextOutput output(nullptr, {});
  EXPECT_EQ(output.Push(5), "");
  EXPECT_EQ(output.Finish(), "");
}

// The same through the engine: a stub that "generates" a text.
class EngineText : public ::testing::Test {
 protected:
  struct Answer {
    std::string text;
    size_t tokens = 0;
    FinishReason finish = FinishReason::kNone;
  };

  Answer Ask(const std::string& says, SamplingParams sampling) {
    StubRunnerOptions options;
    options.limits.vocab_size = NeedleTokenizer()->vocab_size();
    options.eos_token = kEos;
    options.script = [tokens = NeedleTokenizer()->Encode(says)](std::span<const int32_t>,
                                                                int64_t index) {
      return index < static_cast<int64_t>(tokens.size()) ? tokens[static_cast<size_t>(index)]
                                                         : kEos;
    };
    std::vector<std::unique_ptr<Runner>> runners;
    runners.push_back(std::make_unique<StubRunner>(options));
    EngineOptions engine_options;
    engine_options.eos_token_ids = {kEos};
    Engine engine(std::move(runners), NeedleTokenizer(), engine_options);
    Request request;
    request.prompt = NeedleTokenizer()->Encode("What?");
    request.sampling = std::move(sampling);
    Answer answer;
    const Result<RequestId> id = engine.Submit(request, [&](const OutputEvent& event) {
      answer.text += event.text;
      answer.tokens += event.tokens.size();
      answer.finish = event.finish;
    });
    CHECK_OK(id.status());
    engine.Drain(60);
    return answer;
  }

  static constexpr int32_t kEos = 2;
};

TEST_F(EngineText, EosTextIsNotEmitted) {
  const std::string says = "It is 4711 🙂.";
  const Answer answer = Ask(says, {});
  EXPECT_EQ(answer.text, says);
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.tokens, NeedleTokenizer()->Encode(says).size() + 1);
}

TEST_F(EngineText, StopStringsAreCutOff) {
  SamplingParams sampling;
  sampling.stop = {"zzz", "11 🙂"};
  const Answer answer = Ask("It is 4711 🙂. And more", sampling);
  EXPECT_EQ(answer.text, "It is 47");
  EXPECT_EQ(answer.finish, FinishReason::kStop);
}

TEST_F(EngineText, StopTokenTextIsNotEmittedAndHeldTextIs) {
  SamplingParams sampling;
  sampling.stop = {"is 48"};  // "is 4" is held back, then given out
  sampling.stop_token_ids = {NeedleTokenizer()->Encode("It is 4.").back()};
  const Answer answer = Ask("It is 4.", sampling);
  EXPECT_EQ(answer.text, "It is 4");
  EXPECT_EQ(answer.finish, FinishReason::kStop);
}

TEST_F(EngineText, MaxTokensGivesOutHeldText) {
  const std::string says = "It is 4711";
  SamplingParams sampling;
  sampling.stop = {"4711!"};
  sampling.max_tokens = static_cast<int64_t>(NeedleTokenizer()->Encode(says).size());
  const Answer answer = Ask(says + " and", sampling);
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.text, says);
}

}  // namespace
}  // namespace lserve
