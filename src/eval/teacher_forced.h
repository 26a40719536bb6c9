// Teacher forcing: every run is fed the same tokens, the last of them as decode rows, and its
// distributions are compared with the dense run's, position by position. Greedy answers of two runs
// part at their first difference; fed tokens show every difference, however long the text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "eval/runs.h"

namespace lserve {

struct ForcedDocument {
  std::string id;
  std::string kind;    // "long-generation" or "text"
  int64_t length = 0;  // intended tokens: what results are grouped by
  std::vector<int32_t> tokens;
  int64_t decode_from = 0;  // tokens from here on are fed as decode rows; a multiple of 128
  // By token: it belongs to an answer, so a reader of the document can predict it. Empty: no
  // answers are told apart.
  std::vector<bool> is_answer;
  bool prefill_loss = false;  // also measure the loss of every token in prefill
};

// What one run made of a document. Row i feeds token decode_from + i and predicts the next one.
struct ForcedTrace {
  std::string run;
  std::vector<double> loss;  // by row: nats of the token that came
  std::vector<double> kl;    // by row: KL(dense || run) in nats; empty without a dense run
  std::vector<bool> agrees;  // by row: the same most likely token as dense; empty likewise
  std::optional<double> prefill_loss;       // mean over all tokens but the first
  std::optional<double> prefill_tail_loss;  // mean over the tokens that the rows predict
};

OrderedJson ToJson(const ForcedTrace& trace);
// Errors: kInvalidArgument (not what ToJson writes).
Result<ForcedTrace> TraceFromJson(const Json& json);

// Traces of all runs, in their order. Needs room for two sequences, and memory for the dense run's
// logits: rows x vocabulary floats. Errors: kInvalidArgument (longer than the context; both are
// named), those of the runner.
Result<std::vector<ForcedTrace>> TraceDocument(const LoadedModel& model,
                                               const std::vector<EvalRun>& runs,
                                               const ForcedDocument& document,
                                               const EvalProgress& progress);

// KL(softmax(p) || softmax(q)) in nats, at least 0.
double KlDivergence(std::span<const float> p, std::span<const float> q);

}  // namespace lserve
