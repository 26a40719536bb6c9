#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "base/random.h"

namespace lserve {
namespace {

int64_t PagesFor(int64_t tokens) { return std::max<int64_t>(0, (tokens + 63) / 64 - 1); }

SchedulerState MakeState(int64_t pages, int32_t slots = 8, int32_t rows = 2048,
                         int32_t partial_prefills = 4) {
  SchedulerState state;
  state.limits = {.max_num_seqs = slots,
                  .max_rows = rows,
                  .max_partial_prefills = partial_prefills,
                  .pages_for = PagesFor};
  state.cost = {.row_seconds = 1e-3, .row_context_seconds = 0, .decode_row_seconds = 1e-2};
  state.free_pages = pages;
  return state;
}

// What plan and pool say after a step.
int64_t FreeAfter(const SchedulerState& state, int64_t pages) {
  for (const SequenceState& sequence : state.sequences) pages -= PagesFor(sequence.reserved);
  return pages;
}

StepPlan Step(SchedulerState* state, int64_t pages) {
  state->free_pages = FreeAfter(*state, pages);
  StepPlan plan = PlanStep(*state);
  ApplyPlan(plan, state);
  EXPECT_GE(FreeAfter(*state, pages), 0);
  return plan;
}

TEST(Scheduler, OneRequest) {
  SchedulerState state = MakeState(100);
  state.cost.row_seconds = 1.0 / 300;
  state.Add(1, 600, 3);
  StepPlan plan = Step(&state, 100);
  ASSERT_EQ(plan.admit.size(), 1u);
  EXPECT_EQ(plan.admit[0].reserve, 601);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].count, 256);
  EXPECT_FALSE(plan.chunks[0].sample);
  plan = Step(&state, 100);
  EXPECT_EQ(plan.chunks[0].first, 256);
  EXPECT_EQ(plan.chunks[0].count, 256);
  plan = Step(&state, 100);
  EXPECT_EQ(plan.chunks[0].count, 88);
  EXPECT_TRUE(plan.chunks[0].last);
  EXPECT_TRUE(plan.chunks[0].sample);
  plan = Step(&state, 100);
  ASSERT_EQ(plan.decode.size(), 1u);
  EXPECT_EQ(plan.decode[0].position, 600);
  EXPECT_TRUE(plan.decode[0].sample);
  EXPECT_TRUE(plan.chunks.empty());
}

TEST(Scheduler, StepsAreShorterWhileSomethingDecodes) {
  SchedulerState state = MakeState(1000);
  state.Add(1, 60000, 10);
  EXPECT_EQ(Step(&state, 1000).chunks[0].count, 896);  // 7 units of 0.128 s in 1 s
  state.others_decode = true;
  EXPECT_EQ(Step(&state, 1000).chunks[0].count, 128);  // and 1 in 0.25 s
  state.others_decode = false;
  state.cost.row_seconds = 1e-4;
  EXPECT_EQ(Step(&state, 1000).chunks[0].count, 2048);  // the rows are full
  state.cost.row_context_seconds = 1e-3;  // far above the target: one unit all the same
  EXPECT_EQ(Step(&state, 1000).chunks[0].count, 128);
}

TEST(Scheduler, PromptsShareAStepEvenly) {
  SchedulerState state = MakeState(10000);
  state.cost.row_seconds = 1e-6;
  for (RequestId id = 1; id <= 4; ++id) state.Add(id, 60000, 10);
  const StepPlan plan = Step(&state, 10000);
  ASSERT_EQ(plan.chunks.size(), 4u);
  for (const PlannedChunk& chunk : plan.chunks) EXPECT_EQ(chunk.count, 512);
}

TEST(Scheduler, TurnsGoOnInTheNextStep) {
  SchedulerState state = MakeState(10000);
  state.cost.row_seconds = 1;  // one unit a step
  for (RequestId id = 1; id <= 3; ++id) state.Add(id, 60000, 10);
  std::vector<RequestId> order;
  for (int i = 0; i < 7; ++i) order.push_back(Step(&state, 10000).chunks.at(0).id);
  EXPECT_EQ(order, (std::vector<RequestId>{1, 2, 3, 1, 2, 3, 1}));
}

// The bound in the header: ceil(300 / 128) * 4 units, behind any number of long prompts.
TEST(Scheduler, AShortPromptDoesNotWaitBehindLongOnes) {
  for (const int32_t partial_prefills : {2, 3, 4}) {
    SchedulerState state = MakeState(100000, 16, 2048, partial_prefills);
    state.cost.row_seconds = 1;  // one unit a step: the slowest machine
    for (RequestId id = 1; id <= 8; ++id) state.Add(id, 65536, 10);
    for (int i = 0; i < 50; ++i) Step(&state, 100000);
    state.Add(9, 300, 10);
    int units = 0;
    while (state.Find(9)->generated == 0) {
      Step(&state, 100000);
      ++units;
      ASSERT_LE(units, 3 * partial_prefills);
    }
  }
}

TEST(Scheduler, OnePartialPrefillIsStrictlyFirstComeFirstServed) {
  SchedulerState state = MakeState(100000, 8, 2048, 1);
  state.Add(1, 4000, 10);
  state.Add(2, 10, 10);
  while (state.Find(1)->generated == 0) EXPECT_EQ(Step(&state, 100000).chunks.at(0).id, 1);
  EXPECT_EQ(Step(&state, 100000).chunks.at(0).id, 2);
}

TEST(Scheduler, AHalfPrefilledPromptHasAllItsPages) {
  SchedulerState state = MakeState(100);
  state.cost.row_seconds = 1;
  state.Add(1, 64 * 60, 64);
  state.Add(2, 64 * 60, 64);  // does not fit beside the first
  Step(&state, 100);
  EXPECT_EQ(state.Find(1)->phase, Phase::kPrefill);
  EXPECT_EQ(state.Find(2)->phase, Phase::kWaiting);
  // Nor may a third one that would fit pass it.
  state.Add(3, 64, 1);
  Step(&state, 100);
  EXPECT_EQ(state.Find(3)->phase, Phase::kWaiting);
}

TEST(Scheduler, AdmissionLeavesAPageForEachRunningSequence) {
  SchedulerState state = MakeState(10);
  state.Add(1, 64 * 5 + 1, 640);  // 5 pages of 10
  Step(&state, 10);
  state.Add(2, 64 * 5 + 1, 64);  // the other 5
  Step(&state, 10);
  EXPECT_EQ(state.Find(2)->phase, Phase::kWaiting);
  state.Add(3, 1, 1);
  state.Remove(2);
  state.Add(4, 64 * 4, 64);  // 4, and one left
  Step(&state, 10);
  EXPECT_EQ(state.Find(4)->phase, Phase::kPrefill);
}

TEST(Scheduler, DecodeRowsLeaveRoomForAUnit) {
  // 129 rows: two sequences, so that one decodes while the other gets its 128.
  SchedulerState state = MakeState(1000, 8, 129);
  for (RequestId id = 1; id <= 3; ++id) state.Add(id, 1000, 500);
  for (int i = 0; i < 200; ++i) {
    const StepPlan plan = Step(&state, 1000);
    int64_t rows = static_cast<int64_t>(plan.decode.size());
    for (const PlannedChunk& chunk : plan.chunks) rows += chunk.count;
    ASSERT_LE(rows, 129);
  }
  EXPECT_EQ(state.Find(2)->phase, Phase::kDecode);
  EXPECT_EQ(state.Find(3)->phase, Phase::kWaiting);
}

TEST(Scheduler, TheLatestIsPreemptedAndReplays) {
  SchedulerState state = MakeState(10);
  state.Add(1, 64, 64 * 9);
  state.Add(2, 64, 64 * 9);
  std::vector<RequestId> preempted;
  while (preempted.empty()) preempted = Step(&state, 10).preempt;
  EXPECT_EQ(preempted, std::vector<RequestId>{2});
  const int64_t generated = state.Find(2)->generated;
  EXPECT_GT(generated, 64);
  EXPECT_EQ(state.Find(2)->phase, Phase::kWaiting);
  // It waits until both fit at their largest: until the first has gone.
  while (state.Find(1)->generated < 64 * 9) EXPECT_TRUE(Step(&state, 10).admit.empty());
  state.Remove(1);
  StepPlan plan = Step(&state, 10);
  ASSERT_EQ(plan.admit.size(), 1u);
  EXPECT_EQ(plan.admit[0].reserve, 64 + generated);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_TRUE(plan.chunks[0].last);
  EXPECT_FALSE(plan.chunks[0].sample);
  for (int64_t i = 0; i < generated; ++i) {
    plan = Step(&state, 10);
    ASSERT_EQ(plan.decode.size(), 1u);
    EXPECT_EQ(plan.decode[0].position, 64 + i);
    EXPECT_EQ(plan.decode[0].sample, i == generated - 1);
  }
  EXPECT_EQ(state.Find(2)->generated, generated + 1);
}

TEST(Scheduler, ALaterPrefillGivesWayToADecodingSequence) {
  SchedulerState state = MakeState(10);
  state.Add(1, 64, 64 * 9);
  Step(&state, 10);
  state.cost.row_seconds = 1;
  state.Add(2, 64 * 8, 64);
  std::vector<RequestId> preempted;
  for (int i = 0; i < 600 && preempted.empty(); ++i) {
    state.cost.row_seconds = 1;
    preempted = Step(&state, 10).preempt;
  }
  EXPECT_EQ(preempted, std::vector<RequestId>{2});
}

TEST(AdmissibleTokens, LargestThatFits) {
  EXPECT_EQ(AdmissibleTokens(PagesFor, 2, 10, 1000), 64 * 3 - 10);
  EXPECT_EQ(AdmissibleTokens(PagesFor, 2, 10, 100), 100);
  EXPECT_EQ(AdmissibleTokens(PagesFor, 2, 64 * 3 - 1, 100), 1);
  EXPECT_EQ(AdmissibleTokens(PagesFor, 2, 64 * 3, 100), 0);
}

// Random arrivals, cancellations and costs, each step checked against the header's rules.
class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : seed_(seed) {
    pages_ = 8 + Draw(60);
    state_ = MakeState(pages_, static_cast<int32_t>(1 + Draw(8)),
                       static_cast<int32_t>(128 + Draw(1000)), static_cast<int32_t>(1 + Draw(5)));
    state_.cost = {.row_seconds = 1e-5 * static_cast<double>(1 + Draw(1000)),
                   .row_context_seconds = 1e-8 * static_cast<double>(Draw(100)),
                   .decode_row_seconds = 1e-4 * static_cast<double>(Draw(300))};
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      if (Draw(100) < 15) Submit();
      if (Draw(100) < 2 && !state_.sequences.empty()) {
        Forget(state_.sequences[static_cast<size_t>(Draw(Alive()))].id);
      }
      state_.others_decode = Draw(10) == 0;
      OneStep();
      if (::testing::Test::HasFatalFailure()) return;
    }
    // Everything ends: at least one token of progress a step.
    for (int64_t limit = 2000000; !state_.sequences.empty(); --limit) {
      ASSERT_GT(limit, 0) << "starved";
      OneStep();
      if (::testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(FreeAfter(state_, pages_), pages_);
  }

  int64_t preemptions() const { return preemptions_; }
  int64_t finished() const { return finished_; }

 private:
  int64_t Draw(int64_t below) { return static_cast<int64_t>(Philox(seed_, counter_++)[0]) % below; }
  int64_t Alive() const { return static_cast<int64_t>(state_.sequences.size()); }

  void Submit() {
    const int64_t prompt = 1 + Draw(Draw(3) == 0 ? 64 * pages_ : 300);
    const int64_t most = AdmissibleTokens(PagesFor, pages_, prompt, 1 + Draw(600));
    if (most >= 1) state_.Add(next_id_++, prompt, most);
  }

  void Forget(RequestId id) {
    state_.Remove(id);
    times_preempted_.erase(id);
  }

  void OneStep() {
    state_.free_pages = FreeAfter(state_, pages_);
    const SchedulerState before = state_;
    const StepPlan plan = PlanStep(state_);
    CheckDecode(before, plan);
    CheckChunks(before, plan);
    ApplyPlan(plan, &state_);
    ASSERT_GE(FreeAfter(state_, pages_), 0);
    if (!before.sequences.empty()) {
      ASSERT_FALSE(plan.decode.empty() && plan.chunks.empty()) << "an empty step";
    }
    for (const RequestId id : plan.preempt) {
      ++preemptions_;
      if (before.Find(id)->held > 0) {
        ASSERT_EQ(++times_preempted_[id], 1);
      }
    }
    // Those with a slot are the earliest alive; no more than there are slots.
    int64_t running = 0;
    bool waiting = false;
    for (const SequenceState& s : state_.sequences) {
      if (s.phase == Phase::kWaiting) {
        waiting = true;
        continue;
      }
      ASSERT_FALSE(waiting) << "sequence " << s.id << " passed an earlier one";
      ++running;
      ASSERT_LE(s.held, s.reserved);
    }
    ASSERT_LE(running, state_.limits.max_num_seqs);
    std::vector<RequestId> done;
    for (const SequenceState& s : state_.sequences) {
      ASSERT_LE(s.generated, s.max_new_tokens);
      if (s.generated == s.max_new_tokens) done.push_back(s.id);
    }
    finished_ += static_cast<int64_t>(done.size());
    for (const RequestId id : done) Forget(id);
  }

  void CheckDecode(const SchedulerState& before, const StepPlan& plan) {
    std::set<RequestId> rows;
    for (const PlannedDecode& row : plan.decode) {
      ASSERT_TRUE(rows.insert(row.id).second);
      const SequenceState& s = *before.Find(row.id);
      ASSERT_EQ(row.position, s.held);
      ASSERT_LT(s.held, s.prompt_tokens + s.generated);
      ASSERT_EQ(row.sample, s.held == s.prompt_tokens + s.generated - 1);
      ASSERT_LE(s.held + 1, std::max(s.reserved, row.reserve));
    }
    for (const SequenceState& s : before.sequences) {
      const bool evicted =
          std::find(plan.preempt.begin(), plan.preempt.end(), s.id) != plan.preempt.end();
      ASSERT_EQ(rows.contains(s.id), s.phase == Phase::kDecode && !evicted);
    }
  }

  void CheckChunks(const SchedulerState& before, const StepPlan& plan) {
    auto rows = static_cast<int64_t>(plan.decode.size());
    int64_t units = 0;
    double seconds = static_cast<double>(rows) * before.cost.decode_row_seconds;
    ASSERT_EQ(plan.target_seconds, rows > 0 || before.others_decode ? 0.25 : 1.0);
    ASSERT_LE(static_cast<int32_t>(plan.chunks.size()), before.limits.max_partial_prefills);
    for (const PlannedChunk& chunk : plan.chunks) {
      const SequenceState& s = *before.Find(chunk.id);
      ASSERT_NE(s.phase, Phase::kDecode);
      ASSERT_EQ(chunk.first, s.held);
      const int64_t end = chunk.first + chunk.count;
      ASSERT_EQ(chunk.last, end == s.prompt_tokens);
      ASSERT_TRUE(chunk.last || end % kPrefillUnit == 0);
      ASSERT_EQ(chunk.sample, chunk.last && s.generated == 0);
      rows += chunk.count;
      units += (chunk.count + kPrefillUnit - 1) / kPrefillUnit;
      seconds += before.cost.PrefillSeconds(chunk.first, chunk.count);
    }
    ASSERT_LE(rows, before.limits.max_rows);
    ASSERT_TRUE(units <= 1 || seconds <= plan.target_seconds * (1 + 1e-9));
  }

  const uint64_t seed_;
  uint64_t counter_ = 0;
  int64_t pages_ = 0;
  SchedulerState state_;
  RequestId next_id_ = 1;
  std::map<RequestId, int> times_preempted_;
  int64_t preemptions_ = 0;
  int64_t finished_ = 0;
};

TEST(SchedulerProperty, RandomRunsKeepEveryRule) {
  int64_t preemptions = 0;
  int64_t finished = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    RandomRun run(seed);
    run.Run(400);
    if (HasFatalFailure()) return;
    preemptions += run.preemptions();
    finished += run.finished();
  }
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(finished, 1000);
}

// No prompt needs more turns than the header says, whatever the lengths of those beside it.
TEST(SchedulerProperty, ThePrefillBoundHolds) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    uint64_t counter = 0;
    const auto draw = [&](int64_t below) {
      return static_cast<int64_t>(Philox(seed, counter++)[0]) % below;
    };
    const auto places = static_cast<int32_t>(1 + draw(5));
    SchedulerState state = MakeState(1 << 20, 64, 2048, places);
    state.cost.row_seconds = 1e-3 * static_cast<double>(1 + draw(20));
    // No more prompts than places, so each is chosen from its beginning to its end.
    const auto count = static_cast<RequestId>(1 + draw(places));
    std::map<RequestId, int64_t> own, all;
    for (RequestId id = 1; id <= count; ++id) state.Add(id, 1 + draw(8000), 1 << 20);
    int64_t total = 0;
    for (int step = 0; step < 1000; ++step) {
      for (const PlannedChunk& chunk : Step(&state, 1 << 20).chunks) {
        const int64_t units = (chunk.count + kPrefillUnit - 1) / kPrefillUnit;
        own[chunk.id] += units;
        total += units;
        if (chunk.last) all[chunk.id] = total;
      }
    }
    ASSERT_EQ(static_cast<RequestId>(all.size()), count);
    // A step's units are counted chunk by chunk, so a step's worth may precede.
    for (const auto& [id, units] : own) EXPECT_LE(all[id], (units + 16) * places);
  }
}

}  // namespace
}  // namespace lserve
