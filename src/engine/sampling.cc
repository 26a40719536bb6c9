#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lserve {
namespace {

// Written as !(inside), so that NaN is outside every range.
Status CheckClosed(const char* field, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    return InvalidArgument("{} must be in [{}, {}], but is {}", field, low, high, value);
  }
  return OkStatus();
}

Status CheckHalfOpen(const char* field, double value, double low, double high) {
  if (!(value > low && value <= high)) {
    return InvalidArgument("{} must be in ({}, {}], but is {}", field, low, high, value);
  }
  return OkStatus();
}

float PositiveFloat(double value) {
  return std::max(static_cast<float>(value), std::numeric_limits<float>::min());
}

}  // namespace

Status Validate(const SamplingParams& params) {
  RETURN_IF_ERROR(CheckClosed("temperature", params.temperature, 0.0, 2.0));
  RETURN_IF_ERROR(CheckHalfOpen("top_p", params.top_p, 0.0, 1.0));
  if (params.top_k < -1 || params.top_k > kMaxTopK) {
    return InvalidArgument("top_k must be -1 or 0 (all) or in [1, {}], but is {}", kMaxTopK,
                           params.top_k);
  }
  RETURN_IF_ERROR(CheckClosed("min_p", params.min_p, 0.0, 1.0));
  RETURN_IF_ERROR(CheckHalfOpen("repetition_penalty", params.repetition_penalty, 0.0, 10.0));
  RETURN_IF_ERROR(CheckClosed("presence_penalty", params.presence_penalty, -2.0, 2.0));
  RETURN_IF_ERROR(CheckClosed("frequency_penalty", params.frequency_penalty, -2.0, 2.0));
  if (params.max_tokens != -1 && params.max_tokens < 1) {
    return InvalidArgument("max_tokens must be at least 1, but is {}", params.max_tokens);
  }
  if (params.stop.size() > static_cast<size_t>(kMaxStopStrings)) {
    return InvalidArgument("stop may hold at most {} strings, but holds {}", kMaxStopStrings,
                           params.stop.size());
  }
  for (const std::string& stop : params.stop) {
    if (stop.empty() || stop.size() > static_cast<size_t>(kMaxStopStringBytes)) {
      return InvalidArgument("a string in stop must have 1 to {} bytes, but one has {}",
                             kMaxStopStringBytes, stop.size());
    }
  }
  if (params.stop_token_ids.size() > static_cast<size_t>(kMaxStopTokenIds)) {
    return InvalidArgument("stop_token_ids may hold at most {} tokens, but holds {}",
                           kMaxStopTokenIds, params.stop_token_ids.size());
  }
  for (const int32_t token : params.stop_token_ids) {
    if (token < 0) return InvalidArgument("stop_token_ids holds {}, not a token", token);
  }
  return OkStatus();
}

SamplingParams DefaultSampling(const GenerationDefaults& recommended) {
  SamplingParams params;
  params.repetition_penalty =
      std::min(recommended.repetition_penalty.value_or(params.repetition_penalty), 10.0);
  if (!recommended.do_sample.value_or(true)) {
    params.temperature = 0;
    return params;
  }
  params.temperature = std::min(recommended.temperature.value_or(params.temperature), 2.0);
  params.top_p = recommended.top_p.value_or(params.top_p);
  params.top_k = std::min<int64_t>(recommended.top_k.value_or(params.top_k), kMaxTopK);
  params.min_p = recommended.min_p.value_or(params.min_p);
  return params;
}

SlotSampling ToSlotSampling(const SamplingParams& params) {
  SlotSampling out = {};
  out.temperature =
      params.temperature < kGreedyTemperature ? 0.0f : static_cast<float>(params.temperature);
  out.top_p = PositiveFloat(params.top_p);
  out.min_p = static_cast<float>(params.min_p);
  out.repetition_penalty = PositiveFloat(params.repetition_penalty);
  out.presence_penalty = static_cast<float>(params.presence_penalty);
  out.frequency_penalty = static_cast<float>(params.frequency_penalty);
  out.top_k = static_cast<int32_t>(std::max<int64_t>(params.top_k, 0));
  out.penalties = out.repetition_penalty != 1.0f || out.presence_penalty != 0.0f ||
                  out.frequency_penalty != 0.0f;
  out.seed = params.seed;
  return out;
}

}  // namespace lserve
