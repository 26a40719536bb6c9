// HeadPlan: which KV heads stream and which retrieve (docs/design.md, section 4; LServe
// section 3.2). Immutable values; free functions are thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace lserve {

// Gates in [0, 1], [layers][kv_heads]: how much a head retrieves.
using HeadGates = std::vector<std::vector<double>>;

// Which KV heads stream, by the checkpoint's number layer * kv_heads + head.
using HeadSet = std::vector<bool>;

class HeadPlan {
 public:
  // Every head retrieves.
  static HeadPlan AllRetrieval(int32_t layers, int32_t kv_heads);

  // Over all gates, the lowest floor(share * N + 1/2) KV heads stream; at equal gates the lower
  // (layer, head) streams, so the plan is the same in every process. share in [0, 1].
  static HeadPlan FromGates(const HeadGates& gates, double share);

  int32_t layers() const { return static_cast<int32_t>(order_.size()); }
  int32_t kv_heads() const { return kv_heads_; }
  int32_t retrieval_heads(int32_t layer) const {
    return retrieval_heads_[static_cast<size_t>(layer)];
  }
  const std::vector<int32_t>& retrieval_heads() const { return retrieval_heads_; }
  int32_t total_retrieval_heads() const;

  // The layer's KV heads, retrieval heads first, each group ascending: entry i is the checkpoint's
  // number of the head that operations see as head i.
  const std::vector<int32_t>& order(int32_t layer) const {
    return order_[static_cast<size_t>(layer)];
  }

 private:
  int32_t kv_heads_ = 0;
  std::vector<int32_t> retrieval_heads_;
  std::vector<std::vector<int32_t>> order_;
};

// Reads full_attention_heads.tsv: layers lines of kv_heads tab-separated numbers, the format that
// DuoAttention publishes; values are clipped to [0, 1]. Errors: kNotFound; kInvalidArgument, naming
// line and value (shape, not a number).
Result<HeadGates> ReadHeadGates(const std::string& path, int32_t layers, int32_t kv_heads);

// The same format, 6 decimals.
std::string FormatHeadGates(const HeadGates& gates);

// What a --head-plan names: a file of gates, or a folder as DuoAttention publishes them, with
// full_attention_heads.tsv and, if it is there, config.json with the window that was trained.
struct HeadPlanFiles {
  std::string gates;                                 // the file's path
  std::optional<int64_t> sink_tokens, local_tokens;  // config.json's sink_size and recent_size
};
// Errors: kNotFound (nothing at `path`, no gates in the folder); kInvalidArgument (config.json is
// no JSON, or a size is no integer or out of range).
Result<HeadPlanFiles> FindHeadPlan(const std::string& path);

}  // namespace lserve
