// The whole of `lserve eval`: reads or generates what is asked, runs every mode on it and makes the
// report. One caller at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/question_files.h"
#include "eval/questions.h"
#include "eval/report.h"
#include "eval/runs.h"
#include "eval/teacher_forced.h"

namespace lserve {

struct EvalOptions {
  // Any of these; at least one.
  std::vector<std::string> suites;  // names, or "all"
  std::string qa;                   // a file of questions
  std::vector<std::string> ruler;   // files of RULER
  std::string text;                 // a file of plain text

  std::vector<int64_t> lengths;  // empty: 8192 and 32768 for suites, as far as the context reaches;
                                 // the whole of a text
  int64_t depths = 5;
  int64_t samples = 10;
  uint64_t seed = 1;
  bool teacher_forced = false;   // answers, see AnswerMode
  int64_t decode_tokens = 2048;  // fed as decode rows in long-generation and from a text
  QuestionFilter filter;         // of the files' questions
  Sweep sweep;                   // what "lserve" is run with
  bool resume = false;
  std::string json;  // result file; what is finished stands beside it until the end
};

// Ranges that do not depend on the model. Errors: kInvalidArgument (flag and value are named).
Status Validate(const EvalOptions& options, const Settings& settings);

// What is asked of every mode.
struct EvalMaterial {
  QuestionSet set;
  std::vector<ForcedDocument> forced;
};
// Reads the files and generates the suites; the model needs no weights yet.
// Errors: kNotFound, kInvalidArgument (bad files, lengths beyond the context, a suite that does not
// fit), kFailedPrecondition (no chat template).
Result<EvalMaterial> GatherMaterial(const LoadedModel& model, const EvalOptions& options);

// Runs every mode on it. The model must have its weights. `command` is a line that repeats the
// evaluation. The caller discards the partial results (PartialResults::Discard) once it has written
// the report. Errors: kInvalidArgument (partial results of other settings, a prompt beyond the
// context), those of the runners.
Result<EvalReport> Evaluate(const LoadedModel& model, const EvalOptions& options,
                            EvalMaterial material, const std::string& command,
                            const EvalProgress& progress);

}  // namespace lserve
