// Questions from files: lserve's own format (eval/README.md) and RULER's. Free functions,
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/questions.h"

namespace lserve {

// Which rows of a file are asked.
struct QuestionFilter {
  std::vector<std::string> kinds;  // empty: all
  int64_t max_length = 0;          // 0: any
  int64_t limit = 0;               // the first so many that qualify; 0: all
};

// Rows {id, kind, length, question, answer, document or same_document_as}, JSON lines, plain or
// gzip. An answer is compared exactly.
// Errors: kNotFound; kInvalidArgument (file, line and field are named; no row that qualifies).
Result<QuestionSet> ReadQuestionFile(const std::string& path, const QuestionFilter& filter);

// RULER's rows {index, input, outputs, length}, JSON lines (Hsieh et al., COLM 2024): `input` is
// the whole prompt, with the template and answer prefix that RULER's prepare.py wrote. The task is
// the folder's name where the file is called validation or test, as RULER has it, else the file's.
// Scored as RULER does: any output for tasks that start with "qa", all outputs for the others.
// Lengths are rounded up to a power of two. Errors: as above.
Result<QuestionSet> ReadRulerFile(const std::string& path, const QuestionFilter& filter);

}  // namespace lserve
