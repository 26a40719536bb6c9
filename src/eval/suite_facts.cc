// Suites whose questions ask for facts in filler, in the grammar that needle-7m knows.
#include <algorithm>
#include <utility>

#include "eval/suite_tasks.h"

namespace lserve {
namespace {

constexpr int64_t kMostFacts = 96;  // as in needle-7m's training data

Question AskFor(const Fact& fact) {
  Question question;
  question.turns = {fact.question};
  question.expected = fact.values;
  question.answer = fact.answer;
  question.scoring = Scoring::kValues;
  return question;
}

// `count` facts of one kind, of which the first few are asked about: they stand at random places,
// so the first ones are as good a sample as any.
template <typename Draw>
Result<SuiteDocument> MakeCompetingFacts(const DocumentRequest& request, int64_t count, Draw draw) {
  FactSource source(DeriveSeed(request.seed, 0));
  std::vector<Fact> facts;
  for (int64_t i = 0; i < count; ++i) {
    facts.push_back(draw(source));
  }
  SuiteDocument document;
  ASSIGN_OR_RETURN(
      document.text,
      MakeFactDocument(facts, request.tokens, DeriveSeed(request.seed, 1), request.count_tokens));
  for (int64_t i = 0; i < std::min(count, request.questions); ++i) {
    document.questions.push_back(AskFor(facts[static_cast<size_t>(i)]));
  }
  return document;
}

// One fact for so many tokens of the document, at least one a question.
int64_t FactCount(const DocumentRequest& request, int64_t tokens_each, int64_t most) {
  return std::max(request.questions, std::min(most, request.tokens / tokens_each));
}

}  // namespace

Result<SuiteDocument> MakeNiah(const DocumentRequest& request) {
  Fact fact = FactSource(DeriveSeed(request.seed, 0)).Code();
  fact.depth = request.depth;
  SuiteDocument document;
  ASSIGN_OR_RETURN(
      document.text,
      MakeFactDocument({fact}, request.tokens, DeriveSeed(request.seed, 1), request.count_tokens));
  document.questions = {AskFor(fact)};
  return document;
}

Result<SuiteDocument> MakeMultikey(const DocumentRequest& request) {
  return MakeCompetingFacts(request, FactCount(request, 128, kMostFacts),
                            [](FactSource& source) { return source.Code(); });
}

Result<SuiteDocument> MakeMultivalue(const DocumentRequest& request) {
  constexpr int64_t kValues = 4;
  return MakeCompetingFacts(request, FactCount(request, 1024, kMostFacts / kValues),
                            [](FactSource& source) { return source.Multi(kValues); });
}

Result<SuiteDocument> MakeVariableTracking(const DocumentRequest& request) {
  constexpr int64_t kNames = 4;
  return MakeCompetingFacts(request, FactCount(request, 1024, kMostFacts / kNames),
                            [](FactSource& source) { return source.Chain(kNames); });
}

Result<SuiteDocument> MakeMultiquery(const DocumentRequest& request) {
  // A question is four single ones, asked in turn: needle-7m answers one at a time.
  constexpr int64_t kTurns = 4;
  DocumentRequest single = request;
  single.questions = request.questions * kTurns;
  ASSIGN_OR_RETURN(const SuiteDocument facts, MakeMultikey(single));
  SuiteDocument document;
  document.text = facts.text;
  for (size_t i = 0; i + kTurns <= facts.questions.size(); i += kTurns) {
    Question question = facts.questions[i];
    for (size_t turn = 1; turn < kTurns; ++turn) {
      const Question& next = facts.questions[i + turn];
      question.turns.push_back(next.turns[0]);
      question.expected.push_back(next.expected[0]);
    }
    document.questions.push_back(std::move(question));
  }
  return document;
}

}  // namespace lserve
