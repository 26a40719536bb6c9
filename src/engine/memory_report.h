// MemoryReport: what a runner's memory is for and what fits into it, as commands say it at the
// start and results repeat it. A value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/loaded_model.h"

namespace lserve {

struct MemoryReport {
  int64_t weight_bytes = 0;
  int64_t activation_bytes = 0;  // activations, logits, workspace
  int64_t cache_bytes = 0;       // of all pools of the KV cache
  // KV heads of all layers, by lane.
  int64_t retrieval_heads = 0;
  int64_t streaming_heads = 0;
  // Of a sequence: every token in the retrieval lane, a constant size in the streaming lane.
  double retrieval_bytes_per_token = 0;
  int64_t streaming_bytes_per_sequence = 0;
  int64_t pool_pages = 0;           // of the retrieval lane
  int64_t context_tokens = 0;       // of the longest sequence that fits
  int64_t tokens = 0;               // that fit in all
  int64_t tokens_per_sequence = 0;  // with as many sequences as may run
  int64_t max_num_seqs = 0;

  OrderedJson ToJson() const;
  std::vector<std::string> Lines() const;
};

// Of a runner of this model.
MemoryReport ReportMemory(const LoadedModel& model, const LlamaRunner& runner);

}  // namespace lserve
