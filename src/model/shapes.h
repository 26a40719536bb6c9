// Shapes: models without a file, for benchmarks: the sizes of a real model, random weights
// (ModelWeights::Random) and a stated head plan. Values and pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/model_config.h"
#include "sparse/head_plan.h"

namespace lserve {

// Weights of every shape come from this seed.
inline constexpr uint64_t kShapeSeed = 1;

struct ModelShape {
  std::string name;
  // Context: 1,048,576 tokens, by plain RoPE of the model's own theta.
  ModelConfig config;
  // Uneven: at a streaming share of 0.5 half of all KV heads retrieve, none of them in one layer,
  // one to all of a layer's in the others. The same numbers of heads for the same sizes.
  HeadGates gates;
};

// In the order of --help.
std::vector<std::string> ShapeNames();

// Errors: kInvalidArgument, naming the value and what there is.
Result<ModelShape> FindShape(const std::string& name);

}  // namespace lserve
