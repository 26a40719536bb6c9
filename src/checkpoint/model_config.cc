#include "checkpoint/model_config.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/file.h"
#include "checkpoint/config_fields.h"
#include "checkpoint/error_text.h"
#include "checkpoint/rope_config.h"

namespace lserve {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHidden = int64_t{1} << 17;
constexpr int64_t kMaxIntermediate = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr double kMaxEps = 0.1;
constexpr std::array<int64_t, 4> kHeadDims = {64, 80, 96, 128};
constexpr int64_t kQwen3HeadDim = 128;  // transformers' default where the file has none

constexpr std::string_view kLlama = "LlamaForCausalLM";
constexpr std::string_view kMistral = "MistralForCausalLM";
constexpr std::string_view kQwen2 = "Qwen2ForCausalLM";
constexpr std::string_view kQwen3 = "Qwen3ForCausalLM";

Result<std::string> ParseArchitecture(const Json& json) {
  const Json* list = FindValue(json, "architectures");
  if (list == nullptr) {
    return MissingField("architectures");
  }
  if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
    return InvalidArgument("\"architectures\" must be a list of one name, not {}",
                           ShownForError(*list));
  }
  std::string name = list->front().get<std::string>();
  if (name != kLlama && name != kMistral && name != kQwen2 && name != kQwen3) {
    return Unimplemented("architecture {} is not supported (supported: {}, {}, {}, {})",
                         ShownForError(list->front()), kLlama, kMistral, kQwen2, kQwen3);
  }
  return name;
}

Status ParseSizes(const Json& json, ModelConfig* config) {
  ASSIGN_OR_RETURN(config->vocab_size, RequiredInteger(json, "vocab_size", 1, kMaxVocab));
  ASSIGN_OR_RETURN(config->hidden_size, RequiredInteger(json, "hidden_size", 1, kMaxHidden));
  ASSIGN_OR_RETURN(config->num_layers, RequiredInteger(json, "num_hidden_layers", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config->intermediate_size,
                   RequiredInteger(json, "intermediate_size", 1, kMaxIntermediate));
  ASSIGN_OR_RETURN(config->max_position_embeddings,
                   RequiredInteger(json, "max_position_embeddings", 1, kMaxPositions));
  return OkStatus();
}

Status ParseHeads(const Json& json, ModelConfig* config) {
  ASSIGN_OR_RETURN(config->num_q_heads, RequiredInteger(json, "num_attention_heads", 1, kMaxHeads));
  if (config->architecture == kLlama && FindValue(json, "num_key_value_heads") == nullptr) {
    config->num_kv_heads = config->num_q_heads;  // files older than grouped-query attention
  } else {
    ASSIGN_OR_RETURN(config->num_kv_heads,
                     RequiredInteger(json, "num_key_value_heads", 1, kMaxHeads));
  }
  if (config->num_q_heads % config->num_kv_heads != 0) {
    return InvalidArgument(
        "\"num_attention_heads\" {} is no multiple of \"num_key_value_heads\" {}",
        config->num_q_heads, config->num_kv_heads);
  }
  if (const Json* value = FindValue(json, "head_dim"); value != nullptr) {
    ASSIGN_OR_RETURN(config->head_dim, ToInteger(*value, "head_dim", 1, kMaxHidden));
  } else if (config->architecture == kQwen3) {
    config->head_dim = kQwen3HeadDim;
  } else if (config->hidden_size % config->num_q_heads != 0) {
    return InvalidArgument("\"hidden_size\" {} is no multiple of \"num_attention_heads\" {}",
                           config->hidden_size, config->num_q_heads);
  } else {
    config->head_dim = config->hidden_size / config->num_q_heads;
  }
  if (std::ranges::find(kHeadDims, config->head_dim) == kHeadDims.end()) {
    return Unimplemented("head size {} is not supported (supported: {})", config->head_dim,
                         fmt::join(kHeadDims, ", "));
  }
  return OkStatus();
}

// Features that would change what is computed.
Status RefuseUnsupported(const Json& json, const ModelConfig& config) {
  if (const Json* value = FindValue(json, "quantization_config"); value != nullptr) {
    const Json* method = FindKey(*value, "quant_method");
    return Unimplemented("\"quantization_config\" ({}) is not supported: give the 16-bit model",
                         ShownForError(method != nullptr ? *method : *value));
  }
  if (const Json* value = FindValue(json, "hidden_act"); value != nullptr && *value != "silu") {
    return Unimplemented("\"hidden_act\" {} is not supported (supported: \"silu\")",
                         ShownForError(*value));
  }
  // Qwen2 has its q, k and v biases whatever the file says.
  ASSIGN_OR_RETURN(const bool attention_bias, BoolOr(json, "attention_bias", false));
  if (attention_bias && config.architecture != kQwen2) {
    return Unimplemented("\"attention_bias\" true is not supported for {} (a bias on o_proj)",
                         config.architecture);
  }
  ASSIGN_OR_RETURN(const bool mlp_bias, BoolOr(json, "mlp_bias", false));
  if (mlp_bias) {
    return Unimplemented("\"mlp_bias\" true is not supported");
  }
  if (config.architecture == kMistral) {
    if (const Json* value = FindValue(json, "sliding_window"); value != nullptr) {
      ASSIGN_OR_RETURN(const int64_t window,
                       ToInteger(*value, "sliding_window", 1, int64_t{1} << 40));
      if (window < config.max_position_embeddings) {
        return Unimplemented(
            "\"sliding_window\" {} is active (\"max_position_embeddings\" is {}) and not supported",
            window, config.max_position_embeddings);
      }
    }
  }
  ASSIGN_OR_RETURN(const bool use_sliding_window, BoolOr(json, "use_sliding_window", false));
  if (use_sliding_window) {
    return Unimplemented("\"use_sliding_window\" true is not supported");
  }
  if (const Json* types = FindValue(json, "layer_types"); types != nullptr) {
    if (!types->is_array() || static_cast<int64_t>(types->size()) != config.num_layers) {
      return InvalidArgument("\"layer_types\" must be a list of {} names, not {}",
                             config.num_layers, ShownForError(*types));
    }
    for (const Json& type : *types) {
      if (type != "full_attention") {
        return Unimplemented("\"layer_types\" has {}; only \"full_attention\" is supported",
                             ShownForError(type));
      }
    }
  }
  return OkStatus();
}

// Appends the ids of an eos_token_id field (absent, a number or a list) that are not there yet.
Status MergeEosIds(const Json& json, int64_t vocab_size, std::vector<int32_t>* ids) {
  constexpr std::string_view kKey = "eos_token_id";
  const Json* value = FindValue(json, kKey);
  if (value == nullptr) {
    return OkStatus();
  }
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& element : list) {
    ASSIGN_OR_RETURN(const int64_t id, ToInteger(element, kKey, 0, vocab_size - 1));
    if (std::ranges::find(*ids, id) == ids->end()) {
      ids->push_back(static_cast<int32_t>(id));
    }
  }
  return OkStatus();
}

}  // namespace

Result<ModelConfig> ParseModelConfig(const Json& json) {
  if (!json.is_object()) {
    return InvalidArgument("must be a JSON object, not {}", ShownForError(json));
  }
  ModelConfig config;
  ASSIGN_OR_RETURN(config.architecture, ParseArchitecture(json));
  RETURN_IF_ERROR(ParseSizes(json, &config));
  RETURN_IF_ERROR(ParseHeads(json, &config));
  RETURN_IF_ERROR(RefuseUnsupported(json, config));
  ASSIGN_OR_RETURN(const double rms_norm_eps,
                   RequiredNumber(json, "rms_norm_eps", AboveUpTo(0.0, kMaxEps)));
  config.rms_norm_eps = static_cast<float>(rms_norm_eps);
  ASSIGN_OR_RETURN(config.tie_word_embeddings, BoolOr(json, "tie_word_embeddings", false));
  config.qkv_bias = config.architecture == kQwen2;
  config.qk_norm = config.architecture == kQwen3;
  ASSIGN_OR_RETURN(config.rope, ParseRopeConfig(json, config.max_position_embeddings));
  ASSIGN_OR_RETURN(config.context_length,
                   StretchedContext(config.rope, config.max_position_embeddings));
  if (const Json* bos = FindValue(json, "bos_token_id"); bos != nullptr) {
    ASSIGN_OR_RETURN(const int64_t id, ToInteger(*bos, "bos_token_id", 0, config.vocab_size - 1));
    config.bos_token_id = static_cast<int32_t>(id);
  }
  RETURN_IF_ERROR(MergeEosIds(json, config.vocab_size, &config.eos_token_ids));
  return config;
}

Status MergeGenerationConfig(const Json& json, ModelConfig* config) {
  if (!json.is_object()) {
    return InvalidArgument("must be a JSON object, not {}", ShownForError(json));
  }
  RETURN_IF_ERROR(MergeEosIds(json, config->vocab_size, &config->eos_token_ids));
  GenerationDefaults& defaults = config->generation;
  if (FindValue(json, "do_sample") != nullptr) {
    ASSIGN_OR_RETURN(defaults.do_sample, BoolOr(json, "do_sample", false));
  }
  ASSIGN_OR_RETURN(defaults.temperature, OptionalNumber(json, "temperature", FromTo(0.0, 100.0)));
  ASSIGN_OR_RETURN(defaults.top_p, OptionalNumber(json, "top_p", AboveUpTo(0.0, 1.0)));
  if (const Json* value = FindValue(json, "top_k"); value != nullptr) {
    ASSIGN_OR_RETURN(defaults.top_k, ToInteger(*value, "top_k", 0, kMaxVocab));
  }
  ASSIGN_OR_RETURN(defaults.min_p, OptionalNumber(json, "min_p", FromTo(0.0, 1.0)));
  ASSIGN_OR_RETURN(defaults.repetition_penalty,
                   OptionalNumber(json, "repetition_penalty", AboveUpTo(0.0, 100.0)));
  return OkStatus();
}

Result<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  if (!IsDirectory(model_dir)) {
    return NotFound("{} is not a folder", model_dir);
  }
  const std::string path = JoinPath(model_dir, "config.json");
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  Result<ModelConfig> config = ParseModelConfig(json);
  if (!config.ok()) {
    return config.status().Annotate(path);
  }
  const std::string generation_path = JoinPath(model_dir, "generation_config.json");
  if (FileExists(generation_path)) {
    ASSIGN_OR_RETURN(const Json generation, ReadJsonFile(generation_path));
    RETURN_IF_ERROR(MergeGenerationConfig(generation, &*config).Annotate(generation_path));
  }
  return config;
}

}  // namespace lserve
