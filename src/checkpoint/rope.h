// Rotary position embedding: what a configuration asks for, and the frequencies that follow, as
// Hugging Face transformers computes them (its modeling_rope_utils). Values and a pure function;
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace lserve {

enum class RopeType {
  kDefault,  // Su et al., RoFormer, arXiv 2104.09864
  kLinear,   // position interpolation: Chen et al., arXiv 2306.15595
  kLlama3,   // Llama 3.1's wavelength-dependent scaling
  kYarn,     // Peng et al., YaRN, arXiv 2309.00071
};

const char* RopeTypeName(RopeType type);

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;  // the base; > 1
  // linear, llama3, yarn: how many times the context is stretched; >= 1.
  double factor = 1.0;
  // llama3: wavelengths above original / low_freq_factor are stretched fully, those below
  // original / high_freq_factor not at all. 0 < low < high.
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  // llama3, yarn: the context length before stretching; >= 1.
  int64_t original_max_position_embeddings = 0;
  // yarn: dimensions that turn more than beta_fast times within the original context keep their
  // frequency, those that turn less than beta_slow times are stretched fully. fast > slow > 0.
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  // yarn: the factor on cos and sin; absent: from factor, mscale and mscale_all_dim.
  std::optional<double> attention_factor;
  std::optional<double> mscale;
  std::optional<double> mscale_all_dim;
  bool truncate = true;  // yarn: the bounds of the ramp are rounded outwards to whole dimensions
};

// Pair i of a head is dimensions i and i + head_dim / 2, turned by position *
// inverse_frequencies[i] (both float32); cos and sin are multiplied by attention_factor.
struct RopeTable {
  std::vector<float> inverse_frequencies;  // [head_dim / 2]
  float attention_factor = 1.0f;           // 1 except under yarn
};

// `head_dim` is even. `config` comes checked from ParseModelConfig.
RopeTable ComputeRope(const RopeConfig& config, int64_t head_dim);

}  // namespace lserve
