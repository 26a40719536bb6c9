// Layers of known models, by name, for benchmarks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "base/check.h"

namespace lserve::bench {

struct LayerSizes {
  const char* name;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t hidden;
  int32_t intermediate;
  int32_t vocab_size;
  float streaming_share;  // of the KV heads of a benchmark's layer
};

inline constexpr LayerSizes kKnownLayers[] = {
    {"llama-3-8b", 32, 8, 128, 4096, 14336, 128256, 0.5f},
    {"llama-2-7b", 32, 32, 128, 4096, 11008, 32000, 0.5f},
    // Minitron's own layers have no gate; here they do, as every Llama-like layer.
    {"minitron-4b", 24, 8, 128, 3072, 9216, 256000, 0.5f},
    // The bundled model's last layer at share 0.875.
    {"needle-7m", 8, 4, 64, 256, 768, 4096, 0.25f},
};

inline std::vector<std::string> LayerNames() {
  std::vector<std::string> names;
  for (const LayerSizes& layer : kKnownLayers) {
    names.emplace_back(layer.name);
  }
  return names;
}

inline const LayerSizes& FindLayer(const std::string& name) {
  const auto* layer = std::find_if(std::begin(kKnownLayers), std::end(kKnownLayers),
                                   [&](const LayerSizes& known) { return name == known.name; });
  CHECK_MSG(layer != std::end(kKnownLayers), "no known layer is called {}", name);
  return *layer;
}

}  // namespace lserve::bench
