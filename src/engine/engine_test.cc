#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/random.h"
#include "engine/testing/stub_runner.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kEos = 7;

// What a sink saw, for the test's thread.
class Recorder {
 public:
  OutputSink Sink() {
    return [this](const OutputEvent& event) {
      const std::lock_guard lock(mutex_);
      EXPECT_EQ(last_.finish, FinishReason::kNone) << "an event after the last";
      EXPECT_GE(event.stats.prefilled_tokens, last_.stats.prefilled_tokens);
      text_ += event.text;
      tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
      EXPECT_EQ(event.stats.generated_tokens, static_cast<int64_t>(tokens_.size()));
      ++events_;
      last_ = event;
      changed_.notify_all();
    };
  }

  // The last event.
  OutputEvent Await() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return last_.finish != FinishReason::kNone; });
    return last_;
  }

  void AwaitTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return tokens_.size() >= count || last_.finish != FinishReason::kNone; });
  }

  void AwaitEvents(int64_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return events_ >= count; });
  }

  std::vector<int32_t> tokens() {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }
  std::string text() {
    const std::lock_guard lock(mutex_);
    return text_;
  }
  int64_t events() {
    const std::lock_guard lock(mutex_);
    return events_;
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return last_.finish != FinishReason::kNone;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  OutputEvent last_;
  std::vector<int32_t> tokens_;
  std::string text_;
  int64_t events_ = 0;
};

std::vector<int32_t> Prompt(int64_t length, int32_t seed = 1) {
  std::vector<int32_t> prompt(static_cast<size_t>(length));
  for (size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<int32_t>(Philox(static_cast<uint64_t>(seed), i)[0] % 1000);
  }
  return prompt;
}

Request MakeRequest(std::vector<int32_t> prompt, int64_t max_tokens, int32_t model = 0) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.model = model;
  return request;
}

// An engine over stubs; stub(i) stays readable while the engine owns it.
struct Fixture {
  explicit Fixture(std::vector<StubRunnerOptions> models, EngineOptions options = {}) {
    options.eos_token_ids = {kEos};
    std::vector<std::unique_ptr<Runner>> runners;
    for (StubRunnerOptions& model : models) {
      model.eos_token = kEos;
      auto runner = std::make_unique<StubRunner>(std::move(model));
      stubs.push_back(runner.get());
      runners.push_back(std::move(runner));
    }
    engine = std::make_unique<Engine>(std::move(runners), nullptr, options);
  }

  StubRunner& stub(size_t i = 0) { return *stubs[i]; }

  std::vector<StubRunner*> stubs;
  std::unique_ptr<Engine> engine;
};

TEST(Engine, OneRequestGreedy) {
  Fixture fixture({StubRunnerOptions()});
  Recorder recorder;
  const std::vector<int32_t> prompt = Prompt(301);
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(prompt, 5), recorder.Sink()).ok());
  const OutputEvent last = recorder.Await();
  EXPECT_EQ(last.finish, FinishReason::kLength);
  EXPECT_EQ(recorder.tokens(), fixture.stub().Expected(prompt, 5));
  EXPECT_EQ(last.stats.prompt_tokens, 301);
  EXPECT_EQ(last.stats.prefilled_tokens, 301);
  EXPECT_EQ(last.stats.generated_tokens, 5);
  EXPECT_GT(last.stats.kv_bytes, 0);
  EXPECT_GE(last.stats.queue_seconds, 0);
  fixture.engine->Drain(10);
  EXPECT_EQ(fixture.stub().FreePages(), fixture.stub().limits().kv_pages);
  EXPECT_EQ(fixture.stub().open_slots(), 0);
}

// ---- What is refused
// -----------------------------------------------------------------------------

TEST(Engine, RefusesBadRequests) {
  StubRunnerOptions small;
  small.limits = {.max_model_len = 1000,
                  .max_num_seqs = 2,
                  .max_batch_rows = 256,
                  .kv_pages = 9,
                  .vocab_size = 1000};
  Fixture fixture({small});
  const auto submit = [&](const Request& request) {
    return fixture.engine->Submit(request, nullptr).status();
  };
  const auto expect = [&](const Request& request, StatusCode code,
                          const std::vector<std::string>& parts) {
    const Status status = submit(request);
    EXPECT_EQ(status.code(), code) << status.message();
    for (const std::string& part : parts) EXPECT_THAT(status.message(), HasSubstr(part));
  };

  expect(MakeRequest({}, 5), StatusCode::kInvalidArgument, {"prompt", "empty"});
  expect(MakeRequest({1, 1000}, 5), StatusCode::kInvalidArgument, {"token 1000"});
  expect(MakeRequest({-1}, 5), StatusCode::kInvalidArgument, {"token -1"});
  expect(MakeRequest({1}, 5, 1), StatusCode::kInvalidArgument, {"model 1"});
  expect(MakeRequest({1}, 5, -1), StatusCode::kInvalidArgument, {"model -1"});
  expect(MakeRequest({1}, 0), StatusCode::kInvalidArgument, {"max_tokens", "0"});
  expect(MakeRequest(Prompt(1000), -1), StatusCode::kInvalidArgument,
         {"maximum context length", "1000"});
  expect(MakeRequest(Prompt(990), 11), StatusCode::kInvalidArgument,
         {"maximum context length", "1000", "1001"});
  expect(MakeRequest({1}, std::numeric_limits<int64_t>::max()), StatusCode::kInvalidArgument,
         {"maximum context length"});
  // 9 closed pages and the open one hold 640 tokens.
  expect(MakeRequest(Prompt(640), -1), StatusCode::kResourceExhausted, {"9 pages", "640"});
  expect(MakeRequest(Prompt(600), 41), StatusCode::kResourceExhausted, {"9 pages"});
  Request stop = MakeRequest({1}, 5);
  stop.sampling.stop_token_ids = {1000};
  expect(stop, StatusCode::kInvalidArgument, {"stop_token_ids", "1000"});
  stop.sampling.stop_token_ids = {};
  stop.sampling.stop = {"x"};
  expect(stop, StatusCode::kInvalidArgument, {"tokenizer"});

  // Nothing of it has hurt the next request; -1 is what the cache can hold.
  Recorder recorder;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(600), -1), recorder.Sink()).ok());
  EXPECT_EQ(recorder.Await().finish, FinishReason::kLength);
  EXPECT_EQ(recorder.tokens().size(), 40u);
}

TEST(Engine, MaxTokensMinusOneIsWhatTheContextLeaves) {
  StubRunnerOptions small;
  small.limits.max_model_len = 300;
  Fixture fixture({small});
  Recorder recorder;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(250), -1), recorder.Sink()).ok());
  EXPECT_EQ(recorder.Await().finish, FinishReason::kLength);
  EXPECT_EQ(recorder.tokens().size(), 50u);
}

TEST(Engine, RefusesWhatTheQueueDoesNotHold) {
  StubRunnerOptions one;
  one.limits.max_num_seqs = 1;
  one.gate = std::make_shared<StepGate>();
  one.gate->Close();
  EngineOptions options;
  options.max_waiting = 3;
  Fixture fixture({one}, options);
  std::vector<Recorder> recorders(6);
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(10), 2), recorders[0].Sink()).ok());
  one.gate->AwaitBlocked();  // it counts as queued until its first step is over
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(10), 2), recorders[1].Sink()).ok());
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(10), 2), recorders[2].Sink()).ok());
  const Status full = fixture.engine->Submit(MakeRequest(Prompt(10), 2), nullptr).status();
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(full.message(), HasSubstr("queue is full"));
  EXPECT_EQ(fixture.engine->stats(0).waiting, 2);
  one.gate->Open();
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(recorders[i].Await().finish, FinishReason::kLength);
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(10), 2), recorders[3].Sink()).ok());
  EXPECT_EQ(recorders[3].Await().finish, FinishReason::kLength);
}

// ---- How requests end
// ----------------------------------------------------------------------------

TEST(Engine, EosAndStopTokens) {
  StubRunnerOptions stub;
  stub.eos_after = 3;
  stub.script = [](std::span<const int32_t> prompt, int64_t index) {
    return prompt.size() == 2 && index == 1 ? 123 : -1;
  };
  Fixture fixture({stub});
  Recorder eos;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest({1}, 10), eos.Sink()).ok());
  const OutputEvent last = eos.Await();
  EXPECT_EQ(last.finish, FinishReason::kStop);
  EXPECT_EQ(last.stats.generated_tokens, 4);  // the end token is counted
  EXPECT_EQ(eos.tokens().back(), kEos);

  Recorder ignored;
  Request request = MakeRequest({1}, 10);
  request.sampling.ignore_eos = true;
  ASSERT_TRUE(fixture.engine->Submit(request, ignored.Sink()).ok());
  EXPECT_EQ(ignored.Await().finish, FinishReason::kLength);
  EXPECT_EQ(ignored.tokens().size(), 10u);

  Recorder stopped;
  request = MakeRequest({1, 2}, 10);
  request.sampling.stop_token_ids = {99, 123};
  ASSERT_TRUE(fixture.engine->Submit(request, stopped.Sink()).ok());
  EXPECT_EQ(stopped.Await().finish, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens().size(), 2u);

  // The last token that is allowed is the end token: a stop.
  Recorder both;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest({1}, 4), both.Sink()).ok());
  EXPECT_EQ(both.Await().finish, FinishReason::kStop);
  fixture.engine->Drain(10);
  EXPECT_EQ(fixture.engine->stats(0).finished_stop, 3);
  EXPECT_EQ(fixture.engine->stats(0).finished_length, 1);
}

TEST(Engine, ProgressEventsInPrefill) {
  StubRunnerOptions stub;
  stub.limits.max_batch_rows = 256;
  Fixture fixture({stub});
  std::vector<int64_t> prefilled;
  Recorder recorder;
  const OutputSink record = recorder.Sink();
  ASSERT_TRUE(fixture.engine
                  ->Submit(MakeRequest(Prompt(1000), 1),
                           [&](const OutputEvent& event) {
                             prefilled.push_back(event.stats.prefilled_tokens);
                             EXPECT_EQ(event.text, "");
                             record(event);
                           })
                  .ok());
  recorder.Await();
  fixture.engine->Drain(10);
  ASSERT_GE(prefilled.size(), 4u);
  for (size_t i = 1; i < prefilled.size(); ++i) EXPECT_GT(prefilled[i], prefilled[i - 1]);
  EXPECT_EQ(prefilled.back(), 1000);
  EXPECT_LE(fixture.stub().most_rows(), 256);
}

TEST(Engine, TwoModelsTakeTurns) {
  StubRunnerOptions gated;
  gated.gate = std::make_shared<StepGate>();
  gated.gate->Close();
  Fixture fixture({gated, StubRunnerOptions()});
  Recorder first, second;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(20, 1), 50, 0), first.Sink()).ok());
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(20, 2), 50, 1), second.Sink()).ok());
  gated.gate->AwaitBlocked();
  gated.gate->Open();
  EXPECT_EQ(first.Await().finish, FinishReason::kLength);
  EXPECT_EQ(second.Await().finish, FinishReason::kLength);
  EXPECT_EQ(first.tokens(), fixture.stub(0).Expected(Prompt(20, 1), 50));
  EXPECT_EQ(second.tokens(), fixture.stub(1).Expected(Prompt(20, 2), 50));
  fixture.engine->Drain(10);
  EXPECT_EQ(fixture.engine->stats(0).generation_tokens, 50);
  EXPECT_EQ(fixture.engine->stats(1).generation_tokens, 50);
  EXPECT_EQ(fixture.engine->stats(1).prompt_tokens, 20);
}

// ---- Preemption
// ----------------------------------------------------------------------------------

TEST(Engine, PreemptedRequestsGiveTheSameTokens) {
  StubRunnerOptions tight;
  tight.limits.kv_pages = 12;
  Fixture fixture({tight});
  std::vector<Recorder> recorders(5);
  for (size_t i = 0; i < recorders.size(); ++i) {
    const auto seed = static_cast<int32_t>(i);
    ASSERT_TRUE(
        fixture.engine->Submit(MakeRequest(Prompt(100 + 37 * seed, seed), 400), recorders[i].Sink())
            .ok());
  }
  for (size_t i = 0; i < recorders.size(); ++i) {
    EXPECT_EQ(recorders[i].Await().finish, FinishReason::kLength);
    const auto seed = static_cast<int32_t>(i);
    EXPECT_EQ(recorders[i].tokens(), fixture.stub().Expected(Prompt(100 + 37 * seed, seed), 400));
  }
  fixture.engine->Drain(10);
  const EngineModelStats stats = fixture.engine->stats(0);
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_GT(fixture.stub().replayed_rows(), 0);
  EXPECT_EQ(stats.generation_tokens, 5 * 400);
  EXPECT_EQ(stats.prompt_tokens, 5 * 100 + 37 * (1 + 2 + 3 + 4));  // rebuilt prompts count once
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(fixture.stub().FreePages(), 12);
}

// ---- Cancellation
// --------------------------------------------------------------------------------

struct GatedFixture {
  static StubRunnerOptions Options(const std::shared_ptr<StepGate>& gate) {
    StubRunnerOptions options;
    options.limits.max_num_seqs = 1;
    options.limits.max_batch_rows = 128;
    options.gate = gate;
    return options;
  }

  std::shared_ptr<StepGate> gate = std::make_shared<StepGate>();
  Fixture fixture{{Options(gate)}};
};

TEST(Engine, CancelInQueue) {
  GatedFixture gated;
  Engine& engine = *gated.fixture.engine;
  gated.gate->Close();
  Recorder running, queued;
  ASSERT_TRUE(engine.Submit(MakeRequest(Prompt(10), 5), running.Sink()).ok());
  gated.gate->AwaitBlocked();
  const Result<RequestId> id = engine.Submit(MakeRequest(Prompt(10), 5), queued.Sink());
  ASSERT_TRUE(id.ok());
  engine.Cancel(*id);
  engine.Cancel(*id);
  engine.Cancel(12345);
  gated.gate->Open();
  const OutputEvent last = queued.Await();
  EXPECT_EQ(last.finish, FinishReason::kCancelled);
  EXPECT_EQ(last.stats.prefilled_tokens, 0);
  EXPECT_EQ(running.Await().finish, FinishReason::kLength);
  engine.Drain(10);
  EXPECT_EQ(engine.stats(0).finished_abort, 1);
  EXPECT_EQ(gated.fixture.stub().prefill_rows(), 10);
}

TEST(Engine, CancelInPrefillEndsWithinOneStep) {
  GatedFixture gated;
  Engine& engine = *gated.fixture.engine;
  gated.gate->Close();
  Recorder recorder;
  const Result<RequestId> id = engine.Submit(MakeRequest(Prompt(50000), 5), recorder.Sink());
  ASSERT_TRUE(id.ok());
  gated.gate->AwaitBlocked();
  engine.Cancel(*id);
  gated.gate->Open();
  EXPECT_EQ(recorder.Await().finish, FinishReason::kCancelled);
  engine.Drain(10);
  EXPECT_EQ(gated.fixture.stub().steps(), 1);
  EXPECT_EQ(gated.fixture.stub().FreePages(), gated.fixture.stub().limits().kv_pages);
}

TEST(Engine, CancelInDecodeAlsoFromTheSink) {
  GatedFixture gated;
  Engine& engine = *gated.fixture.engine;
  Recorder recorder;
  const OutputSink record = recorder.Sink();
  std::atomic<RequestId> id = 0;
  gated.gate->Close();
  const Result<RequestId> submitted =
      engine.Submit(MakeRequest(Prompt(100), 20000), [&](const OutputEvent& event) {
        record(event);
        if (event.stats.generated_tokens == 70) engine.Cancel(id);
      });
  ASSERT_TRUE(submitted.ok());
  id = *submitted;
  gated.gate->Open();
  EXPECT_EQ(recorder.Await().finish, FinishReason::kCancelled);
  engine.Drain(10);
  EXPECT_EQ(recorder.tokens(), gated.fixture.stub().Expected(Prompt(100), 70));
  EXPECT_EQ(gated.fixture.stub().FreePages(), gated.fixture.stub().limits().kv_pages);
  EXPECT_EQ(gated.fixture.stub().open_slots(), 0);
}

TEST(Engine, StormOfSubmitsAndCancels) {
  StubRunnerOptions tight;
  tight.limits.kv_pages = 40;
  StubRunnerOptions other = tight;
  Fixture fixture({tight, other});
  constexpr int kThreads = 4;
  constexpr int kRequests = 250;
  std::vector<std::unique_ptr<Recorder>> recorders(kThreads * kRequests);
  for (auto& recorder : recorders) recorder = std::make_unique<Recorder>();
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      uint64_t counter = 0;
      const auto draw = [&](uint32_t below) {
        return static_cast<int64_t>(Philox(static_cast<uint64_t>(t), counter++)[0] % below);
      };
      std::vector<RequestId> ids;
      for (int i = 0; i < kRequests; ++i) {
        Recorder& recorder = *recorders[static_cast<size_t>(t * kRequests + i)];
        Request request = MakeRequest(Prompt(1 + draw(1500), i), 1 + draw(200));
        request.model = static_cast<int32_t>(draw(2));
        const Result<RequestId> id = fixture.engine->Submit(std::move(request), recorder.Sink());
        ASSERT_TRUE(id.ok()) << id.status().message();
        ids.push_back(*id);
        if (draw(2) == 0)
          fixture.engine->Cancel(ids[static_cast<size_t>(draw(static_cast<uint32_t>(ids.size())))]);
        if (draw(20) == 0) std::this_thread::yield();
        EXPECT_TRUE(fixture.engine->health().ok());
        EXPECT_GE(fixture.engine->stats(0).running, 0);
      }
      for (size_t i = 0; i < ids.size(); i += 3) fixture.engine->Cancel(ids[i]);
    });
  }
  for (std::thread& client : clients) client.join();
  for (auto& recorder : recorders) recorder->Await();
  fixture.engine->Drain(60);
  int64_t ended = 0;
  for (int32_t model = 0; model < 2; ++model) {
    const EngineModelStats stats = fixture.engine->stats(model);
    EXPECT_EQ(stats.finished_error, 0);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    ended += stats.finished_length + stats.finished_abort;
    EXPECT_EQ(fixture.stub(static_cast<size_t>(model)).FreePages(), 40);
    EXPECT_EQ(fixture.stub(static_cast<size_t>(model)).open_slots(), 0);
  }
  EXPECT_EQ(ended, kThreads * kRequests);
}

// ---- The end
// -------------------------------------------------------------------------------------

TEST(Engine, DrainLetsRunningRequestsEnd) {
  Fixture fixture({StubRunnerOptions()});
  Recorder recorder;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(200), 100), recorder.Sink()).ok());
  fixture.engine->Drain(60);
  EXPECT_TRUE(recorder.ended());
  EXPECT_EQ(recorder.tokens().size(), 100u);
  EXPECT_TRUE(fixture.engine->health().ok());
  const Status late = fixture.engine->Submit(MakeRequest(Prompt(5), 5), nullptr).status();
  EXPECT_EQ(late.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(late.message(), HasSubstr("shutting down"));
}

TEST(Engine, DrainCancelsWhatDoesNotEndInTime) {
  GatedFixture gated;
  gated.gate->Close();
  Recorder running, queued;
  Engine& engine = *gated.fixture.engine;
  ASSERT_TRUE(engine.Submit(MakeRequest(Prompt(5), 60000), running.Sink()).ok());
  ASSERT_TRUE(engine.Submit(MakeRequest(Prompt(5), 60000), queued.Sink()).ok());
  gated.gate->AwaitBlocked();
  std::thread drain([&] { engine.Drain(0); });
  // The step must not end before Drain has given up, or the request could outrun it.
  while (engine.Submit(MakeRequest(Prompt(5), 1), nullptr).ok()) std::this_thread::yield();
  gated.gate->Open();
  drain.join();
  EXPECT_EQ(running.Await().finish, FinishReason::kCancelled);
  EXPECT_EQ(queued.Await().finish, FinishReason::kCancelled);
}

TEST(Engine, DestructorCancels) {
  GatedFixture gated;
  gated.gate->Close();
  Recorder running, queued, late;
  ASSERT_TRUE(gated.fixture.engine->Submit(MakeRequest(Prompt(5), 60000), running.Sink()).ok());
  gated.gate->AwaitBlocked();
  ASSERT_TRUE(gated.fixture.engine->Submit(MakeRequest(Prompt(5), 60000), queued.Sink()).ok());
  std::thread destroy([&] { gated.fixture.engine.reset(); });
  gated.gate->Open();
  destroy.join();
  EXPECT_EQ(running.Await().finish, FinishReason::kCancelled);
  EXPECT_EQ(queued.Await().finish, FinishReason::kCancelled);
}

TEST(Engine, AFailedStepEndsEverything) {
  StubRunnerOptions failing;
  failing.fail_at_step = 3;
  failing.limits.max_num_seqs = 1;
  failing.gate = std::make_shared<StepGate>();
  failing.gate->Close();
  Fixture fixture({failing, StubRunnerOptions()});
  Recorder first, queued;
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(5), 100), first.Sink()).ok());
  failing.gate->AwaitBlocked();
  ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(5), 100), queued.Sink()).ok());
  EXPECT_TRUE(fixture.engine->health().ok());
  failing.gate->Open();
  const OutputEvent last = first.Await();
  EXPECT_EQ(last.finish, FinishReason::kError);
  EXPECT_EQ(last.error.code(), StatusCode::kInternal);
  EXPECT_EQ(queued.Await().finish, FinishReason::kError);
  EXPECT_THAT(fixture.engine->health().message(), HasSubstr("stub fails"));
  const Status late = fixture.engine->Submit(MakeRequest(Prompt(5), 5, 1), nullptr).status();
  EXPECT_EQ(late.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(late.message(), HasSubstr("stub fails"));
  fixture.engine->Drain(10);
  EXPECT_EQ(fixture.engine->stats(0).finished_error, 2);
}

TEST(Engine, AnIdleEngineWakesUp) {
  Fixture fixture({StubRunnerOptions()});
  for (int i = 0; i < 3; ++i) {
    Recorder recorder;
    ASSERT_TRUE(fixture.engine->Submit(MakeRequest(Prompt(5, i), 5), recorder.Sink()).ok());
    EXPECT_EQ(recorder.Await().finish, FinishReason::kLength);
  }
  const int64_t steps = fixture.stub().steps();
  EXPECT_EQ(steps, 15);
}

}  // namespace
}  // namespace lserve
