#include "model/testing/random_model.h"

#include <gtest/gtest.h>

#include <unistd.h>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "checkpoint/safetensors.h"
#include "tensor/dtype.h"

namespace lserve::testing {
namespace {

// Normal numbers by Box and Muller, from (seed, stream, index).
double Normal(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = Philox(seed * 1000003 + stream, index);
  const double u = (words[0] + 1.0) / 4294967297.0;
  const double v = words[1] / 4294967296.0;
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(uint64_t seed) : seed_(seed) {}

  // Normal elements with the given mean and deviation.
  void Add(const std::string& name, const std::vector<int64_t>& shape, double mean,
           double deviation) {
    int64_t elements = 1;
    for (const int64_t extent : shape) {
      elements *= extent;
    }
    const size_t begin = bytes_.size();
    for (int64_t i = 0; i < elements; ++i) {
      const double value = mean + deviation * Normal(seed_, stream_, static_cast<uint64_t>(i));
      const BFloat16 stored = ToBFloat16(static_cast<float>(value));
      bytes_.append(reinterpret_cast<const char*>(&stored), sizeof(stored));
    }
    ++stream_;
    header_[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, bytes_.size()}}};
  }

  void Write(const std::string& path) const {
    std::string header = DumpJsonLine(header_);
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
    CHECK_OK(WriteFileAtomically(path, file + header + bytes_));
  }

 private:
  const uint64_t seed_;
  uint64_t stream_ = 0;
  OrderedJson header_;
  std::string bytes_;
};

using Matrix = std::vector<std::vector<double>>;  // [rows][columns]

Matrix ReadMatrix(const Checkpoint& checkpoint, const std::string& name, int64_t columns) {
  const std::vector<float> flat = checkpoint.ReadFloats(name).value();
  Matrix matrix;
  for (size_t begin = 0; begin < flat.size(); begin += static_cast<size_t>(columns)) {
    matrix.emplace_back(flat.begin() + static_cast<std::ptrdiff_t>(begin),
                        flat.begin() + static_cast<std::ptrdiff_t>(begin) + columns);
  }
  return matrix;
}

std::vector<double> Multiply(const Matrix& weight, const std::vector<double>& x) {
  std::vector<double> y;
  for (const std::vector<double>& row : weight) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      sum += row[i] * x[i];
    }
    y.push_back(sum);
  }
  return y;
}

std::vector<double> RmsNorm(const std::vector<double>& x, const std::vector<float>& weight,
                            double epsilon) {
  double squares = 0;
  for (const double value : x) {
    squares += value * value;
  }
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = x[i] * scale * weight[i];
  }
  return y;
}

// One head's slice of a row.
std::vector<double> Head(const std::vector<double>& row, int64_t head, int64_t head_dim) {
  return {row.begin() + head * head_dim, row.begin() + (head + 1) * head_dim};
}

std::vector<double> Rotate(const std::vector<double>& x, int64_t position, const RopeTable& rope) {
  const size_t half = x.size() / 2;
  std::vector<double> y(x.size());
  for (size_t d = 0; d < half; ++d) {
    const float angle = static_cast<float>(position) * rope.inverse_frequencies[d];
    const double cosine = std::cos(static_cast<double>(angle)) * rope.attention_factor;
    const double sine = std::sin(static_cast<double>(angle)) * rope.attention_factor;
    y[d] = x[d] * cosine - x[d + half] * sine;
    y[d + half] = x[d + half] * cosine + x[d] * sine;
  }
  return y;
}

}  // namespace

std::string WriteRandomModel(const RandomModel& model) {
  static std::atomic<int> counter{0};
  const std::string folder =
      fmt::format("{}/random-model-{}-{}", ::testing::TempDir(), ::getpid(), counter++);
  std::filesystem::create_directories(folder);
  const char* architecture = model.qk_norm    ? "Qwen3ForCausalLM"
                             : model.qkv_bias ? "Qwen2ForCausalLM"
                                              : "LlamaForCausalLM";
  const char* type = model.qk_norm ? "qwen3" : model.qkv_bias ? "qwen2" : "llama";
  const OrderedJson config = {{"architectures", {architecture}},
                              {"model_type", type},
                              {"vocab_size", model.vocab_size},
                              {"hidden_size", model.hidden_size},
                              {"num_hidden_layers", model.num_layers},
                              {"num_attention_heads", model.num_q_heads},
                              {"num_key_value_heads", model.num_kv_heads},
                              {"head_dim", model.head_dim},
                              {"intermediate_size", model.intermediate_size},
                              {"max_position_embeddings", model.max_position_embeddings},
                              {"rms_norm_eps", 1e-5},
                              {"rope_theta", 10000.0},
                              {"hidden_act", "silu"},
                              {"tie_word_embeddings", model.tie_word_embeddings}};
  CHECK_OK(WriteFileAtomically(folder + "/config.json", DumpJson(config)));

  const int64_t hidden = model.hidden_size;
  const int64_t q_width = model.num_q_heads * model.head_dim;
  const int64_t kv_width = model.num_kv_heads * model.head_dim;
  const auto fan_in = [](int64_t columns) { return 1.0 / std::sqrt(static_cast<double>(columns)); };
  SafetensorsWriter writer(model.seed);
  writer.Add("model.embed_tokens.weight", {model.vocab_size, hidden}, 0, 1);
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const std::string attention = prefix + "self_attn.";
    const double sharp = fan_in(hidden) * std::sqrt(model.attention_sharpness);
    writer.Add(prefix + "input_layernorm.weight", {hidden}, 1, 0.1);
    writer.Add(prefix + "post_attention_layernorm.weight", {hidden}, 1, 0.1);
    writer.Add(attention + "q_proj.weight", {q_width, hidden}, 0, sharp);
    writer.Add(attention + "k_proj.weight", {kv_width, hidden}, 0, sharp);
    writer.Add(attention + "v_proj.weight", {kv_width, hidden}, 0, fan_in(hidden));
    writer.Add(attention + "o_proj.weight", {hidden, q_width}, 0, fan_in(q_width));
    if (model.qkv_bias) {
      writer.Add(attention + "q_proj.bias", {q_width}, 0, 0.5);
      writer.Add(attention + "k_proj.bias", {kv_width}, 0, 0.5);
      writer.Add(attention + "v_proj.bias", {kv_width}, 0, 0.5);
    }
    if (model.qk_norm) {
      writer.Add(attention + "q_norm.weight", {model.head_dim}, 1.5, 0.1);
      writer.Add(attention + "k_norm.weight", {model.head_dim}, 1.5, 0.1);
    }
    const int64_t wide = model.intermediate_size;
    writer.Add(prefix + "mlp.gate_proj.weight", {wide, hidden}, 0, fan_in(hidden));
    writer.Add(prefix + "mlp.up_proj.weight", {wide, hidden}, 0, fan_in(hidden));
    writer.Add(prefix + "mlp.down_proj.weight", {hidden, wide}, 0, fan_in(wide));
  }
  writer.Add("model.norm.weight", {hidden}, 1, 0.1);
  if (!model.tie_word_embeddings) {
    writer.Add("lm_head.weight", {model.vocab_size, hidden}, 0, fan_in(hidden));
  }
  writer.Write(folder + "/model.safetensors");

  // Alternating gates: at a share of 0.5 every layer keeps half of its heads, not always the first.
  std::string gates;
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    for (int64_t head = 0; head < model.num_kv_heads; ++head) {
      gates += fmt::format("{}{}", head > 0 ? "\t" : "", (layer + head) % 2 == 0 ? 0.1 : 0.9);
    }
    gates += "\n";
  }
  CHECK_OK(WriteFileAtomically(folder + "/full_attention_heads.tsv", gates));
  return folder;
}

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(Philox(seed, i)[0] % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

std::vector<float> ReferenceLogits(const std::string& model_dir, const std::vector<int32_t>& tokens,
                                   const ReferenceAttention& attention) {
  const ModelConfig config = LoadModelConfig(model_dir).value();
  const Checkpoint checkpoint = Checkpoint::Open(model_dir).value();
  const RopeTable rope = ComputeRope(config.rope, config.head_dim);
  const int64_t hidden = config.hidden_size;
  const int64_t head_dim = config.head_dim;
  const int64_t group = config.num_q_heads / config.num_kv_heads;
  const double epsilon = config.rms_norm_eps;
  const auto vector = [&](const std::string& name) { return checkpoint.ReadFloats(name).value(); };
  const size_t length = tokens.size();

  const Matrix embedding = ReadMatrix(checkpoint, "model.embed_tokens.weight", hidden);
  Matrix x;
  for (const int32_t token : tokens) {
    x.push_back(embedding[static_cast<size_t>(token)]);
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const std::string self = prefix + "self_attn.";
    const auto project = [&](const char* name, const Matrix& input) {
      const Matrix weight = ReadMatrix(checkpoint, self + name + "_proj.weight", hidden);
      Matrix output;
      for (const std::vector<double>& row : input) {
        output.push_back(Multiply(weight, row));
        if (config.qkv_bias) {
          const std::vector<float> bias = vector(self + name + "_proj.bias");
          for (size_t i = 0; i < bias.size(); ++i) {
            output.back()[i] += bias[i];
          }
        }
      }
      return output;
    };
    Matrix normed;
    for (const std::vector<double>& row : x) {
      normed.push_back(RmsNorm(row, vector(prefix + "input_layernorm.weight"), epsilon));
    }
    const Matrix q = project("q", normed);
    const Matrix k = project("k", normed);
    const Matrix v = project("v", normed);
    const auto turned = [&](const Matrix& rows, size_t position, int64_t head, const char* norm) {
      std::vector<double> slice = Head(rows[position], head, head_dim);
      if (config.qk_norm) {
        slice = RmsNorm(slice, vector(self + norm + ".weight"), epsilon);
      }
      return Rotate(slice, static_cast<int64_t>(position), rope);
    };
    Matrix attended(length,
                    std::vector<double>(static_cast<size_t>(config.num_q_heads * head_dim)));
    for (int64_t kv_head = 0; kv_head < config.num_kv_heads; ++kv_head) {
      const bool streams =
          !attention.streams.empty() &&
          attention.streams[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)];
      Matrix keys;
      for (size_t j = 0; j < length; ++j) {
        keys.push_back(turned(k, j, kv_head, "k_norm"));
      }
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (size_t i = 0; i < length; ++i) {
          const std::vector<double> query = turned(q, i, head, "q_norm");
          std::vector<double> scores(i + 1, -INFINITY);
          double largest = -INFINITY;
          for (size_t j = 0; j <= i; ++j) {
            const bool seen = !streams || static_cast<int64_t>(j) < attention.sink_tokens ||
                              static_cast<int64_t>(i - j) < attention.local_tokens;
            if (seen) {
              double score = 0;
              for (size_t d = 0; d < query.size(); ++d) {
                score += query[d] * keys[j][d];
              }
              scores[j] = score / std::sqrt(static_cast<double>(head_dim));
              largest = std::max(largest, scores[j]);
            }
          }
          double sum = 0;
          std::vector<double> output(static_cast<size_t>(head_dim), 0.0);
          for (size_t j = 0; j <= i; ++j) {
            const double p = std::exp(scores[j] - largest);
            sum += p;
            for (size_t d = 0; d < output.size(); ++d) {
              output[d] += p * v[j][static_cast<size_t>(kv_head * head_dim) + d];
            }
          }
          for (size_t d = 0; d < output.size(); ++d) {
            attended[i][static_cast<size_t>(head * head_dim) + d] = output[d] / sum;
          }
        }
      }
    }
    const Matrix o = ReadMatrix(checkpoint, self + "o_proj.weight", config.num_q_heads * head_dim);
    const Matrix gate = ReadMatrix(checkpoint, prefix + "mlp.gate_proj.weight", hidden);
    const Matrix up = ReadMatrix(checkpoint, prefix + "mlp.up_proj.weight", hidden);
    const Matrix down =
        ReadMatrix(checkpoint, prefix + "mlp.down_proj.weight", config.intermediate_size);
    for (size_t i = 0; i < length; ++i) {
      const std::vector<double> added = Multiply(o, attended[i]);
      for (size_t d = 0; d < added.size(); ++d) {
        x[i][d] += added[d];
      }
      const std::vector<double> h =
          RmsNorm(x[i], vector(prefix + "post_attention_layernorm.weight"), epsilon);
      std::vector<double> g = Multiply(gate, h);
      const std::vector<double> u = Multiply(up, h);
      for (size_t d = 0; d < g.size(); ++d) {
        g[d] = g[d] / (1 + std::exp(-g[d])) * u[d];
      }
      const std::vector<double> mlp = Multiply(down, g);
      for (size_t d = 0; d < mlp.size(); ++d) {
        x[i][d] += mlp[d];
      }
    }
  }
  const std::vector<float> final_norm = vector("model.norm.weight");
  const Matrix head =
      config.tie_word_embeddings ? embedding : ReadMatrix(checkpoint, "lm_head.weight", hidden);
  std::vector<float> logits;
  for (const std::vector<double>& row : x) {
    for (const double logit : Multiply(head, RmsNorm(row, final_norm, epsilon))) {
      logits.push_back(static_cast<float>(logit));
    }
  }
  return logits;
}

}  // namespace lserve::testing
