#include "engine/memory_report.h"

#include <algorithm>
#include <numeric>

#include "model/model_bytes.h"

namespace lserve {

MemoryReport ReportMemory(const LoadedModel& model, const LlamaRunner& runner) {
  const CacheConfig& cache = runner.cache().config();
  MemoryReport report;
  report.weight_bytes = WeightBytes(model.config, model.ActivationsDType(), *model.backend);
  report.activation_bytes = runner.ActivationBytes();
  report.cache_bytes = cache.FixedBytes() + cache.retrieval_pages * cache.RetrievalPageBytes();
  report.retrieval_heads =
      std::accumulate(cache.retrieval_heads.begin(), cache.retrieval_heads.end(), int64_t{0});
  report.streaming_heads =
      std::ssize(cache.retrieval_heads) * cache.kv_heads - report.retrieval_heads;
  report.retrieval_bytes_per_token = static_cast<double>(cache.RetrievalPageBytes()) / kPageTokens;
  report.streaming_bytes_per_sequence =
      (int64_t{cache.sink_pages()} + cache.ring_pages()) * cache.StreamingPageBytes();
  report.pool_pages = cache.retrieval_pages;
  report.max_num_seqs = cache.max_slots;
  // A sequence's newest page lies in its slot, not in the pool.
  const auto tokens_of = [&](int64_t pages) {
    return std::min((pages + 1) * kPageTokens, cache.max_model_len);
  };
  report.context_tokens = tokens_of(cache.retrieval_pages);
  report.tokens_per_sequence = tokens_of(cache.retrieval_pages / cache.max_slots);
  report.tokens = std::min((cache.retrieval_pages + cache.max_slots) * kPageTokens,
                           cache.max_model_len * cache.max_slots);
  return report;
}

OrderedJson MemoryReport::ToJson() const {
  return {{"weight_bytes", weight_bytes},
          {"activation_bytes", activation_bytes},
          {"cache_bytes", cache_bytes},
          {"retrieval_heads", retrieval_heads},
          {"streaming_heads", streaming_heads},
          {"retrieval_bytes_per_token", retrieval_bytes_per_token},
          {"streaming_bytes_per_sequence", streaming_bytes_per_sequence},
          {"pool_pages", pool_pages},
          {"context_tokens", context_tokens},
          {"tokens", tokens},
          {"tokens_per_sequence", tokens_per_sequence},
          {"max_num_seqs", max_num_seqs}};
}

std::vector<std::string> MemoryReport::Lines() const {
  constexpr double kMiB = 1024.0 * 1024.0;
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / kMiB; };
  return {
      fmt::format("memory: weights {:.1f} MiB, activations {:.1f}, KV cache {:.1f}",
                  mib(weight_bytes), mib(activation_bytes), mib(cache_bytes)),
      fmt::format("KV cache: {:.0f} bytes a token in the retrieval lane ({} KV heads), {:.2f} MiB "
                  "a sequence in the streaming lane ({} KV heads)",
                  retrieval_bytes_per_token, retrieval_heads, mib(streaming_bytes_per_sequence),
                  streaming_heads),
      fmt::format("KV cache: {} pages; a context of {} tokens fits, {} a sequence with {} side by "
                  "side, {} tokens in all",
                  pool_pages, context_tokens, tokens_per_sequence, max_num_seqs, tokens)};
}

}  // namespace lserve
