// Settings: everything a user can set about a model's serving, in one list of fields. The list
// feeds flags and --help, the start-up report, /metrics and every JSON result, so a result names
// its settings. A value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// A window size that comes with the head plan, else is LServe's: 128 sink and 256 local tokens.
inline constexpr int64_t kWindowOfPlan = -1;
// Of decode_dense_tokens: kGpuDenseTokens on a device with memory of its own, else 0.
inline constexpr int64_t kDenseTokensOfDevice = -1;
inline constexpr int64_t kGpuDenseTokens = 8192;

struct Settings {
  std::string attention = "lserve";
  double streaming_share = 0.5;
  int64_t sink_tokens = kWindowOfPlan;
  int64_t local_tokens = kWindowOfPlan;
  int64_t token_budget = 4096;
  std::string page_score = "minmax";
  int64_t selection_unit = 64;
  int64_t decode_dense_tokens = kDenseTokensOfDevice;
  std::string reuse_interval = "1";
  std::string prefill_attention = "static";
  double prefill_threshold = 0.01;
  int64_t prefill_dense_tokens = 0;
  std::string head_plan;
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  int64_t max_model_len = 0;
  int64_t max_num_seqs = 8;
  int64_t max_num_batched_tokens = 2048;
  double kv_cache_gib = 0;
  double audit_rate = 0;
  double gpu_memory_utilization = 0.9;
  int64_t tensor_parallel_size = 1;
  std::string device = "auto";
  int64_t threads = 0;

  // visit(flag, field, help) for each field, in the order of --help.
  template <typename Self, typename Visitor>
  static void ForEach(Self& s, Visitor&& visit) {
    visit("attention", s.attention,
          "lserve or dense; a comma-separated list in serve, eval and bench");
    visit("streaming-share", s.streaming_share,
          "share of KV heads that stream (sink and local window only), 0 to 1");
    visit("sink-tokens", s.sink_tokens,
          "first tokens that streaming heads always see; -1: the head plan's, else 128");
    visit("local-tokens", s.local_tokens,
          "newest tokens that streaming heads see; -1: the head plan's, else 256");
    visit("token-budget", s.token_budget,
          "tokens that a retrieval head reads in decode; a multiple of the selection unit");
    visit("page-score", s.page_score, "what ranks the units of a retrieval head: minmax or sketch");
    visit("selection-unit", s.selection_unit, "tokens selected together: 64, 32 or 16");
    visit(
        "decode-dense-tokens", s.decode_dense_tokens,
        "contexts of so many tokens are read whole, whatever the budget; -1: 8192 on a GPU, where "
        "choosing takes longer, else 0");
    visit(
        "reuse-interval", s.reuse_interval,
        "decode steps that share one selection, or auto: until the query moves away (auto:DISTANCE "
        "sets how far, as a share of its length)");
    visit(
        "prefill-attention", s.prefill_attention,
        "what retrieval heads read in prefill: static (everything) or dynamic (each row leaves out "
        "blocks of keys that weigh too little)");
    visit("prefill-threshold", s.prefill_threshold,
          "dynamic: a row leaves out a block whose largest weight is below this share of the row's "
          "largest so far, 0 to 1");
    visit("prefill-dense-tokens", s.prefill_dense_tokens,
          "dynamic: rows at positions below it read everything");
    visit("head-plan", s.head_plan,
          "gates of the KV heads, or a folder that DuoAttention published (default: "
          "full_attention_heads.tsv in the model folder)");
    visit("dtype", s.dtype, "activations and weights: auto, bfloat16 or float32 (ref only)");
    visit("kv-cache-dtype", s.kv_cache_dtype,
          "format of closed pages: auto (bf16), bf16, int8 or int4");
    visit("max-model-len", s.max_model_len, "context of a sequence in tokens; 0: the model's own");
    visit("max-num-seqs", s.max_num_seqs, "sequences that run side by side");
    visit("max-num-batched-tokens", s.max_num_batched_tokens, "prompt tokens of one step");
    visit("kv-cache-gib", s.kv_cache_gib,
          "KV cache of each attention mode in GiB; 0: full contexts, within free memory or what "
          "--gpu-memory-utilization leaves");
    visit("audit-rate", s.audit_rate,
          "share of decode steps in which the selection is compared with dense attention, 0 to 1");
    visit("gpu-memory-utilization", s.gpu_memory_utilization, "share of GPU memory to use");
    visit("tensor-parallel-size", s.tensor_parallel_size, "GPUs of one model: 1");
    visit("device", s.device, "auto, cpu, cuda or ref");
    visit("threads", s.threads, "compute threads; 0: one a core");
  }

  // The attention modes named by `attention`, in order. Errors: kInvalidArgument (a name that is
  // neither lserve nor dense, a name twice, none).
  Result<std::vector<std::string>> AttentionNames() const;

  OrderedJson ToJson() const;
};

// When a selection is made anew (SelectionPolicy).
struct Reuse {
  int32_t interval = 1;
  float distance = 0;
};

// --reuse-interval auto: a selection lives at most so many steps, and ends when a query of its
// group has moved by more than this share of its length (docs/accuracy.md has the measurements).
inline constexpr int32_t kAutoReuseInterval = 16;
inline constexpr float kAutoReuseDistance = 0.9f;

// What --reuse-interval says. Errors: kInvalidArgument, naming the value.
Result<Reuse> ParseReuse(const std::string& text);

// Ranges that do not depend on the model. Errors: kInvalidArgument, kUnimplemented; the flag and
// its value are named.
Status Validate(const Settings& settings);

}  // namespace lserve
