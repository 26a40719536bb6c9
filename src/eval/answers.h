// Answers to questions over documents: a document is prefilled once, up to an absolute chunk
// boundary before its first question, and forked for each question.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/partial_results.h"
#include "eval/questions.h"
#include "eval/runs.h"

namespace lserve {

// A run's predictions, in the questions' order; the answers to a question's turns are joined by
// newlines.
struct Answers {
  std::vector<std::string> predictions;
  SelectionStats selection;  // lists used and made; what was prefilled since the run was resumed
};

enum class AnswerMode {
  kGreedy,  // generated, in decode rows
  // The right answer (Question::WholeAnswer) stands below the prompt and all of it is prefilled: a
  // prediction is what the model thinks likeliest at each token of the answer, given the text
  // before it. So it is prefill rows that must retrieve.
  kTeacherForced,
};

// The answers of runs that share their prefill: a document and each of its questions are read once,
// and every run answers in a fork. What `partial` has is taken from there, the rest is written
// there as it comes. The model must have its weights and room for four sequences: document,
// question, a later turn of it, answer.
// Errors: kInvalidArgument (a prompt longer than the context; both are named), those of the runner.
Result<std::vector<Answers>> AnswerQuestions(const LoadedModel& model,
                                             std::span<const EvalRun> runs, const QuestionSet& set,
                                             AnswerMode mode, PartialResults& partial,
                                             const EvalProgress& progress);

}  // namespace lserve
