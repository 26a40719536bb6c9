// Greedy answers to questions over documents: a document is prefilled once, up to an absolute chunk
// boundary before its first question, and forked for each question.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "eval/partial_results.h"
#include "eval/questions.h"
#include "eval/runs.h"

namespace lserve {

// The run's predictions, in the questions' order; the answers to a question's turns are joined by
// newlines. What `partial` has is taken from there, the rest is written there as it comes. The
// model must have its weights and room for two sequences.
// Errors: kInvalidArgument (a prompt longer than the context; both are named), those of the runner.
Result<std::vector<std::string>> AnswerQuestions(const LoadedModel& model, const EvalRun& run,
                                                 const QuestionSet& set, PartialResults& partial,
                                                 const EvalProgress& progress);

}  // namespace lserve
