#include "model/shapes.h"

#include <algorithm>
#include <numeric>

#include "base/random.h"

namespace lserve {
namespace {

constexpr int64_t kContext = int64_t{1} << 20;

struct Sizes {
  const char* name;
  int64_t layers, q_heads, kv_heads, head_dim, hidden, intermediate, vocab;
  double theta;
};

constexpr Sizes kShapes[] = {
    {"llama-3-8b", 32, 32, 8, 128, 4096, 14336, 128256, 500000.0},
    {"llama-2-7b", 32, 32, 32, 128, 4096, 11008, 32000, 10000.0},
    // With a gated MLP of the same width in place of its squared ReLU.
    {"minitron-4b", 32, 24, 8, 128, 3072, 9216, 256000, 10000.0},
    // What one of four GPUs holds under tensor parallelism, a quarter of the heads, of the MLP and
    // of the vocabulary; sums across GPUs are not computed.
    {"llama-3-70b-tp4", 80, 16, 2, 128, 8192, 7168, 32064, 500000.0},
    // For tests: nothing a multiple of 64 that need not be.
    {"tiny", 4, 8, 4, 64, 208, 300, 1003, 10000.0},
};

// Retrieval heads of each layer: random between one and all of them, then moved one by one until
// half of all heads retrieve; none in the layer in the middle.
std::vector<int64_t> RetrievalHeads(const Sizes& sizes) {
  constexpr uint64_t kSeed = 0x73686170;
  const auto layers = static_cast<uint64_t>(sizes.layers);
  const auto heads = static_cast<uint64_t>(sizes.kv_heads);
  const size_t none = layers / 2;
  std::vector<int64_t> counts(layers);
  for (size_t layer = 0; layer < layers; ++layer) {
    counts[layer] = layer == none ? 0 : 1 + static_cast<int64_t>(Philox(kSeed, layer)[0] % heads);
  }
  const int64_t wanted = sizes.layers * sizes.kv_heads / 2;
  int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (uint64_t draw = layers; sum != wanted; ++draw) {
    const size_t layer = Philox(kSeed, draw)[0] % layers;
    const int64_t moved = counts[layer] + (sum < wanted ? 1 : -1);
    if (layer != none && moved >= 1 && moved <= sizes.kv_heads) {
      sum += moved - counts[layer];
      counts[layer] = moved;
    }
  }
  return counts;
}

// A retrieving head's gate is above 1/2, a streaming one's below; among them they are random. Which
// heads of a layer retrieve turns from layer to layer.
HeadGates Gates(const Sizes& sizes) {
  constexpr uint64_t kSeed = 0x67617465;
  const std::vector<int64_t> counts = RetrievalHeads(sizes);
  HeadGates gates;
  uint64_t draw = 0;
  for (int64_t layer = 0; layer < sizes.layers; ++layer) {
    std::vector<double> row;
    for (int64_t head = 0; head < sizes.kv_heads; ++head) {
      const bool retrieves = (head + layer) % sizes.kv_heads < counts[static_cast<size_t>(layer)];
      const auto gate = static_cast<double>(UniformFloat(Philox(kSeed, draw++)[0])) / 2;
      row.push_back(retrieves ? 0.5 + gate : gate);
    }
    gates.push_back(std::move(row));
  }
  return gates;
}

ModelShape MakeShape(const Sizes& sizes) {
  ModelShape shape;
  shape.name = sizes.name;
  ModelConfig& config = shape.config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = sizes.vocab;
  config.hidden_size = sizes.hidden;
  config.num_layers = sizes.layers;
  config.num_q_heads = sizes.q_heads;
  config.num_kv_heads = sizes.kv_heads;
  config.head_dim = sizes.head_dim;
  config.intermediate_size = sizes.intermediate;
  config.max_position_embeddings = config.context_length = kContext;
  config.rms_norm_eps = 1e-5f;
  config.rope.theta = sizes.theta;
  shape.gates = Gates(sizes);
  return shape;
}

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const Sizes& sizes : kShapes) {
    names.emplace_back(sizes.name);
  }
  return names;
}

Result<ModelShape> FindShape(const std::string& name) {
  for (const Sizes& sizes : kShapes) {
    if (name == sizes.name) {
      return MakeShape(sizes);
    }
  }
  return InvalidArgument("--shape \"{}\" is none of {}", name, fmt::join(ShapeNames(), ", "));
}

}  // namespace lserve
