// What a model folder's config.json and generation_config.json say, checked: anything that this
// program would compute wrongly is refused by name. Plain values, made once by the model loader;
// safe to share between threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "checkpoint/rope.h"

namespace lserve {

// What generation_config.json recommends; absent fields leave the program's own default.
// Temperature, top_k and top_p mean nothing where do_sample is false (greedy).
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature;         // >= 0; 0 is greedy
  std::optional<double> top_p;               // (0, 1]
  std::optional<int64_t> top_k;              // >= 0; 0 is off
  std::optional<double> min_p;               // [0, 1]; 0 is off
  std::optional<double> repetition_penalty;  // > 0; 1 is off
};

// A decoder of the Llama family. Linear layers have no bias but for what qkv_bias says.
struct ModelConfig {
  // LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM.
  std::string architecture;
  int64_t vocab_size = 0;               // 1 .. 2^24
  int64_t hidden_size = 0;              // 1 .. 2^17
  int64_t num_layers = 0;               // 1 .. 1024
  int64_t num_q_heads = 0;              // 1 .. 1024, a multiple of num_kv_heads
  int64_t num_kv_heads = 0;             // 1 .. num_q_heads
  int64_t head_dim = 0;                 // 64, 80, 96 or 128; num_q_heads * head_dim need not be
                                        // hidden_size
  int64_t intermediate_size = 0;        // 1 .. 2^20
  int64_t max_position_embeddings = 0;  // as the file has it, 1 .. 2^24
  // Tokens that the model can attend over: max_position_embeddings, stretched where the RoPE
  // scaling says so (linear: times its factor; yarn: the original length times its factor).
  int64_t context_length = 0;
  float rms_norm_eps = 0;  // (0, 0.1]
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // q_proj, k_proj and v_proj carry a bias (Qwen2)
  bool qk_norm = false;   // RMSNorm over head_dim on q and k before RoPE (Qwen3)
  RopeConfig rope;
  std::optional<int32_t> bos_token_id;  // < vocab_size
  // Every id that ends an answer, each < vocab_size and once; config.json's first, then
  // generation_config.json's. May be empty.
  std::vector<int32_t> eos_token_ids;
  GenerationDefaults generation;
};

// Reads config.json and, if present, generation_config.json. Errors: kNotFound (no folder or no
// config.json), kInvalidArgument (a field missing, of the wrong type or out of range),
// kUnimplemented (well-formed, but not supported); one line that names file, field and value.
Result<ModelConfig> LoadModelConfig(const std::string& model_dir);

// The config.json part alone, from parsed JSON. Errors as above, without the file's name.
Result<ModelConfig> ParseModelConfig(const Json& json);

// Adds a parsed generation_config.json to a configuration. Errors as above.
Status MergeGenerationConfig(const Json& json, ModelConfig* config);

}  // namespace lserve
