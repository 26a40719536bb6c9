// AttentionMode: everything that decides what a sequence's heads attend to; one a served model.
// A value.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "kernels/kv_layout.h"
#include "kernels/ops.h"
#include "sparse/head_plan.h"

namespace lserve {

struct AttentionMode {
  std::string name;  // "lserve" or "dense"
  HeadPlan plan;
  int32_t sink_tokens = 128;   // streaming heads
  int32_t local_tokens = 256;  // streaming heads, the current token included
  PageScore score = PageScore::kMinMax;
  KvFormat kv_format = KvFormat::kBFloat16;  // of closed pages; float32 activations keep float32
  SelectionPolicy policy{.token_budget = 4096, .unit_tokens = 64, .reuse_interval = 1};
  PrefillPolicy prefill = {};  // retrieval heads; threshold 0: nothing is left out

  // The plan in which every head retrieves and the budget is unbounded. Head order follows `plan`:
  // weights are permuted once, for all modes that share them.
  static AttentionMode Dense(const HeadPlan& plan, KvFormat kv_format = KvFormat::kBFloat16);

  // KV heads that retrieve, by layer: all of them under dense.
  std::vector<int32_t> retrieval_heads() const;
  bool dense() const { return policy.token_budget == 0; }
};

// Errors: kInvalidArgument, naming the setting and its value.
Status Validate(const AttentionMode& mode);

}  // namespace lserve
