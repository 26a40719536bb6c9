// The scheduler: decides what one step of one served model runs. A pure function of its state: no
// clock, model, device or thread; the engine's thread owns the state and hands in what it measured.
//
// Rules
// - Order is arrival order (RequestId ascends). Admission is first come, first served: the
//   sequences that hold a slot are always the earliest ones alive.
// - A sequence is admitted when a slot is free and its prompt's pages can be taken in full (so two
//   half-prefilled prompts can not wait for each other), with a page left for each running
//   sequence that can still grow.
// - Every decoding sequence has a decode row in every step. When a row lacks a page, the
//   latest-arrived running sequences are preempted until there is one, the row's own if it is the
//   latest. A preempted sequence loses its slot and its cache; admitted again, it prefills its
//   prompt and replays its generated tokens as decode rows (`sample` false) until it has caught up.
// - A preempted sequence is admitted again only when it and all the running sequences fit at their
//   largest. So no sequence that has begun is preempted more than once, and as a sequence alone
//   always fits (AdmissibleTokens), each one ends.
// - Prefill takes the rest of the step: units of 128 tokens (a prompt's last may be shorter), in
//   turn from the chosen prompts, until the step's estimated time reaches its target or its rows
//   are full; at least one unit. Chosen are the max_partial_prefills - 1 earliest prompts and, of
//   the others that hold a slot, the one with the fewest tokens left.
//
// Bound: between two units of a chosen prompt each other chosen prompt has at most one. A prompt of
// n tokens that holds a slot and is chosen throughout is prefilled once ceil(n / 128) *
// max_partial_prefills units have run, and a step runs at least one, however long the other prompts
// are. A prompt shorter than what is left of every other one is always chosen, unless
// max_partial_prefills is 1 (then prompts run strictly one after the other).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/cost_model.h"
#include "engine/request.h"

namespace lserve {

inline constexpr int64_t kPrefillUnit = 128;

struct SchedulerLimits {
  int32_t max_num_seqs = 0;          // slots
  int32_t max_rows = 0;              // rows of a step, at least kPrefillUnit
  int32_t max_partial_prefills = 1;  // at least 1
  double prefill_step_seconds = 1.0;
  double decode_step_seconds = 0.25;
  std::function<int64_t(int64_t)> pages_for;  // pages that so many tokens take; monotone
};

enum class Phase { kWaiting, kPrefill, kDecode };

struct SequenceState {
  RequestId id = 0;
  int64_t prompt_tokens = 0;
  int64_t max_new_tokens = 0;
  Phase phase = Phase::kWaiting;
  int64_t held = 0;        // tokens in the cache; below prompt + generated - 1 in kDecode: a replay
  int64_t reserved = 0;    // tokens that its pages make room for
  int64_t generated = 0;   // tokens sampled
  bool preempted = false;  // after it had begun
};

struct SchedulerState {
  SchedulerLimits limits;
  CostEstimate cost;
  int64_t free_pages = 0;
  bool others_decode = false;            // another served model decodes: steps stay short
  RequestId next_prefill = 0;            // whose turn it is
  std::vector<SequenceState> sequences;  // ascending id

  void Add(RequestId id, int64_t prompt_tokens, int64_t max_new_tokens);  // id above all before
  void Remove(RequestId id);                                              // must exist
  const SequenceState* Find(RequestId id) const;                          // null: unknown
  SequenceState* Find(RequestId id);
  bool HasDecoding() const;
};

struct PlannedAdmission {
  RequestId id = 0;
  int64_t reserve = 0;  // tokens
};

// Feeds generated token `position - prompt_tokens`.
struct PlannedDecode {
  RequestId id = 0;
  int64_t position = 0;
  int64_t reserve = 0;  // tokens; 0: there is room already
  bool sample = true;
};

struct PlannedChunk {
  RequestId id = 0;
  int64_t first = 0;
  int64_t count = 0;
  bool last = false;    // of its prompt
  bool sample = false;  // last, and not a rebuilt sequence
};

// To be carried out in this order.
struct StepPlan {
  std::vector<RequestId> preempt;
  std::vector<PlannedDecode> decode;
  std::vector<PlannedAdmission> admit;
  std::vector<PlannedChunk> chunks;
  RequestId next_prefill = 0;
  double target_seconds = 0;
  double estimated_seconds = 0;
};

// The next step. Runs something whenever a sequence is alive.
StepPlan PlanStep(const SchedulerState& state);

// The state after the plan was carried out; free_pages stays for the caller to set.
void ApplyPlan(const StepPlan& plan, SchedulerState* state);

// The largest number of new tokens after `prompt_tokens` that `kv_pages` pages can hold, at most
// `limit`; below 1: not even one.
int64_t AdmissibleTokens(const std::function<int64_t(int64_t)>& pages_for, int64_t kv_pages,
                         int64_t prompt_tokens, int64_t limit);

}  // namespace lserve
