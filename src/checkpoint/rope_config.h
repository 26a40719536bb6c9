// Reads the RoPE part of a config.json; a part of checkpoint/model_config. Pure functions,
// thread-safe.
#pragma once

#include <cstdint>

#include "base/json.h"
#include "base/status.h"
#include "checkpoint/rope.h"

namespace lserve {

// RoPE angles need positions that float32 holds exactly.
constexpr int64_t kMaxPositions = int64_t{1} << 24;

// From a whole config.json: `rope_theta` and `rope_scaling` as older files have them, or
// `rope_parameters`; where both are there, the precedence is that of transformers.
// Errors: kInvalidArgument, kUnimplemented; they name field and value.
Result<RopeConfig> ParseRopeConfig(const Json& json, int64_t max_position_embeddings);

// Tokens that the model can attend over. Linear scaling and yarn are often switched on without
// max_position_embeddings being raised: linear multiplies it by the factor, yarn reaches the
// original length times the factor. Errors: kInvalidArgument (above kMaxPositions).
Result<int64_t> StretchedContext(const RopeConfig& rope, int64_t max_position_embeddings);

}  // namespace lserve
