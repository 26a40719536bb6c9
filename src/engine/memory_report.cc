#include "engine/memory_report.h"

#include <algorithm>

#include "model/model_bytes.h"

namespace lserve {

MemoryReport ReportMemory(const LoadedModel& model, const LlamaRunner& runner) {
  const CacheConfig& cache = runner.cache().config();
  MemoryReport report;
  report.weight_bytes = WeightBytes(model.config, model.ActivationsDType());
  report.activation_bytes = runner.ActivationBytes();
  report.cache_bytes = cache.FixedBytes() + cache.retrieval_pages * cache.RetrievalPageBytes();
  report.retrieval_bytes_per_token = static_cast<double>(cache.RetrievalPageBytes()) / kPageTokens;
  report.streaming_bytes_per_sequence =
      (int64_t{cache.sink_pages()} + cache.ring_pages()) * cache.StreamingPageBytes();
  report.pool_pages = cache.retrieval_pages;
  report.max_num_seqs = cache.max_slots;
  // A sequence's newest page lies in its slot, not in the pool.
  const auto tokens_of = [&](int64_t pages) {
    return std::min((pages + 1) * kPageTokens, cache.max_model_len);
  };
  report.tokens_per_sequence = tokens_of(cache.retrieval_pages / cache.max_slots);
  report.tokens = std::min((cache.retrieval_pages + cache.max_slots) * kPageTokens,
                           cache.max_model_len * cache.max_slots);
  return report;
}

OrderedJson MemoryReport::ToJson() const {
  return {{"weight_bytes", weight_bytes},
          {"activation_bytes", activation_bytes},
          {"cache_bytes", cache_bytes},
          {"retrieval_bytes_per_token", retrieval_bytes_per_token},
          {"streaming_bytes_per_sequence", streaming_bytes_per_sequence},
          {"pool_pages", pool_pages},
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
      fmt::format("KV cache: {:.0f} bytes a token in the retrieval lane, {:.2f} MiB a sequence in "
                  "the streaming lane",
                  retrieval_bytes_per_token, mib(streaming_bytes_per_sequence)),
      fmt::format("KV cache: {} pages, {} tokens in all, {} a sequence with {} side by side",
                  pool_pages, tokens, tokens_per_sequence, max_num_seqs)};
}

}  // namespace lserve
