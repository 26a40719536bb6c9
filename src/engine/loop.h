// Engine::Loop: the engine's thread and what it shares with the callers. The shared part is guarded
// by one mutex; runners, schedulers and requests belong to the thread alone. Sinks are called
// without the mutex held.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler.h"
#include "engine/text_output.h"

namespace lserve {

class Engine::Loop {
 public:
  Loop(std::vector<std::unique_ptr<Runner>> runners, std::shared_ptr<const Tokenizer> tokenizer,
       EngineOptions options);
  ~Loop();

  // See engine.h.
  Result<RequestId> Submit(Request request, OutputSink sink);
  void Cancel(RequestId id);
  void Drain(double seconds);
  Status health() const;
  int32_t num_models() const { return static_cast<int32_t>(models_.size()); }
  const RunnerLimits& limits(int32_t model) const;
  EngineModelStats stats(int32_t model) const;

 private:
  // A request from submission to its last event.
  struct Active {
    RequestId id = 0;
    Request request;
    std::shared_ptr<const OutputSink> sink;
    int64_t max_new_tokens = 0;
    std::unique_ptr<TextOutput> text;
    RequestStats stats;
    std::vector<int32_t> generated;
    int32_t slot = -1;
    bool fed = false;       // the slot's last sampled token is the one to feed next
    bool admitted = false;  // once in its life
    double submitted = 0;   // NowSeconds()
    double first_chunk = -1;
    double first_token = -1;
  };

  struct Model {
    std::unique_ptr<Runner> runner;
    RunnerLimits limits;
    SchedulerState scheduler;
    CostFit cost;
    EngineModelStats stats;  // the thread's copy; published_ is what callers see
  };

  struct News {
    std::shared_ptr<const OutputSink> sink;
    OutputEvent event;
  };

  // Everything that is wrong with a request whatever the engine's state; sets max_new_tokens. Runs
  // on the callers' threads: reads only limits and Runner::PagesFor, which are constant.
  Status CheckRequest(Active* active) const;

  void Run(const std::stop_token& stop);
  // Waits for work, then takes what callers sent. False: stop.
  bool TakeInput(const std::stop_token& stop);
  // Hands new requests to their schedulers.
  void Enqueue(std::vector<std::unique_ptr<Active>> incoming);
  Model* NextModel();
  void RunStep(Model* model);
  Status PrepareStep(Model* model, const StepPlan& plan, StepInput* input);
  Status OpenPlanned(Model* model, const PlannedAdmission& admission);
  void AccountPrefill(Model* model, const PlannedChunk& chunk, double started);
  // Takes in a sampled token; the finish reason, or kNone.
  FinishReason TakeToken(Active* active, int32_t token, double now, OutputEvent* event);
  // Ends the request: frees what it holds, queues its last event.
  void End(RequestId id, FinishReason reason, const Status& error);
  void EndAll(FinishReason reason, const Status& error);
  void Fail(const Status& error);
  void AddNews(const Active& active, OutputEvent event);
  // Publishes the counters, then calls the sinks.
  void Deliver();

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const EngineOptions options_;

  // The thread's own.
  std::vector<Model> models_;
  std::map<RequestId, std::unique_ptr<Active>> active_;
  size_t last_model_ = 0;
  std::vector<News> news_;
  int64_t ended_ = 0;     // requests whose last event is in news_
  int64_t dequeued_ = 0;  // requests that left the queue since the last Deliver
  bool runners_failed_ = false;

  // Shared, guarded by mutex_.
  mutable std::mutex mutex_;
  std::condition_variable_any wake_;  // to the thread
  std::condition_variable idle_;      // to Drain
  std::vector<std::unique_ptr<Active>> incoming_;
  std::vector<RequestId> cancels_;
  bool cancel_all_ = false;
  bool draining_ = false;
  bool running_ = true;  // the thread runs and the device works
  Status failure_;
  RequestId last_id_ = 0;
  int64_t queued_ = 0;  // requests never admitted yet
  int64_t live_ = 0;    // requests whose last event is still to come
  std::vector<EngineModelStats> published_;

  std::jthread thread_;  // last: it starts when all else is there
};

}  // namespace lserve
