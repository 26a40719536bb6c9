// What a model's weights take, before they are loaded. A pure function, thread-safe.
#pragma once

#include <cstdint>

#include "checkpoint/model_config.h"
#include "tensor/dtype.h"

namespace lserve {

// Bytes of ModelWeights of this configuration, without what a backend pads: matrices and vectors of
// the activations' dtype, a bf16 embedding.
int64_t WeightBytes(const ModelConfig& config, DType activations);

}  // namespace lserve
