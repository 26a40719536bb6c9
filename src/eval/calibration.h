// Calibration: finds the KV heads that need the whole context, from losses alone, without training
// (docs/calibration.md). What `lserve calibrate` runs. One thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "engine/loaded_model.h"
#include "eval/partial_results.h"
#include "eval/runs.h"
#include "sparse/head_plan.h"

namespace lserve {

struct CalibrationOptions {
  int64_t samples = 8;    // documents that rank, and as many others that the curve is of
  int64_t length = 4096;  // tokens of a document, within the model's context
  uint64_t seed = 1;
  double max_loss_increase = 0.01;  // nats an answer token, for the largest share

  OrderedJson ToJson() const;
};
// Errors: kInvalidArgument, naming flag and value.
Status Validate(const CalibrationOptions& options, const ModelConfig& config);

struct Calibration {
  HeadGates gates;
  double largest_share = 0;  // of the curve's, with a rise of at most max_loss_increase
  OrderedJson report;        // docs/calibration.md
};

// Ranks the heads of a model that was opened with PlanChoice::kAllRetrieval and has its weights.
// The model is consumed: the losses of exact streaming need its weights packed in another order.
// `partial` holds the losses measured so far, so that the same call goes on where it stopped.
// Errors: kInvalidArgument (an option out of range, named), kFailedPrecondition (no usable chat
// template, no answer given),
// those of Losses and of the runner.
Result<Calibration> Calibrate(LoadedModel model, const CalibrationOptions& options,
                              PartialResults& partial, const EvalProgress& progress);

}  // namespace lserve
