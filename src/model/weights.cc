#include "model/weights.h"

#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "model/model_bytes.h"

namespace lserve {
namespace {

using Bytes = std::vector<std::byte>;

float ElementToFloat(const std::byte* data, DType dtype, int64_t index) {
  const auto read = [&]<typename T>(T) {
    T value;
    std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return ToFloat(value);
  };
  switch (dtype) {
    case DType::kFloat32: return read(float{});
    case DType::kBFloat16: return read(BFloat16{});
    case DType::kFloat16: return read(Float16{});
    default: break;
  }
  CHECK_MSG(false, "no weights of dtype {}", DTypeName(dtype));
}

// Loads tensors of one model, head by head where the plan permutes them.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, DType activations,
         Backend& backend, Arena& arena, Stream& stream)
      : checkpoint_(checkpoint),
        config_(config),
        activations_(activations),
        backend_(backend),
        arena_(arena),
        stream_(stream) {}

  // A vector in the activations' dtype; its blocks of `block` elements in the order given.
  Result<Buffer> Vector(const std::vector<std::pair<std::string, std::vector<int32_t>>>& parts,
                        int64_t block) {
    Bytes host;
    for (const auto& [name, order] : parts) {
      const auto elements = static_cast<int64_t>(order.size()) * block;
      const int64_t shape[] = {elements};
      ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Get(name, shape));
      for (const int32_t from : order) {
        for (int64_t i = 0; i < block; ++i) {
          Append(ElementToFloat(tensor->bytes.data(), tensor->dtype, from * block + i), &host);
        }
      }
    }
    Buffer buffer = arena_.Cut(std::ssize(host));
    backend_.CopyToDevice(buffer.data(), host.data(), buffer.bytes(), stream_);
    RETURN_IF_ERROR(stream_.Synchronize());
    return buffer;
  }

  Result<Buffer> Vector(const std::string& name, int64_t elements) {
    return Vector({{name, {0}}}, elements);
  }

  // Matrices of the same input width stacked; each one's rows in blocks of `block_rows`, permuted.
  struct Rows {
    std::string name;
    std::vector<int32_t> order;
    int64_t block_rows;
  };
  Result<std::unique_ptr<PackedLinear>> StackRows(const std::vector<Rows>& parts, int64_t columns,
                                                  bool fused_silu) {
    if (parts.size() == 1 && parts[0].order.size() == 1) {  // as it lies in the file
      const Rows& whole = parts[0];
      const int64_t shape[] = {whole.block_rows, columns};
      ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Get(whole.name, shape));
      return Pack({tensor->bytes.data(), tensor->dtype, whole.block_rows, columns}, fused_silu);
    }
    DType dtype = DType::kFloat32;
    int64_t rows = 0;
    Bytes host;
    for (const Rows& part : parts) {
      const int64_t part_rows = static_cast<int64_t>(part.order.size()) * part.block_rows;
      const int64_t shape[] = {part_rows, columns};
      ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Get(part.name, shape));
      if (rows > 0 && tensor->dtype != dtype) {
        return Unimplemented("{} is {}, but {} is {}: tensors packed together must have one dtype",
                             part.name, DTypeName(tensor->dtype), parts[0].name, DTypeName(dtype));
      }
      dtype = tensor->dtype;
      rows += part_rows;
      const auto block_bytes =
          static_cast<size_t>(part.block_rows * columns * DTypeBytes(tensor->dtype));
      for (const int32_t from : part.order) {
        const auto block =
            tensor->bytes.subspan(static_cast<size_t>(from) * block_bytes, block_bytes);
        host.insert(host.end(), block.begin(), block.end());
      }
    }
    return Pack({host.data(), dtype, rows, columns}, fused_silu);
  }

  // One matrix whose columns come in permuted blocks.
  Result<std::unique_ptr<PackedLinear>> PermuteColumns(const std::string& name, int64_t rows,
                                                       const std::vector<int32_t>& order,
                                                       int64_t block_columns) {
    const auto columns = static_cast<int64_t>(order.size()) * block_columns;
    const int64_t shape[] = {rows, columns};
    ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Get(name, shape));
    const auto block_bytes = static_cast<size_t>(block_columns * DTypeBytes(tensor->dtype));
    Bytes host(tensor->bytes.size());
    std::byte* out = host.data();
    for (int64_t row = 0; row < rows; ++row) {
      const std::byte* in =
          tensor->bytes.data() + static_cast<size_t>(row) * order.size() * block_bytes;
      for (const int32_t from : order) {
        std::memcpy(out, in + static_cast<size_t>(from) * block_bytes, block_bytes);
        out += block_bytes;
      }
    }
    return Pack({host.data(), tensor->dtype, rows, columns}, false);
  }

  // The layer's head order drives the permutation of q, k and v rows and of o's columns.
  Result<LayerWeights> Layer(int64_t index, const std::vector<int32_t>& kv_order) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    const std::string attention = prefix + "self_attn.";
    const int64_t group = config_.num_q_heads / config_.num_kv_heads;
    std::vector<int32_t> q_order;
    for (const int32_t head : kv_order) {
      for (int64_t i = 0; i < group; ++i) {
        q_order.push_back(static_cast<int32_t>(head * group + i));
      }
    }
    const int64_t hidden = config_.hidden_size;
    const int64_t head_dim = config_.head_dim;
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, Vector(prefix + "input_layernorm.weight", hidden));
    ASSIGN_OR_RETURN(layer.post_norm, Vector(prefix + "post_attention_layernorm.weight", hidden));
    if (config_.qkv_bias) {
      ASSIGN_OR_RETURN(layer.qkv_bias, Vector({{attention + "q_proj.bias", q_order},
                                               {attention + "k_proj.bias", kv_order},
                                               {attention + "v_proj.bias", kv_order}},
                                              head_dim));
    }
    if (config_.qk_norm) {
      ASSIGN_OR_RETURN(layer.q_norm, Vector(attention + "q_norm.weight", head_dim));
      ASSIGN_OR_RETURN(layer.k_norm, Vector(attention + "k_norm.weight", head_dim));
    }
    ASSIGN_OR_RETURN(layer.qkv, StackRows({{attention + "q_proj.weight", q_order, head_dim},
                                           {attention + "k_proj.weight", kv_order, head_dim},
                                           {attention + "v_proj.weight", kv_order, head_dim}},
                                          hidden, false));
    ASSIGN_OR_RETURN(layer.output,
                     PermuteColumns(attention + "o_proj.weight", hidden, q_order, head_dim));
    const int64_t intermediate = config_.intermediate_size;
    ASSIGN_OR_RETURN(layer.gate_up, StackRows({{prefix + "mlp.gate_proj.weight", {0}, intermediate},
                                               {prefix + "mlp.up_proj.weight", {0}, intermediate}},
                                              hidden, true));
    ASSIGN_OR_RETURN(layer.down, StackRows({{prefix + "mlp.down_proj.weight", {0}, hidden}},
                                           intermediate, false));
    return layer;
  }

 private:
  Result<std::unique_ptr<PackedLinear>> Pack(const LinearWeight& weight, bool fused_silu) {
    Buffer memory = arena_.Cut(backend_.PackedBytes(weight, activations_, fused_silu));
    return backend_.PackLinear(weight, activations_, fused_silu, std::move(memory));
  }

  void Append(float value, Bytes* out) const {
    const auto append = [&](const auto& element) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&element);
      out->insert(out->end(), bytes, bytes + sizeof(element));
    };
    if (activations_ == DType::kBFloat16) {
      append(ToBFloat16(value));
    } else {
      append(value);
    }
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const DType activations_;
  Backend& backend_;
  Arena& arena_;
  Stream& stream_;
};

}  // namespace

Result<std::shared_ptr<const ModelWeights>> ModelWeights::Load(const std::string& model_dir,
                                                               const ModelConfig& config,
                                                               const HeadPlan& plan,
                                                               DType activations, Backend& backend,
                                                               const Progress& progress) {
  CHECK_EQ(plan.layers(), config.num_layers);
  CHECK_EQ(plan.kv_heads(), config.num_kv_heads);
  auto weights = std::make_shared<ModelWeights>();
  weights->config = config;
  weights->activations = activations;
  ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(model_dir));
  weights->checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint));
  const std::unique_ptr<Stream> stream = backend.MakeStream();
  ASSIGN_OR_RETURN(Buffer block, backend.Allocate(PackedWeightBytes(config, activations, backend)));
  Arena arena(std::move(block));
  Loader loader(*weights->checkpoint_, config, activations, backend, arena, *stream);

  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights packed,
                     loader.Layer(layer, plan.order(static_cast<int32_t>(layer))));
    weights->layers.push_back(std::move(packed));
    if (progress) {
      progress(static_cast<double>(layer + 1) / static_cast<double>(config.num_layers + 1));
    }
  }
  ASSIGN_OR_RETURN(weights->final_norm, loader.Vector("model.norm.weight", config.hidden_size));
  const int64_t shape[] = {config.vocab_size, config.hidden_size};
  ASSIGN_OR_RETURN(const TensorInfo* embedding,
                   weights->checkpoint_->Get("model.embed_tokens.weight", shape));
  weights->embedding_dtype = embedding->dtype;
  ASSIGN_OR_RETURN(weights->embedding,
                   backend.Upload(embedding->bytes.data(),
                                  static_cast<int64_t>(embedding->bytes.size()), *stream));
  const std::string head =
      config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  ASSIGN_OR_RETURN(weights->lm_head,
                   loader.StackRows({{head, {0}, config.vocab_size}}, config.hidden_size, false));

  RETURN_IF_ERROR(weights->UploadRope(arena, backend, *stream));
  CHECK_EQ(arena.left(), 0);
  if (progress) {
    progress(1.0);
  }
  return std::shared_ptr<const ModelWeights>(std::move(weights));
}

Status ModelWeights::UploadRope(Arena& arena, Backend& backend, Stream& stream) {
  const RopeTable rope = ComputeRope(config.rope, config.head_dim);
  inverse_frequencies = arena.Cut(std::ssize(rope.inverse_frequencies) * int64_t{sizeof(float)});
  backend.CopyToDevice(inverse_frequencies.data(), rope.inverse_frequencies.data(),
                       inverse_frequencies.bytes(), stream);
  rope_scale = rope.attention_factor;
  return stream.Synchronize();
}

}  // namespace lserve
