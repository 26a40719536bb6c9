// Runs of an evaluation: the attention modes that are compared, each with its budget, and what they
// share: how prompts are written and runners made. Free functions; one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/loaded_model.h"
#include "eval/suites.h"
#include "text/chat_template.h"

namespace lserve {

// One attention mode, with one selection, that answers everything once.
struct EvalRun {
  std::string name;       // "dense", "lserve", of several "lserve@512" or "lserve@16/512/1"
  std::string attention;  // "dense" or "lserve"
  Settings settings;      // of this run alone

  bool dense() const { return attention == "dense"; }
};

// What "lserve" is run with, once each; both empty: what the settings say.
struct Sweep {
  std::vector<int64_t> budgets;
  std::vector<std::string> selections;  // "UNIT/BUDGET/REUSE", as the settings of these names
};

// The modes of settings.attention in order, "lserve" once for each entry of the sweep.
// Errors: kInvalidArgument (a bad list or value, one twice, budgets and selections together,
// a sweep without "lserve").
Result<std::vector<EvalRun>> PlanRuns(const Settings& settings, const Sweep& sweep);

// Whether runs differ in nothing but what they select in decode, so that one prefill serves both.
bool SharePrefill(const EvalRun& a, const EvalRun& b);

// Hears how far an evaluation is, in [0, 1], and what it is doing.
using EvalProgress = std::function<void(double done, const std::string& note)>;

// max_logit_rows as in RunnerOptions.
Result<std::unique_ptr<LlamaRunner>> MakeRunner(const LoadedModel& model, const EvalRun& run,
                                                int32_t max_logit_rows = 0);

// A chat that ends with a user's turn, ready for the answer, or with `generation_prompt` false one
// that ends with an answer. Templates that print the date get a fixed one, so that prompts repeat.
// Errors: kFailedPrecondition (the model has no chat template), those of ChatTemplate::Render.
Result<std::vector<int32_t>> EncodeChat(const LoadedModel& model,
                                        std::span<const ChatMessage> messages,
                                        bool generation_prompt = true);

Result<PromptMeasure> MeasureOf(const LoadedModel& model);

}  // namespace lserve
