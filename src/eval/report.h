// EvalReport: everything an evaluation found, and its comparisons, as JSON and as a table for a
// terminal. The HTML page is eval/html_report.h. Values; free functions are thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/answers.h"
#include "eval/paired_statistics.h"
#include "eval/questions.h"
#include "eval/runs.h"
#include "eval/teacher_forced.h"
#include "sparse/head_plan.h"

namespace lserve {

struct RunAnswers {
  EvalRun run;
  Answers answers;
  std::vector<double> scores;  // by question, in [0, 1]
};

struct EvalReport {
  std::string model;
  std::string commit;
  OrderedJson device;
  std::string command;  // gives this report again
  uint64_t seed = 0;    // of the suites
  std::vector<Question> questions;
  std::vector<RunAnswers> runs;                  // in the order of the settings
  std::vector<ForcedDocument> forced;            // without their tokens
  std::vector<std::vector<ForcedTrace>> traces;  // by forced document, then run
  HeadPlan plan;
  HeadGates gates;  // empty: no plan file, every head retrieves
};

struct ComparedGroup {
  std::string kind;
  int64_t length = 0;
  PairedTally tally;
};
// The dense run beside one sparse run, on the same questions.
struct Comparison {
  const EvalRun* sparse = nullptr;
  PairedTally overall;
  std::vector<ComparedGroup> groups;  // kinds in the order of the questions, lengths ascending
};
// One for each sparse run; none without a dense run or without questions. Points into the report.
std::vector<Comparison> Compare(const EvalReport& report);

// Teacher-forced documents of one kind and length under one run; means are over all their rows.
struct ForcedSummary {
  std::string kind;
  int64_t length = 0;
  std::string run;
  int64_t documents = 0;
  int64_t rows = 0;
  double loss = 0;  // of the decode rows, nats a token
  std::optional<double> prefill_loss, prefill_tail_loss;
  // Against dense, for a sparse run beside one.
  std::optional<double> agreement, mean_kl, largest_kl;
  // The same of the rows that predict a token of an answer, where answers are told apart.
  std::optional<double> answer_loss, answer_agreement, answer_mean_kl;
  struct Span {  // consecutive rows, counted from the first decode row
    int64_t first = 0;
    int64_t rows = 0;
    double agreement = 0;
    double mean_kl = 0;
  };
  std::vector<Span> spans;  // against dense only
};
std::vector<ForcedSummary> Summarise(const EvalReport& report);

// One run: its settings, commit, overall, by_kind_length and rows at the top level. Several: those
// in "runs", and "comparisons" beside them.
OrderedJson ToJson(const EvalReport& report);

// Right answers by task and length, dense beside each sparse run, and teacher-forced losses.
std::string ToTable(const EvalReport& report);

}  // namespace lserve
