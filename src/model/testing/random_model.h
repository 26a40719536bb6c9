// Small random models on disk, and a written-out reference of their forward pass. For tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/model_config.h"

namespace lserve::testing {

struct RandomModel {
  int64_t vocab_size = 97;
  int64_t hidden_size = 64;
  int64_t num_layers = 4;
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  int64_t intermediate_size = 96;
  int64_t max_position_embeddings = 4096;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // written as Qwen2
  bool qk_norm = false;   // written as Qwen3
  // Scale of q and k weights: larger makes attention pick few tokens, so that a wrong key shows.
  double attention_sharpness = 3.0;
  uint64_t seed = 1;
};

// Writes config.json, model.safetensors (bf16) and full_attention_heads.tsv (gates that leave every
// layer retrieval heads at a share of 0.5) into a fresh folder and returns its path.
std::string WriteRandomModel(const RandomModel& model);

// Tokens drawn from the vocabulary by a seed.
std::vector<int32_t> RandomTokens(int64_t count, int64_t vocab_size, uint64_t seed);

// The head roles and windows that the reference applies to every position alike.
struct ReferenceAttention {
  // streams[layer][KV head of the checkpoint]; empty: every head sees everything.
  std::vector<std::vector<bool>> streams;
  int64_t sink_tokens = 0;
  int64_t local_tokens = 1;
};

// Logits [tokens, vocab_size] of the whole sequence in double arithmetic, straight from the
// checkpoint: no pages, no chunks, no packing.
std::vector<float> ReferenceLogits(const std::string& model_dir, const std::vector<int32_t>& tokens,
                                   const ReferenceAttention& attention);

}  // namespace lserve::testing
