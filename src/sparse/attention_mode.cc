#include "sparse/attention_mode.h"

namespace lserve {

AttentionMode AttentionMode::Dense(const HeadPlan& plan, KvFormat kv_format) {
  AttentionMode mode;
  mode.name = "dense";
  mode.plan = plan;
  mode.sink_tokens = 0;
  mode.local_tokens = 1;
  mode.score = PageScore::kNone;
  mode.kv_format = kv_format;
  mode.policy = SelectionPolicy{.token_budget = 0, .unit_tokens = 64, .reuse_interval = 1};
  return mode;
}

std::vector<int32_t> AttentionMode::retrieval_heads() const {
  if (dense()) {
    return std::vector<int32_t>(static_cast<size_t>(plan.layers()), plan.kv_heads());
  }
  return plan.retrieval_heads();
}

Status Validate(const AttentionMode& mode) {
  constexpr int32_t kMaxWindow = 1 << 20;
  if (mode.sink_tokens < 0 || mode.sink_tokens > kMaxWindow) {
    return InvalidArgument("sink tokens {} is outside 0 to {}", mode.sink_tokens, kMaxWindow);
  }
  if (mode.local_tokens < 1 || mode.local_tokens > kMaxWindow) {
    return InvalidArgument("local tokens {} is outside 1 to {}", mode.local_tokens, kMaxWindow);
  }
  RETURN_IF_ERROR(Validate(mode.policy));
  return Validate(mode.prefill);
}

}  // namespace lserve
