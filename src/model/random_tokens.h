// A long context without a prefill, for benchmarks: random keys and values appended to a sequence's
// cache by the operations that append a prompt's, in every layer, without attention. Free function;
// used by the thread that owns the cache.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/backend.h"
#include "kv/two_lane_cache.h"
#include "model/weights.h"

namespace lserve {

// Appends `tokens` tokens to the slot, at most chunk_tokens at once: queries, keys and values
// before RoPE are normal numbers of deviation 1 that depend on (seed, layer, position) alone. The
// cache is that of a runner of these weights whose steps take chunk_tokens. Waits until it is done.
// Errors: kResourceExhausted (pages, or memory for a chunk); kInternal (the device failed).
Status AppendRandomTokens(Backend& backend, Stream& stream, const ModelWeights& weights,
                          TwoLaneCache& cache, int32_t slot, int64_t tokens, uint64_t seed,
                          int64_t chunk_tokens);

}  // namespace lserve
