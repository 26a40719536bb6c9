// Driving a runner without an engine, for evaluation and benchmarks: one caller, no queue.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/status.h"
#include "model/runner.h"

namespace lserve {

inline constexpr SlotSampling kGreedySampling{.temperature = 0,
                                              .top_p = 1,
                                              .min_p = 0,
                                              .repetition_penalty = 1,
                                              .presence_penalty = 0,
                                              .frequency_penalty = 0,
                                              .top_k = 0,
                                              .penalties = 0,
                                              .seed = 0};

// Runs tokens[first, size) of a prompt whose first `first` tokens the slot holds, in chunks of at
// most chunk_tokens that end on multiples of 128. With `sample` returns the token sampled after the
// last one, else -1. `progress` hears how many tokens the slot holds after each chunk.
// Errors: those of Reserve and Step.
Result<int32_t> PrefillPrompt(Runner& runner, int32_t slot, std::span<const int32_t> tokens,
                              int64_t first, int64_t chunk_tokens, bool sample,
                              const std::function<void(int64_t)>& progress = nullptr);

}  // namespace lserve
