// Suites: long-context tasks generated from a seed for any tokenizer and any length
// (docs/evaluation.md defines each). The same options and tokenizer give the same questions.
// Free functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/facts.h"
#include "eval/questions.h"

namespace lserve {

// Suites of questions, in the order of reports. "long-generation" is not among them: it has no
// questions (eval/forced_documents.h).
std::vector<std::string> QuestionSuiteNames();

struct SuiteOptions {
  std::vector<int64_t> lengths;  // tokens of prompt and answer, each at least kMinSuiteLength
  int64_t depths = 5;            // of niah, at least 1
  int64_t samples = 10;          // questions a task and length; of niah, a depth too
  uint64_t seed = 1;
};
inline constexpr int64_t kMinSuiteLength = 1024;
// Questions that share a document, and so its prefill, where a task allows several.
inline constexpr int64_t kQuestionsPerDocument = 5;

// How long text becomes as a prompt.
struct PromptMeasure {
  TokenCounter count_tokens;
  int64_t turn_tokens = 0;  // what the chat template adds to a turn, an upper bound
};

// A question's prompt and the longest answer it allows together take at most the length, and nearly
// all of it. Errors: kInvalidArgument (an unknown suite, and the known are listed; a length that
// does not hold the task).
Result<QuestionSet> MakeSuite(const std::string& name, const SuiteOptions& options,
                              const PromptMeasure& measure);

}  // namespace lserve
