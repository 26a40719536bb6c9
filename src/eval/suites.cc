#include "eval/suites.h"

#include <algorithm>
#include <utility>

#include "eval/suite_tasks.h"

namespace lserve {
namespace {

struct Suite {
  const char* name;
  Result<SuiteDocument> (*make)(const DocumentRequest& request);
  int64_t questions_per_document;
  int64_t turns;              // of a question
  int64_t question_tokens;    // of a turn, an upper bound for every tokenizer worth the name
  int64_t max_answer_tokens;  // of a turn
};

constexpr Suite kSuites[] = {
    {"niah", MakeNiah, 1, 1, 32, 64},
    {"multikey", MakeMultikey, kQuestionsPerDocument, 1, 32, 64},
    {"multivalue", MakeMultivalue, kQuestionsPerDocument, 1, 32, 64},
    {"multiquery", MakeMultiquery, kQuestionsPerDocument, 4, 32, 64},
    {"variable-tracking", MakeVariableTracking, kQuestionsPerDocument, 1, 32, 64},
    {"common-words", MakeCommonWords, 1, 1, 32, 160},
    {"frequent-words", MakeFrequentWords, 1, 1, 32, 64},
    {"json-kv", MakeJsonKv, kQuestionsPerDocument, 1, 64, 64},
    {"many-shot", MakeManyShot, kQuestionsPerDocument, 1, 32, 64},
};

// What a document's questions share; `group` numbers the documents of a suite and length.
struct Group {
  int64_t number = 0;
  int64_t questions = 1;
  std::optional<double> depth;
};

// niah has `samples` documents at each depth; the others share documents where they can.
std::vector<Group> PlanDocuments(const Suite& suite, const SuiteOptions& options) {
  std::vector<Group> groups;
  if (suite.make == MakeNiah) {
    for (int64_t depth = 0; depth < options.depths; ++depth) {
      const double share = options.depths == 1 ? 0.5
                                               : static_cast<double>(depth) /
                                                     static_cast<double>(options.depths - 1);
      for (int64_t sample = 0; sample < options.samples; ++sample) {
        groups.push_back({depth * options.samples + sample, 1, share});
      }
    }
    return groups;
  }
  for (int64_t asked = 0; asked < options.samples; asked += suite.questions_per_document) {
    groups.push_back({std::ssize(groups),
                      std::min(suite.questions_per_document, options.samples - asked),
                      std::nullopt});
  }
  return groups;
}

// The label under which a document draws its random numbers.
uint64_t DocumentLabel(size_t suite, int64_t length, int64_t group) {
  return static_cast<uint64_t>(suite) << 56 | static_cast<uint64_t>(length) << 24 |
         static_cast<uint64_t>(group);
}

}  // namespace

std::vector<std::string> QuestionSuiteNames() {
  std::vector<std::string> names;
  for (const Suite& suite : kSuites) {
    names.emplace_back(suite.name);
  }
  return names;
}

Result<QuestionSet> MakeSuite(const std::string& name, const SuiteOptions& options,
                              const PromptMeasure& measure) {
  const auto suite = std::find_if(std::begin(kSuites), std::end(kSuites),
                                  [&](const Suite& candidate) { return name == candidate.name; });
  if (suite == std::end(kSuites)) {
    return InvalidArgument("suite \"{}\" is none of {}", name,
                           fmt::join(QuestionSuiteNames(), ", "));
  }
  const int64_t reserved =
      suite->turns * (measure.turn_tokens + suite->question_tokens + suite->max_answer_tokens);
  QuestionSet set;
  for (const int64_t length : options.lengths) {
    int64_t asked = 0;
    for (const Group& group : PlanDocuments(*suite, options)) {
      DocumentRequest request;
      request.tokens = length - reserved;
      request.questions = group.questions;
      request.depth = group.depth.value_or(0);
      request.seed = DeriveSeed(
          options.seed,
          DocumentLabel(static_cast<size_t>(suite - std::begin(kSuites)), length, group.number));
      request.count_tokens = measure.count_tokens;
      Result<SuiteDocument> made = suite->make(request);
      if (!made.ok()) {
        return made.status().Annotate(fmt::format("suite {} at {} tokens", name, length));
      }
      set.documents.push_back(std::move(made->text));
      for (Question& question : made->questions) {
        question.id = fmt::format("{}-{}-{}", name, length, asked++);
        question.kind = name;
        question.length = length;
        question.depth = group.depth;
        question.document = set.documents.size() - 1;
        question.max_answer_tokens = suite->max_answer_tokens;
        set.questions.push_back(std::move(question));
      }
    }
  }
  return set;
}

}  // namespace lserve
