#include "engine/settings.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>
#include <string_view>

namespace lserve {
namespace {

Status CheckRange(const char* flag, int64_t value, int64_t low, int64_t high) {
  return value >= low && value <= high
             ? OkStatus()
             : InvalidArgument("--{} {} is outside {} to {}", flag, value, low, high);
}

Status CheckRange(const char* flag, double value, double low, double high) {
  return std::isfinite(value) && value >= low && value <= high
             ? OkStatus()
             : InvalidArgument("--{} {} is outside {} to {}", flag, value, low, high);
}

Status CheckOneOf(const char* flag, const std::string& value,
                  const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) {
    return OkStatus();
  }
  return InvalidArgument("--{} \"{}\" is none of {}", flag, value, fmt::join(known, ", "));
}

}  // namespace

Result<std::vector<std::string>> Settings::AttentionNames() const {
  std::vector<std::string> names;
  std::istringstream list(attention);
  for (std::string name; std::getline(list, name, ',');) {
    RETURN_IF_ERROR(CheckOneOf("attention", name, {"lserve", "dense"}));
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      return InvalidArgument("--attention \"{}\" names {} twice", attention, name);
    }
    names.push_back(name);
  }
  if (names.empty()) {
    return InvalidArgument("--attention names no mode");
  }
  return names;
}

Result<Reuse> ParseReuse(const std::string& text) {
  constexpr std::string_view kAuto = "auto";
  constexpr int32_t kMaxInterval = 1 << 20;
  const auto refuse = [&] {
    return InvalidArgument(
        "--reuse-interval \"{}\" is neither a number from 1 to {} nor auto nor auto:DISTANCE with "
        "a distance above 0, up to 2",
        text, kMaxInterval);
  };
  Reuse reuse;
  const char* const end = text.data() + text.size();
  if (!text.starts_with(kAuto)) {
    const auto [last, error] = std::from_chars(text.data(), end, reuse.interval);
    return error == std::errc() && last == end && reuse.interval >= 1 &&
                   reuse.interval <= kMaxInterval
               ? Result<Reuse>(reuse)
               : refuse();
  }
  reuse = Reuse{.interval = kAutoReuseInterval, .distance = kAutoReuseDistance};
  if (text.size() > kAuto.size()) {
    const char* const number = text.data() + kAuto.size() + 1;
    const auto [last, error] = std::from_chars(number, end, reuse.distance);
    if (text[kAuto.size()] != ':' || error != std::errc() || last != end ||
        !(reuse.distance > 0.0f && reuse.distance <= 2.0f)) {
      return refuse();
    }
  }
  return reuse;
}

OrderedJson Settings::ToJson() const {
  OrderedJson json;
  ForEach(*this, [&](std::string flag, const auto& value, const char*) {
    std::replace(flag.begin(), flag.end(), '-', '_');
    json[flag] = value;
  });
  return json;
}

Status Validate(const Settings& s) {
  RETURN_IF_ERROR(s.AttentionNames().status());
  RETURN_IF_ERROR(CheckRange("streaming-share", s.streaming_share, 0.0, 1.0));
  if (s.sink_tokens != kWindowOfPlan) {
    RETURN_IF_ERROR(CheckRange("sink-tokens", s.sink_tokens, 0, 1 << 20));
  }
  if (s.local_tokens != kWindowOfPlan) {
    RETURN_IF_ERROR(CheckRange("local-tokens", s.local_tokens, 1, 1 << 20));
  }
  RETURN_IF_ERROR(CheckRange("token-budget", s.token_budget, 1, 1 << 24));
  RETURN_IF_ERROR(CheckOneOf("page-score", s.page_score, {"minmax", "sketch"}));
  if (s.selection_unit != 64 && s.selection_unit != 32 && s.selection_unit != 16) {
    return InvalidArgument("--selection-unit {} is none of 64, 32, 16", s.selection_unit);
  }
  if (s.token_budget % s.selection_unit != 0 || s.token_budget < 64 + 3 * s.selection_unit) {
    return InvalidArgument(
        "--token-budget {} is not a multiple of the selection unit {} and at least {}",
        s.token_budget, s.selection_unit, 64 + 3 * s.selection_unit);
  }
  if (s.decode_dense_tokens != kDenseTokensOfDevice) {
    RETURN_IF_ERROR(CheckRange("decode-dense-tokens", s.decode_dense_tokens, 0, 1 << 30));
  }
  RETURN_IF_ERROR(ParseReuse(s.reuse_interval).status());
  RETURN_IF_ERROR(CheckOneOf("prefill-attention", s.prefill_attention, {"static", "dynamic"}));
  RETURN_IF_ERROR(CheckRange("prefill-threshold", s.prefill_threshold, 0.0, 1.0));
  RETURN_IF_ERROR(CheckRange("prefill-dense-tokens", s.prefill_dense_tokens, 0, 1 << 30));
  RETURN_IF_ERROR(CheckOneOf("dtype", s.dtype, {"auto", "bfloat16", "float32"}));
  RETURN_IF_ERROR(CheckOneOf("kv-cache-dtype", s.kv_cache_dtype, {"auto", "bf16", "int8", "int4"}));
  if (s.dtype == "float32" && s.kv_cache_dtype != "auto") {
    return InvalidArgument("--kv-cache-dtype {} needs bfloat16 activations, --dtype is float32",
                           s.kv_cache_dtype);
  }
  RETURN_IF_ERROR(CheckRange("max-model-len", s.max_model_len, 0, int64_t{1} << 30));
  RETURN_IF_ERROR(CheckRange("max-num-seqs", s.max_num_seqs, 1, 1024));
  RETURN_IF_ERROR(CheckRange("max-num-batched-tokens", s.max_num_batched_tokens, 128, 1 << 17));
  RETURN_IF_ERROR(CheckRange("kv-cache-gib", s.kv_cache_gib, 0.0, 1 << 20));
  RETURN_IF_ERROR(CheckRange("audit-rate", s.audit_rate, 0.0, 1.0));
  RETURN_IF_ERROR(CheckRange("gpu-memory-utilization", s.gpu_memory_utilization, 0.05, 1.0));
  if (s.tensor_parallel_size != 1) {
    return Unimplemented("--tensor-parallel-size {}: only 1 is supported", s.tensor_parallel_size);
  }
  RETURN_IF_ERROR(CheckOneOf("device", s.device, {"auto", "cpu", "cuda", "ref"}));
  return CheckRange("threads", s.threads, 0, 1024);
}

}  // namespace lserve
