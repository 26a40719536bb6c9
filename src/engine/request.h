// What a client asks of the engine and what it gets back. Values.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace lserve {

// Bounds of what a request may ask for; out of range is kInvalidArgument, naming the value.
inline constexpr int32_t kMaxStopStrings = 16;
inline constexpr int32_t kMaxStopStringBytes = 1024;
inline constexpr int32_t kMaxTopK = 1 << 20;
inline constexpr int32_t kMaxStopTokenIds = 1024;

struct SamplingParams {
  double temperature = 1.0;         // [0, 2]; 0: greedy
  double top_p = 1.0;               // (0, 1]
  int64_t top_k = 0;                // 0 or -1: all; else 1 to kMaxTopK
  double min_p = 0.0;               // [0, 1]
  double repetition_penalty = 1.0;  // (0, 10]
  double presence_penalty = 0.0;    // [-2, 2]
  double frequency_penalty = 0.0;   // [-2, 2]
  uint64_t seed = 0;
  int64_t max_tokens = -1;  // -1: what the context leaves; else >= 1
  bool ignore_eos = false;
  std::vector<std::string> stop;  // at most kMaxStopStrings, each 1 to kMaxStopStringBytes bytes
  std::vector<int32_t> stop_token_ids;  // at most kMaxStopTokenIds
};

// Errors: kInvalidArgument, naming the field and the value; NaN is out of every range.
Status Validate(const SamplingParams& params);

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int32_t model = 0;  // index of the served model (attention mode)
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kError };

const char* FinishReasonName(
    FinishReason reason);  // "stop", "length", "abort", "error"; "" if none

struct RequestStats {
  int64_t prompt_tokens = 0;
  int64_t prefilled_tokens = 0;  // so far
  int64_t generated_tokens = 0;
  double queue_seconds = 0;    // from submission to the first chunk
  double prefill_seconds = 0;  // from the first chunk to the first token
  double decode_seconds = 0;   // from the first token to the last
  int64_t kv_bytes = 0;        // in use when this was written
};

// News of a request, in order. The last one has a finish reason.
struct OutputEvent {
  std::string text;             // what became certain; may be empty
  std::vector<int32_t> tokens;  // newly generated token ids
  FinishReason finish = FinishReason::kNone;
  Status error;  // set under kError
  RequestStats stats;
};

// Called by the engine's thread; must return quickly and never call the engine back except Cancel.
using OutputSink = std::function<void(const OutputEvent&)>;

using RequestId = int64_t;

}  // namespace lserve
