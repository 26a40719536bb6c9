#include "model/model_bytes.h"

namespace lserve {

int64_t WeightBytes(const ModelConfig& config, DType activations) {
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim;
  const int64_t hidden = config.hidden_size;
  const int64_t layer =
      qkv_width * hidden + hidden * q_width + 3 * config.intermediate_size * hidden + 2 * hidden +
      (config.qkv_bias ? qkv_width : 0) + (config.qk_norm ? 2 * config.head_dim : 0);
  const int64_t table = config.vocab_size * hidden;
  return (config.num_layers * layer + hidden + table) * DTypeBytes(activations) +
         table * DTypeBytes(DType::kBFloat16);
}

}  // namespace lserve
