// Questions over documents: what a suite generates or a file holds, and how an answer is scored.
// Values; free functions are thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve {

enum class Scoring {
  kExact,         // the whole answer, byte by byte
  kValues,        // share of the expected values that the answer names, as whole words, in any case
  kSubstring,     // share of the expected values that are substrings, in any case (RULER's "all")
  kAnySubstring,  // 1 if one of them is (RULER's "part")
};

struct Question {
  std::string id;
  std::string kind;             // task
  int64_t length = 0;           // intended tokens, prompt and answer: what results are grouped by
  std::optional<double> depth;  // where the fact stands, 0 (front) to 1
  size_t document = 0;          // of QuestionSet::documents
  // Asked one after the other in one chat, the first below the document; the model's own answers
  // stand between. Empty: the document is the whole prompt, sent without a chat template.
  std::vector<std::string> turns;
  std::vector<std::string> expected;  // kExact: one
  std::string answer;  // a right answer in full, where it is more than one expected text
  Scoring scoring = Scoring::kExact;
  int64_t max_answer_tokens = 64;  // of each turn

  // What teacher forcing feeds: a right answer. Null: more than one turn, or nobody knows it.
  const std::string* WholeAnswer() const;
};

struct QuestionSet {
  std::vector<std::string> documents;
  std::vector<Question> questions;

  // Appends another set. Errors: kInvalidArgument (an id stands in both).
  Status Append(QuestionSet other);
};

// In [0, 1]. `prediction` joins the answers of all turns.
double Score(const Question& question, std::string_view prediction);

// An answer is right if it scores 1.
inline bool IsRight(double score) { return score == 1.0; }

}  // namespace lserve
