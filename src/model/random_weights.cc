// ModelWeights::Random.
#include <cmath>
#include <utility>

#include "model/model_bytes.h"
#include "model/weights.h"

namespace lserve {
namespace {

// Makes one matrix after another, each from numbers of its own.
class Generator {
 public:
  Generator(uint64_t seed, DType activations, Backend& backend, Arena& arena, Stream& stream)
      : seed_(seed), activations_(activations), backend_(backend), arena_(arena), stream_(stream) {}

  // bf16 [rows, columns].
  Result<Buffer> Matrix(int64_t rows, int64_t columns, float deviation) {
    constexpr uint64_t kMatrices = uint64_t{1} << 20;  // seeds of one model
    const int64_t elements = rows * columns;
    ASSIGN_OR_RETURN(Buffer buffer,
                     backend_.Allocate(elements * static_cast<int64_t>(sizeof(BFloat16))));
    const FillNormalParams params{.data = buffer.data(),
                                  .dtype = DType::kBFloat16,
                                  .count = elements,
                                  .seed = seed_ * kMatrices + matrices_++,
                                  .first = 0,
                                  .deviation = deviation};
    RETURN_IF_ERROR(Validate(params));
    backend_.ops().fill_normal.run(stream_, params);
    RETURN_IF_ERROR(stream_.Synchronize());
    return buffer;
  }

  Result<std::unique_ptr<PackedLinear>> Linear(int64_t rows, int64_t columns,
                                               bool fused_silu = false) {
    ASSIGN_OR_RETURN(const Buffer matrix,
                     Matrix(rows, columns, 1.0f / std::sqrt(static_cast<float>(columns))));
    const LinearWeight weight{.data = matrix.data(),
                              .dtype = DType::kBFloat16,
                              .out_features = rows,
                              .in_features = columns,
                              .on_device = true};
    Buffer memory = arena_.Cut(backend_.PackedBytes(weight, activations_, fused_silu));
    return backend_.PackLinear(weight, activations_, fused_silu, std::move(memory));
  }

  Result<Buffer> Ones(int64_t elements) const {
    const auto upload = [&]<typename T>(T one) {
      const std::vector<T> ones(static_cast<size_t>(elements), one);
      return Upload(ones.data(), elements * static_cast<int64_t>(sizeof(T)));
    };
    return activations_ == DType::kFloat32 ? upload(1.0f) : upload(ToBFloat16(1.0f));
  }

 private:
  Result<Buffer> Upload(const void* data, int64_t bytes) const {
    Buffer buffer = arena_.Cut(bytes);
    backend_.CopyToDevice(buffer.data(), data, bytes, stream_);
    RETURN_IF_ERROR(stream_.Synchronize());
    return buffer;
  }

  const uint64_t seed_;
  const DType activations_;
  Backend& backend_;
  Arena& arena_;
  Stream& stream_;
  uint64_t matrices_ = 0;
};

}  // namespace

Result<std::shared_ptr<const ModelWeights>> ModelWeights::Random(const ModelConfig& config,
                                                                 uint64_t seed, DType activations,
                                                                 Backend& backend,
                                                                 const Progress& progress) {
  if (config.qkv_bias || config.qk_norm) {
    return Unimplemented("random weights have no biases and no norms of q and k");
  }
  auto weights = std::make_shared<ModelWeights>();
  weights->config = config;
  weights->activations = activations;
  const std::unique_ptr<Stream> stream = backend.MakeStream();
  ASSIGN_OR_RETURN(Buffer block, backend.Allocate(PackedWeightBytes(config, activations, backend)));
  Arena arena(std::move(block));
  Generator generator(seed, activations, backend, arena, *stream);
  const int64_t hidden = config.hidden_size;
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, generator.Ones(hidden));
    ASSIGN_OR_RETURN(layer.post_norm, generator.Ones(hidden));
    ASSIGN_OR_RETURN(layer.qkv, generator.Linear(q_width + 2 * kv_width, hidden));
    ASSIGN_OR_RETURN(layer.output, generator.Linear(hidden, q_width));
    ASSIGN_OR_RETURN(layer.gate_up, generator.Linear(2 * config.intermediate_size, hidden, true));
    ASSIGN_OR_RETURN(layer.down, generator.Linear(hidden, config.intermediate_size));
    weights->layers.push_back(std::move(layer));
    if (progress) {
      progress(static_cast<double>(i + 1) / static_cast<double>(config.num_layers + 1));
    }
  }
  ASSIGN_OR_RETURN(weights->final_norm, generator.Ones(hidden));
  ASSIGN_OR_RETURN(weights->embedding, generator.Matrix(config.vocab_size, hidden, 1.0f));
  ASSIGN_OR_RETURN(weights->lm_head, generator.Linear(config.vocab_size, hidden));
  RETURN_IF_ERROR(weights->UploadRope(arena, backend, *stream));
  CHECK_EQ(arena.left(), 0);
  if (progress) {
    progress(1.0);
  }
  return std::shared_ptr<const ModelWeights>(std::move(weights));
}

}  // namespace lserve
