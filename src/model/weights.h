// ModelWeights: a checkpoint's tensors, packed for one backend, with each layer's heads permuted to
// retrieval-first; or random ones of a model's shape. They lie in one block of memory, whose size
// is known beforehand (model_bytes.h), the embedding in another. Immutable once made; shared by the
// runners of all attention modes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/model_config.h"
#include "checkpoint/safetensors.h"
#include "kernels/backend.h"
#include "sparse/head_plan.h"
#include "tensor/arena.h"

namespace lserve {

struct LayerWeights {
  Buffer input_norm;      // [hidden]
  Buffer post_norm;       // [hidden]
  Buffer qkv_bias;        // [(q_heads + 2 kv_heads) * head_dim], empty if the model has none
  Buffer q_norm, k_norm;  // [head_dim], empty if the model has none
  std::unique_ptr<PackedLinear> qkv;      // [(q_heads + 2 kv_heads) * head_dim, hidden]
  std::unique_ptr<PackedLinear> output;   // [hidden, q_heads * head_dim]
  std::unique_ptr<PackedLinear> gate_up;  // [2 * intermediate, hidden]
  std::unique_ptr<PackedLinear> down;     // [hidden, intermediate]
};

struct ModelWeights {
  // Called with the share of the weights that is packed, 0 to 1.
  using Progress = std::function<void(double)>;

  // Reads MODEL's tensors one by one into `backend`. Vectors get the activations' dtype.
  // Errors: those of Checkpoint; a tensor missing or of another shape; kResourceExhausted.
  static Result<std::shared_ptr<const ModelWeights>> Load(const std::string& model_dir,
                                                          const ModelConfig& config,
                                                          const HeadPlan& plan, DType activations,
                                                          Backend& backend,
                                                          const Progress& progress);

  // Weights made on the device from a seed, the same in every backend: matrices of normal numbers
  // of deviation 1 / sqrt(in_features), embeddings of 1, norms 1, so that activations stay finite
  // through any number of layers. Heads are not permuted: one is as random as another.
  // Errors: kUnimplemented (biases, norms of q and k); kResourceExhausted.
  static Result<std::shared_ptr<const ModelWeights>> Random(const ModelConfig& config,
                                                            uint64_t seed, DType activations,
                                                            Backend& backend,
                                                            const Progress& progress);

  ModelConfig config;
  DType activations = DType::kBFloat16;
  std::vector<LayerWeights> layers;
  Buffer final_norm;  // [hidden]
  Buffer embedding;   // [vocab_size, hidden] of embedding_dtype
  DType embedding_dtype = DType::kBFloat16;
  Buffer inverse_frequencies;  // [head_dim / 2] float32
  float rope_scale = 1.0f;
  std::unique_ptr<PackedLinear> lm_head;  // [vocab_size, hidden]

 private:
  Status UploadRope(Arena& arena, Backend& backend, Stream& stream);

  std::unique_ptr<Checkpoint> checkpoint_;  // the embedding may be a view of its mapped file
};

}  // namespace lserve
