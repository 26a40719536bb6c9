#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lserve {
namespace {

// One planning pass: `running_` are the slots' sequences in arrival order, `free_` the pages left.
class Planner {
 public:
  explicit Planner(const SchedulerState& state)
      : state_(state), limits_(state.limits), free_(state.free_pages) {
    CHECK_GE(limits_.max_rows, kPrefillUnit);
    CHECK_GE(limits_.max_partial_prefills, 1);
    CHECK_GE(limits_.max_num_seqs, 1);
    for (const SequenceState& sequence : state.sequences) {
      if (sequence.phase != Phase::kWaiting) running_.push_back(&sequence);
    }
  }

  StepPlan Plan() {
    plan_.next_prefill = state_.next_prefill;
    PlanDecode();
    // Pages are short: what was just taken away must not go to a newcomer.
    if (plan_.preempt.empty()) Admit();
    PlanPrefill();
    return std::move(plan_);
  }

 private:
  int64_t Pages(const SequenceState& sequence) const {
    return limits_.pages_for(sequence.reserved);
  }
  int64_t PagesAtMost(const SequenceState& sequence) const {
    return limits_.pages_for(sequence.prompt_tokens + sequence.max_new_tokens);
  }

  void PlanDecode() {
    for (size_t i = 0; i < running_.size(); ++i) {
      const SequenceState& sequence = *running_[i];
      if (sequence.phase != Phase::kDecode) continue;
      const bool grows = sequence.held + 1 > sequence.reserved;
      const int64_t need = grows ? limits_.pages_for(sequence.held + 1) - Pages(sequence) : 0;
      while (need > free_ && i < running_.size()) {
        CHECK_MSG(running_.size() > 1, "sequence {} alone lacks pages: {} needed, {} free",
                  sequence.id, need, free_);
        plan_.preempt.push_back(running_.back()->id);
        free_ += Pages(*running_.back());
        running_.pop_back();
      }
      if (i == running_.size()) return;  // it was the latest itself
      free_ -= need;
      plan_.decode.push_back(
          {.id = sequence.id,
           .position = sequence.held,
           .reserve = grows ? sequence.held + 1 : 0,
           .sample = sequence.held == sequence.prompt_tokens + sequence.generated - 1});
    }
  }

  // Pages that must stay free beside those that `sequence` takes when it is admitted.
  int64_t Headroom(const SequenceState& sequence, int64_t own) const {
    int64_t headroom = sequence.preempted ? PagesAtMost(sequence) - own : 0;
    for (size_t i = 0; i < running_.size(); ++i) {
      const int64_t growth = PagesAtMost(*running_[i]) - running_pages_[i];
      headroom += sequence.preempted ? growth : std::min<int64_t>(growth, 1);
    }
    return headroom;
  }

  void Admit() {
    // All but one may decode while the last one's prompt gets its unit.
    const int64_t max_running =
        std::min<int64_t>(limits_.max_num_seqs, limits_.max_rows - kPrefillUnit + 1);
    for (const SequenceState* sequence : running_) {
      const int64_t held = sequence->phase == Phase::kDecode ? sequence->held + 1 : 0;
      running_pages_.push_back(limits_.pages_for(std::max(sequence->reserved, held)));
    }
    for (const SequenceState& sequence : state_.sequences) {
      if (sequence.phase != Phase::kWaiting) continue;
      if (static_cast<int64_t>(running_.size()) >= max_running) return;
      const int64_t tokens = sequence.prompt_tokens + std::max<int64_t>(sequence.generated, 1);
      const int64_t pages = limits_.pages_for(tokens);
      if (pages + Headroom(sequence, pages) > free_) {
        CHECK_MSG(!running_.empty(), "sequence {} can never be admitted", sequence.id);
        return;
      }
      free_ -= pages;
      running_.push_back(&sequence);
      running_pages_.push_back(pages);
      plan_.admit.push_back({.id = sequence.id, .reserve = tokens});
    }
  }

  // A prompt's share of this step.
  struct Share {
    const SequenceState* sequence;
    int64_t count = 0;

    int64_t position() const { return sequence->held + count; }
    int64_t left() const { return sequence->prompt_tokens - position(); }
  };

  // The prompts that share this step, in arrival order.
  std::vector<Share> ChoosePrompts() const {
    std::vector<Share> prompts;
    for (const SequenceState* sequence : running_) {
      if (sequence->phase != Phase::kDecode) prompts.push_back({.sequence = sequence});
    }
    const auto places = static_cast<size_t>(limits_.max_partial_prefills);
    if (prompts.size() <= places) return prompts;
    if (places > 1) {
      const auto rest = prompts.begin() + static_cast<std::ptrdiff_t>(places - 1);
      const auto shortest = std::min_element(
          rest, prompts.end(), [](const Share& a, const Share& b) { return a.left() < b.left(); });
      std::swap(*rest, *shortest);
    }
    prompts.resize(places);
    return prompts;
  }

  void PlanPrefill() {
    const auto decode_rows = static_cast<int64_t>(plan_.decode.size());
    plan_.target_seconds = decode_rows > 0 || state_.others_decode ? limits_.decode_step_seconds
                                                                   : limits_.prefill_step_seconds;
    plan_.estimated_seconds = static_cast<double>(decode_rows) * state_.cost.decode_row_seconds;

    std::vector<Share> prompts = ChoosePrompts();
    ShareUnits(limits_.max_rows - decode_rows, &prompts);
    for (const Share& share : prompts) {
      if (share.count == 0) continue;
      const bool last = share.left() == 0;
      plan_.chunks.push_back({.id = share.sequence->id,
                              .first = share.sequence->held,
                              .count = share.count,
                              .last = last,
                              .sample = last && share.sequence->generated == 0});
    }
  }

  // Deals units in turn, beginning with next_prefill, until rows or time are used up.
  void ShareUnits(int64_t rows, std::vector<Share>* prompts) {
    size_t turn = 0;
    while (turn < prompts->size() && (*prompts)[turn].sequence->id < state_.next_prefill) ++turn;
    bool first = true;
    for (size_t done = 0; done < prompts->size(); ++turn) {
      Share& share = (*prompts)[turn % prompts->size()];
      if (share.left() == 0) {
        ++done;
        continue;
      }
      done = 0;
      const int64_t unit = std::min(share.left(), kPrefillUnit - share.position() % kPrefillUnit);
      const double seconds = state_.cost.PrefillSeconds(share.position(), unit);
      plan_.next_prefill = share.sequence->id;
      if (unit > rows) return;
      if (!first && plan_.estimated_seconds + seconds > plan_.target_seconds) return;
      first = false;
      rows -= unit;
      share.count += unit;
      plan_.estimated_seconds += seconds;
      plan_.next_prefill = share.sequence->id + 1;
    }
  }

  const SchedulerState& state_;
  const SchedulerLimits& limits_;
  int64_t free_;
  std::vector<const SequenceState*> running_;
  std::vector<int64_t> running_pages_;  // with this step's decode rows
  StepPlan plan_;
};

}  // namespace

void SchedulerState::Add(RequestId id, int64_t prompt_tokens, int64_t max_new_tokens) {
  CHECK(sequences.empty() || sequences.back().id < id);
  CHECK_GE(prompt_tokens, 1);
  CHECK_GE(max_new_tokens, 1);
  sequences.push_back({.id = id, .prompt_tokens = prompt_tokens, .max_new_tokens = max_new_tokens});
}

const SequenceState* SchedulerState::Find(RequestId id) const {
  const auto at =
      std::lower_bound(sequences.begin(), sequences.end(), id,
                       [](const SequenceState& s, RequestId key) { return s.id < key; });
  return at != sequences.end() && at->id == id ? &*at : nullptr;
}

SequenceState* SchedulerState::Find(RequestId id) {
  return const_cast<SequenceState*>(std::as_const(*this).Find(id));
}

void SchedulerState::Remove(RequestId id) {
  const SequenceState* sequence = Find(id);
  CHECK(sequence != nullptr);
  sequences.erase(sequences.begin() + (sequence - sequences.data()));
}

bool SchedulerState::HasDecoding() const {
  return std::any_of(sequences.begin(), sequences.end(),
                     [](const SequenceState& s) { return s.phase == Phase::kDecode; });
}

StepPlan PlanStep(const SchedulerState& state) { return Planner(state).Plan(); }

void ApplyPlan(const StepPlan& plan, SchedulerState* state) {
  for (const RequestId id : plan.preempt) {
    SequenceState& sequence = *state->Find(id);
    sequence.preempted = sequence.preempted || sequence.held > 0;
    sequence.phase = Phase::kWaiting;
    sequence.held = 0;
    sequence.reserved = 0;
  }
  for (const PlannedDecode& row : plan.decode) {
    SequenceState& sequence = *state->Find(row.id);
    sequence.held += 1;
    sequence.reserved = std::max(sequence.reserved, row.reserve);
    if (row.sample) sequence.generated += 1;
  }
  for (const PlannedAdmission& admission : plan.admit) {
    SequenceState& sequence = *state->Find(admission.id);
    sequence.phase = Phase::kPrefill;
    sequence.reserved = admission.reserve;
  }
  for (const PlannedChunk& chunk : plan.chunks) {
    SequenceState& sequence = *state->Find(chunk.id);
    sequence.held += chunk.count;
    if (chunk.last) sequence.phase = Phase::kDecode;
    if (chunk.sample) sequence.generated += 1;
  }
  state->next_prefill = plan.next_prefill;
}

int64_t AdmissibleTokens(const std::function<int64_t(int64_t)>& pages_for, int64_t kv_pages,
                         int64_t prompt_tokens, int64_t limit) {
  int64_t low = 0;  // known to fit, or no better known
  int64_t high = limit;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (pages_for(prompt_tokens + middle) <= kv_pages) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace lserve
