#include "eval/calibration_documents.h"

#include <algorithm>
#include <array>
#include <numbers>
#include <string>
#include <utility>

#include "eval/facts.h"
#include "eval/random_stream.h"
#include "eval/runs.h"

namespace lserve {
namespace {

// Not kMulti: in which order a model lists several values is its habit, and a habit that gives way
// costs many nats, whatever the head is worth.
constexpr std::array kKinds = {FactKind::kCode, FactKind::kPerson, FactKind::kChain,
                               FactKind::kPair};
constexpr int64_t kMaxFacts = 96;
constexpr int64_t kMaxQuestions = 12;
// Tokens that merges across the bounds of document and question may add.
constexpr int64_t kSlackTokens = 8;

// The chat about `document`, answers as targets.
Result<ScoredDocument> EncodeTurns(const LoadedModel& model, const std::string& document,
                                   std::span<const Fact> asked) {
  ScoredDocument scored;
  std::vector<ChatMessage> messages;
  for (const Fact& fact : asked) {
    messages.push_back(
        {"user", messages.empty() ? document + "\n\n" + fact.question : fact.question});
    ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, EncodeChat(model, messages));
    messages.push_back({"assistant", fact.answer});
    ASSIGN_OR_RETURN(std::vector<int32_t> tokens, EncodeChat(model, messages, false));
    const auto begins_with = [&](const std::vector<int32_t>& prefix) {
      return prefix.size() < tokens.size() &&
             std::equal(prefix.begin(), prefix.end(), tokens.begin());
    };
    if (!begins_with(prompt) || !begins_with(scored.tokens)) {
      return FailedPrecondition(
          "the chat template does not keep what came before an answer, so answers in a chat "
          "cannot be scored");
    }
    for (size_t i = prompt.size(); i < tokens.size(); ++i) {
      scored.targets.push_back(static_cast<int32_t>(i));
    }
    scored.tokens = std::move(tokens);
  }
  return scored;
}

}  // namespace

Result<ScoredDocument> MakeCalibrationDocument(const LoadedModel& model, int64_t length,
                                               uint64_t seed, int64_t index) {
  if (length < kLeastCalibrationTokens) {
    return InvalidArgument("documents of {} tokens are too short: at least {}", length,
                           kLeastCalibrationTokens);
  }
  const uint64_t own_seed = DeriveSeed(seed, static_cast<uint64_t>(index));
  RandomStream random(DeriveSeed(own_seed, 0));
  FactSource source(DeriveSeed(own_seed, 1));
  const FactKind kind = kKinds[static_cast<size_t>(index) % kKinds.size()];
  const int64_t fewest = std::min(kMaxFacts, length / 256);
  const int64_t most = std::min(kMaxFacts, length / 64);
  std::vector<Fact> facts;
  for (int64_t left = fewest + random.Below(most - fewest + 1); left > 0; --left) {
    facts.push_back(source.Draw(kind));
  }
  ASSIGN_OR_RETURN(const PromptMeasure measure, MeasureOf(model));
  // Facts are drawn in random order and stand at random depths, so the first ones are as good as
  // any to ask for. Few tokens hold fewer of them.
  while (true) {
    const int64_t questions = std::min(kMaxQuestions, std::ssize(facts));
    const std::span<const Fact> asked(facts.data(), static_cast<size_t>(questions));
    ASSIGN_OR_RETURN(const ScoredDocument turns, EncodeTurns(model, "", asked));
    const int64_t room = length - std::ssize(turns.tokens) - kSlackTokens;
    const Result<std::string> text =
        MakeFactDocument(facts, room, DeriveSeed(own_seed, 2), measure.count_tokens);
    if (text.ok()) {
      return EncodeTurns(model, *text, asked);
    }
    if (facts.size() == 1) {
      return text.status();
    }
    facts.resize(facts.size() / 2);
  }
}

AnswerCount KeepGivenAnswers(const std::vector<double>& losses, ScoredDocument* document) {
  const std::vector<int32_t> targets = std::move(document->targets);
  CHECK_EQ(losses.size(), targets.size());
  document->targets.clear();
  AnswerCount count;
  for (size_t begin = 0, end = 0; begin < targets.size(); begin = end) {
    bool given = true;
    for (end = begin;
         end == begin || (end < targets.size() && targets[end] == targets[end - 1] + 1); ++end) {
      given = given && losses[end] <= std::numbers::ln2;
    }
    ++count.asked;
    if (given) {
      ++count.given;
      document->targets.insert(document->targets.end(),
                               targets.begin() + static_cast<std::ptrdiff_t>(begin),
                               targets.begin() + static_cast<std::ptrdiff_t>(end));
    }
  }
  return count;
}

}  // namespace lserve
