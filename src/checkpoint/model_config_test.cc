#include "checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/test_files.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Llama-2-7b's configuration as first published: no head_dim, no rope_theta.
constexpr const char* kLlama2 = R"({
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
  "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": null, "tie_word_embeddings": false, "vocab_size": 32000})";

constexpr const char* kLlama32 = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
  "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
  "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
  "vocab_size": 128256})";

constexpr const char* kMistral = R"({
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
  "vocab_size": 32768})";

constexpr const char* kQwen25 = R"({
  "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645,
  "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
  "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
  "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})";

constexpr const char* kQwen3 = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
  "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
  "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36,
  "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
  "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
  "vocab_size": 151936})";

Json Parsed(const char* text) { return ParseJson(text, "test").value(); }

// `base` with one field replaced, or removed if `value` is empty.
Json With(const char* base, const std::string& key, const std::string& value) {
  Json json = Parsed(base);
  if (value.empty()) {
    json.erase(key);
  } else {
    json[key] = Parsed(value.c_str());
  }
  return json;
}

TEST(ModelConfigTest, ReadsLlama2) {
  const ModelConfig config = ParseModelConfig(Parsed(kLlama2)).value();
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.vocab_size, 32000);
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.num_layers, 32);
  EXPECT_EQ(config.num_q_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.intermediate_size, 11008);
  EXPECT_EQ(config.max_position_embeddings, 4096);
  EXPECT_EQ(config.context_length, 4096);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(ParseModelConfig(With(kLlama2, "num_key_value_heads", ""))->num_kv_heads, 32);
}

TEST(ModelConfigTest, ReadsLlama32) {
  const ModelConfig config = ParseModelConfig(Parsed(kLlama32)).value();
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.rope.type, RopeType::kLlama3);
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.rope.factor, 32.0);
  EXPECT_EQ(config.rope.original_max_position_embeddings, 8192);
  EXPECT_EQ(config.context_length, 131072);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
}

TEST(ModelConfigTest, ReadsMistralAndQwen) {
  const ModelConfig mistral = ParseModelConfig(Parsed(kMistral)).value();
  EXPECT_EQ(mistral.rope.theta, 1e6);
  EXPECT_FALSE(mistral.qkv_bias);
  const ModelConfig qwen2 = ParseModelConfig(Parsed(kQwen25)).value();
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.qk_norm);
  EXPECT_EQ(qwen2.head_dim, 64);
  EXPECT_EQ(qwen2.num_q_heads / qwen2.num_kv_heads, 7);
  const ModelConfig qwen3 = ParseModelConfig(Parsed(kQwen3)).value();
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_EQ(ParseModelConfig(With(kQwen3, "head_dim", ""))->head_dim, 128);
}

TEST(ModelConfigTest, ReadsTheGoldenFolders) {
  for (const char* name :
       {"tiny-llama2", "tiny-llama31", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"}) {
    const auto config = LoadModelConfig(JoinPath(LSERVE_SOURCE_DIR "/tests/goldens", name));
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config->vocab_size, 512) << name;
    EXPECT_EQ(config->head_dim, 128) << name;
  }
}

TEST(ModelConfigTest, ReadsTheBundledModel) {
  const auto config = LoadModelConfig(LSERVE_SOURCE_DIR "/models/needle-7m");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->context_length, 65536);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 4));
  EXPECT_EQ(config->generation.do_sample, false);
  EXPECT_FALSE(config->generation.temperature.has_value());
}

TEST(ModelConfigTest, NullIsAbsent) {
  Json json = Parsed(kLlama2);
  for (const char* key : {"head_dim", "num_key_value_heads", "rope_theta", "bos_token_id",
                          "eos_token_id", "attention_bias", "quantization_config", "hidden_act",
                          "tie_word_embeddings", "rope_parameters", "layer_types"}) {
    json[key] = nullptr;
  }
  const auto config = ParseModelConfig(json);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->num_kv_heads, 32);
  EXPECT_FALSE(config->bos_token_id.has_value());
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
}

TEST(ModelConfigTest, AcceptsWindowsThatAreNotActive) {
  EXPECT_TRUE(ParseModelConfig(With(kMistral, "sliding_window", "32768")).ok());
  EXPECT_TRUE(ParseModelConfig(With(kQwen25, "sliding_window", "1024")).ok());
}

TEST(ModelConfigTest, ScalingStretchesTheContext) {
  const auto context = [](const char* base, const char* scaling) {
    const auto config = ParseModelConfig(With(base, "rope_scaling", scaling));
    EXPECT_TRUE(config.ok()) << config.status().message();
    return config.ok() ? config->context_length : -1;
  };
  EXPECT_EQ(context(kLlama2, R"({"type":"linear","factor":2.0})"), 8192);
  EXPECT_EQ(context(kQwen25, R"({"type":"yarn","factor":4.0,
                                 "original_max_position_embeddings":32768})"),
            131072);
  EXPECT_EQ(context(kQwen3, R"({"rope_type":"yarn","factor":1.25,
                                "original_max_position_embeddings":32768})"),
            40960);
  EXPECT_EQ(context(kLlama2, R"({"rope_type":"default"})"), 4096);
}

TEST(ModelConfigTest, RopePrecedenceIsThatOfTransformers) {
  Json json = Parsed(kLlama2);
  json["rope_theta"] = 5e5;
  json["rope_parameters"] = Parsed(R"({"rope_type":"linear","factor":3.0,"rope_theta":2e4})");
  ModelConfig config = ParseModelConfig(json).value();
  EXPECT_EQ(config.rope.theta, 2e4);
  EXPECT_EQ(config.rope.factor, 3.0);
  // An older rope_scaling wins, and "rope_type" over "type".
  json["rope_scaling"] =
      Parsed(R"({"type":"dynamic","rope_type":"yarn","original_max_position_embeddings":1024})");
  config = ParseModelConfig(json).value();
  EXPECT_EQ(config.rope.type, RopeType::kYarn);
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_EQ(config.rope.factor, 4.0);  // 4096 / 1024
  json["original_max_position_embeddings"] = 2048;
  config = ParseModelConfig(json).value();
  EXPECT_EQ(config.rope.original_max_position_embeddings, 2048);
}

struct Refused {
  const char* what;
  const char* base;
  const char* key;
  const char* value;  // JSON; empty removes the key
  StatusCode code;
  const char* error;
};

class RefusedConfigTest : public testing::TestWithParam<Refused> {};

TEST_P(RefusedConfigTest, NamesFieldAndValue) {
  const Refused& refused = GetParam();
  const auto config = ParseModelConfig(With(refused.base, refused.key, refused.value));
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), refused.code);
  EXPECT_THAT(config.status().message(), HasSubstr(refused.error));
}

constexpr StatusCode kBad = StatusCode::kInvalidArgument;
constexpr StatusCode kNot = StatusCode::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    MissingOrAbsurd, RefusedConfigTest,
    testing::Values(
        Refused{"NoArchitecture", kLlama2, "architectures", "", kBad, "\"architectures\""},
        Refused{"TwoArchitectures", kLlama2, "architectures", R"(["A","B"])", kBad, R"(["A","B"])"},
        Refused{"NoVocab", kLlama2, "vocab_size", "", kBad, "\"vocab_size\" is missing"},
        Refused{"NoHidden", kLlama2, "hidden_size", "", kBad, "\"hidden_size\" is missing"},
        Refused{"NoLayers", kLlama2, "num_hidden_layers", "", kBad, "\"num_hidden_layers\""},
        Refused{"NoHeads", kLlama2, "num_attention_heads", "", kBad, "\"num_attention_heads\""},
        Refused{"NoKvHeads", kQwen3, "num_key_value_heads", "", kBad, "\"num_key_value_heads\""},
        Refused{"NoIntermediate", kLlama2, "intermediate_size", "", kBad, "\"intermediate_size\""},
        Refused{"NoPositions", kLlama2, "max_position_embeddings", "", kBad, "is missing"},
        Refused{"NoEps", kLlama2, "rms_norm_eps", "", kBad, "\"rms_norm_eps\" is missing"},
        Refused{"ZeroVocab", kLlama2, "vocab_size", "0", kBad, "from 1 to 16777216, not 0"},
        Refused{"HugeVocab", kLlama2, "vocab_size", "16777217", kBad, "not 16777217"},
        Refused{"VocabAsText", kLlama2, "vocab_size", "\"32000\"", kBad, "not \"32000\""},
        Refused{"FractionalVocab", kLlama2, "vocab_size", "3.5", kBad, "not 3.5"},
        Refused{"NegativeHidden", kLlama2, "hidden_size", "-4096", kBad, "not -4096"},
        Refused{"HugeHidden", kLlama2, "hidden_size", "1e300", kBad, "1e+300"},
        Refused{"HugeLayers", kLlama2, "num_hidden_layers", "1025", kBad, "not 1025"},
        Refused{"ZeroHeads", kLlama2, "num_attention_heads", "0", kBad, "not 0"},
        Refused{"ZeroKvHeads", kLlama2, "num_key_value_heads", "0", kBad, "not 0"},
        Refused{"UnevenGroups", kLlama2, "num_key_value_heads", "5", kBad,
                "32 is no multiple of \"num_key_value_heads\" 5"},
        Refused{"UnevenHidden", kLlama2, "hidden_size", "4100", kBad, "4100 is no multiple"},
        Refused{"ZeroEps", kLlama2, "rms_norm_eps", "0", kBad, "not 0"},
        Refused{"LargeEps", kLlama2, "rms_norm_eps", "1.0", kBad, "not 1.0"},
        Refused{"ZeroTheta", kLlama2, "rope_theta", "0", kBad, "\"rope_theta\""},
        Refused{"NegativeTheta", kLlama2, "rope_theta", "-10000.0", kBad, "not -10000.0"},
        Refused{"TieAsNumber", kLlama2, "tie_word_embeddings", "1", kBad, "true or false, not 1"},
        Refused{"BosOutsideVocab", kLlama2, "bos_token_id", "32000", kBad, "to 31999, not 32000"},
        Refused{"NegativeEos", kLlama2, "eos_token_id", "-1", kBad, "not -1"},
        Refused{"EosListOutside", kLlama2, "eos_token_id", "[2, 99999]", kBad, "not 99999"},
        Refused{"EosAsText", kLlama2, "eos_token_id", "\"</s>\"", kBad, "\"eos_token_id\""},
        Refused{"ScalingAsText", kLlama2, "rope_scaling", "\"yarn\"", kBad, "\"rope_scaling\""},
        Refused{"NoFactor", kLlama2, "rope_scaling", R"({"type":"linear"})", kBad,
                "\"factor\" is missing"},
        Refused{"FactorBelowOne", kLlama2, "rope_scaling", R"({"type":"linear","factor":0.5})",
                kBad, "not 0.5"},
        Refused{"StretchedTooFar", kLlama2, "rope_scaling", R"({"type":"linear","factor":9999})",
                kBad, "40955904"},
        Refused{"NoLowFactor", kLlama2, "rope_scaling",
                R"({"rope_type":"llama3","factor":8,"high_freq_factor":4})", kBad,
                "\"low_freq_factor\" is missing"},
        Refused{"FactorsCrossed", kLlama2, "rope_scaling",
                R"({"rope_type":"llama3","factor":8,"high_freq_factor":1,"low_freq_factor":4})",
                kBad, "\"high_freq_factor\" 1 must be above"},
        Refused{"BetasCrossed", kLlama2, "rope_scaling",
                R"({"rope_type":"yarn","factor":8,"beta_fast":1,"beta_slow":32})", kBad,
                "\"beta_fast\" 1 must be above"},
        Refused{"ZeroOriginal", kLlama2, "rope_scaling",
                R"({"rope_type":"yarn","factor":8,"original_max_position_embeddings":0})", kBad,
                "\"original_max_position_embeddings\""},
        Refused{"LayerTypesTooFew", kQwen3, "layer_types", R"(["full_attention"])", kBad,
                "list of 36"}),
    [](const auto& tested) { return tested.param.what; });

INSTANTIATE_TEST_SUITE_P(
    Unsupported, RefusedConfigTest,
    testing::Values(
        Refused{"Architecture", kLlama2, "architectures", R"(["GPT2LMHeadModel"])", kNot,
                "\"GPT2LMHeadModel\" is not supported"},
        Refused{"MistralWindow", kMistral, "sliding_window", "4096", kNot,
                "\"sliding_window\" 4096 is active"},
        Refused{"Qwen2Window", kQwen25, "use_sliding_window", "true", kNot,
                "\"use_sliding_window\""},
        Refused{"LayerTypes", kQwen3, "layer_types",
                R"(["full_attention","sliding_attention","f","f","f","f","f","f","f","f","f","f",
                    "f","f","f","f","f","f","f","f","f","f","f","f","f","f","f","f","f","f","f",
                    "f","f","f","f","f"])",
                kNot, "\"sliding_attention\""},
        Refused{"Dynamic", kLlama2, "rope_scaling", R"({"type":"dynamic","factor":2.0})", kNot,
                "\"dynamic\" is not supported"},
        Refused{"LongRope", kLlama2, "rope_scaling", R"({"rope_type":"longrope"})", kNot,
                "\"longrope\""},
        Refused{"RopeTypeAsNumber", kLlama2, "rope_parameters", R"({"rope_type":3})", kNot,
                "RoPE type 3"},
        Refused{"RopeByLayerType", kQwen3, "rope_parameters",
                R"({"full_attention":{"rope_type":"default"}})", kNot, "\"full_attention\""},
        Refused{"PartialRotary", kLlama2, "partial_rotary_factor", "0.5", kNot, "0.5"},
        Refused{"PartialRotaryInside", kLlama2, "rope_parameters",
                R"({"rope_type":"default","partial_rotary_factor":0.25})", kNot, "0.25"},
        Refused{"HiddenAct", kLlama2, "hidden_act", "\"gelu\"", kNot, "\"gelu\""},
        Refused{"AttentionBias", kLlama32, "attention_bias", "true", kNot, "\"attention_bias\""},
        Refused{"MlpBias", kLlama32, "mlp_bias", "true", kNot, "\"mlp_bias\""},
        Refused{"Quantized", kLlama2, "quantization_config", R"({"quant_method":"gptq"})", kNot,
                "\"gptq\""},
        Refused{"HeadDim256", kQwen3, "head_dim", "256", kNot, "head size 256"},
        Refused{"HeadDimDerived", kLlama2, "num_attention_heads", "128", kNot, "head size 32"}),
    [](const auto& tested) { return tested.param.what; });

TEST(ModelConfigTest, SupportsEveryHeadSize) {
  for (const int64_t head_dim : {64, 80, 96, 128}) {
    EXPECT_EQ(ParseModelConfig(With(kQwen3, "head_dim", fmt::format("{}", head_dim)))->head_dim,
              head_dim);
    EXPECT_EQ(
        ParseModelConfig(With(kLlama2, "hidden_size", fmt::format("{}", 32 * head_dim)))->head_dim,
        head_dim);
  }
}

TEST(GenerationConfigTest, IsMerged) {
  ModelConfig config = ParseModelConfig(Parsed(kQwen25)).value();
  const Json json = Parsed(R"({"eos_token_id":[151645,151643],"do_sample":true,"temperature":0.7,
                               "top_p":0.8,"top_k":20,"repetition_penalty":1.05,"other":[]})");
  ASSERT_TRUE(MergeGenerationConfig(json, &config).ok());
  EXPECT_THAT(config.eos_token_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(config.generation.do_sample, true);
  EXPECT_EQ(config.generation.temperature, 0.7);
  EXPECT_EQ(config.generation.top_p, 0.8);
  EXPECT_EQ(config.generation.top_k, 20);
  EXPECT_EQ(config.generation.repetition_penalty, 1.05);
}

TEST(GenerationConfigTest, RefusesAbsurdValues) {
  for (const char* text : {R"({"temperature":-1})", R"({"top_p":0})", R"({"top_p":1.5})",
                           R"({"top_k":-2})", R"({"repetition_penalty":0})",
                           R"({"do_sample":"yes"})", R"({"eos_token_id":32000})", R"([])"}) {
    ModelConfig config = ParseModelConfig(Parsed(kLlama2)).value();
    EXPECT_EQ(MergeGenerationConfig(Parsed(text), &config).code(), kBad) << text;
  }
}

TEST(LoadModelConfigTest, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  const auto error = [&] { return LoadModelConfig(folder.path()).status(); };
  EXPECT_EQ(LoadModelConfig(folder.path() + "/nowhere").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(error().code(), StatusCode::kNotFound);
  EXPECT_THAT(error().message(), HasSubstr("/config.json"));
  folder.Write("config.json", "{");
  EXPECT_THAT(error().message(), HasSubstr("/config.json is not valid JSON"));
  folder.Write("config.json", "[]");
  EXPECT_THAT(error().message(), HasSubstr("/config.json: must be a JSON object"));
  folder.Write("config.json", With(kLlama2, "vocab_size", "0").dump());
  EXPECT_THAT(error().message(), HasSubstr("/config.json: \"vocab_size\""));
  folder.Write("config.json", kLlama2);
  EXPECT_TRUE(LoadModelConfig(folder.path()).ok());
  folder.Write("generation_config.json", R"({"top_p":7})");
  EXPECT_THAT(error().message(), HasSubstr("/generation_config.json: \"top_p\""));
}

}  // namespace
}  // namespace lserve
