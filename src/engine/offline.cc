#include "engine/offline.h"

#include <algorithm>

namespace lserve {

Result<int32_t> PrefillPrompt(Runner& runner, int32_t slot, std::span<const int32_t> tokens,
                              int64_t first, int64_t chunk_tokens, bool sample,
                              const std::function<void(int64_t)>& progress) {
  CHECK_GE(chunk_tokens, kQueryBlockTokens);
  const auto total = static_cast<int64_t>(tokens.size());
  int32_t token = -1;
  while (first < total) {
    int64_t end = std::min(total, first + chunk_tokens);
    if (end < total) {
      end = end / kQueryBlockTokens * kQueryBlockTokens;
    }
    RETURN_IF_ERROR(runner.Reserve(slot, end));
    StepInput input;
    input.chunks.push_back(PromptChunk{
        .slot = slot,
        .first_position = first,
        .tokens = tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)),
        .sample = sample && end == total});
    ASSIGN_OR_RETURN(const std::vector<SampledToken> sampled, runner.Step(input));
    if (!sampled.empty()) {
      token = sampled[0].token;
    }
    first = end;
    if (progress) {
      progress(first);
    }
  }
  return token;
}

}  // namespace lserve
