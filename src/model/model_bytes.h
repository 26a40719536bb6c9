// What a model's weights take, before they are loaded. Pure functions, thread-safe.
#pragma once

#include <cstdint>

#include "checkpoint/model_config.h"
#include "kernels/backend.h"
#include "tensor/dtype.h"

namespace lserve {

// Of the block of ModelWeights that holds all but the embedding: matrices as the backend packs
// them, vectors of the activations' dtype.
int64_t PackedWeightBytes(const ModelConfig& config, DType activations, const Backend& backend);

// The same and a bf16 embedding.
int64_t WeightBytes(const ModelConfig& config, DType activations, const Backend& backend);

}  // namespace lserve
