#include "model/model_bytes.h"

#include "tensor/arena.h"

namespace lserve {

int64_t PackedWeightBytes(const ModelConfig& config, DType activations, const Backend& backend) {
  const auto vector = [&](int64_t elements) {
    return Arena::Room(elements * DTypeBytes(activations));
  };
  const auto matrix = [&](int64_t rows, int64_t columns, bool fused_silu = false) {
    const LinearWeight shape{.out_features = rows, .in_features = columns};
    return Arena::Room(backend.PackedBytes(shape, activations, fused_silu));
  };
  const int64_t hidden = config.hidden_size;
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim;
  const int64_t layer = matrix(qkv_width, hidden) + matrix(hidden, q_width) +
                        matrix(2 * config.intermediate_size, hidden, true) +
                        matrix(hidden, config.intermediate_size) + 2 * vector(hidden) +
                        (config.qkv_bias ? vector(qkv_width) : 0) +
                        (config.qk_norm ? 2 * vector(config.head_dim) : 0);
  const int64_t frequencies = config.head_dim / 2 * static_cast<int64_t>(sizeof(float));
  return config.num_layers * layer + vector(hidden) + matrix(config.vocab_size, hidden) +
         Arena::Room(frequencies);
}

int64_t WeightBytes(const ModelConfig& config, DType activations, const Backend& backend) {
  return PackedWeightBytes(config, activations, backend) +
         config.vocab_size * config.hidden_size * DTypeBytes(DType::kBFloat16);
}

}  // namespace lserve
