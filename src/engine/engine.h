// Engine: one thread that owns runners, caches and schedulers, and serves requests from any thread.
// Public methods are thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/request.h"
#include "model/runner.h"
#include "text/tokenizer.h"

namespace lserve {

struct EngineOptions {
  int32_t max_batched_tokens = 2048;  // rows of one step
  double prefill_step_seconds = 1.0;  // a step's target length when nothing decodes
  double decode_step_seconds = 0.25;  // and while something decodes
  int32_t max_partial_prefills = 4;   // prompts prefilled side by side
  int32_t max_waiting = 1024;         // queued requests; more are refused
  std::vector<int32_t> eos_token_ids;
};

// Counters and gauges of one served model, for /metrics and the log line.
struct EngineModelStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t prompt_tokens = 0;      // prefilled, total
  int64_t generation_tokens = 0;  // total
  int64_t preemptions = 0;
  int64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0;
  int64_t kv_pages_used = 0, kv_pages = 0;
  SelectionStats selection;  // as of the last request that ended
};

class Engine {
 public:
  // One runner a served model (attention mode), all on one backend. Starts the thread.
  Engine(std::vector<std::unique_ptr<Runner>> runners, std::shared_ptr<const Tokenizer> tokenizer,
         EngineOptions options);
  // Stops: what still runs ends with kCancelled.
  ~Engine();

  // Queues a request. Errors, nothing queued: kInvalidArgument (empty prompt, token out of range,
  // sampling out of range, unknown model), kInvalidArgument with "maximum context length" and both
  // numbers (prompt too long for the context), kResourceExhausted (more than the cache could ever
  // hold; or the queue is full, which is said), kFailedPrecondition (draining or failed).
  Result<RequestId> Submit(Request request, OutputSink sink);

  // Ends a request at the next step boundary, in prefill as in decode; its sink gets kCancelled.
  // An unknown or finished id is ignored.
  void Cancel(RequestId id);

  // No new requests from here on; returns once the running ones have ended or `seconds` have
  // passed, when the rest is cancelled.
  void Drain(double seconds);

  // OK until the device has failed or the thread has stopped; from then on why. /health tells.
  Status health() const;

  int32_t num_models() const;
  const RunnerLimits& limits(int32_t model) const;
  EngineModelStats stats(int32_t model) const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace lserve
