#include "checkpoint/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace lserve {
namespace {

// theta^(2i / head_dim), float32 in every step that transformers takes in float32. The power itself
// is rounded from double: transformers' own is within one unit in the last place of that.
std::vector<float> Periods(double theta, int64_t head_dim) {
  std::vector<float> periods(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < periods.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    periods[i] = static_cast<float>(
        std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
  }
  return periods;
}

void ScaleLlama3(const RopeConfig& config, std::vector<float>* frequencies) {
  const auto factor = static_cast<float>(config.factor);
  const auto original = static_cast<double>(config.original_max_position_embeddings);
  const auto low_wavelength = static_cast<float>(original / config.low_freq_factor);
  const auto high_wavelength = static_cast<float>(original / config.high_freq_factor);
  const auto low = static_cast<float>(config.low_freq_factor);
  const auto width = static_cast<float>(config.high_freq_factor - config.low_freq_factor);
  for (float& frequency : *frequencies) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / frequency;
    if (wavelength > low_wavelength) {
      frequency = frequency / factor;
    } else if (!(wavelength < high_wavelength)) {
      const float smooth = (static_cast<float>(original) / wavelength - low) / width;
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

// The (fractional) pair that turns `rotations` times within the original context; the inverse of
// theta^(-2i/D) * original = 2 pi rotations.
double CorrectionPair(const RopeConfig& config, int64_t head_dim, double rotations) {
  const auto original = static_cast<double>(config.original_max_position_embeddings);
  return static_cast<double>(head_dim) * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(config.theta));
}

std::vector<float> YarnFrequencies(const RopeConfig& config, int64_t head_dim) {
  double low = CorrectionPair(config, head_dim, config.beta_fast);
  double high = CorrectionPair(config, head_dim, config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) {
    high += 0.001;  // as transformers does, against a division by zero
  }
  std::vector<float> frequencies = Periods(config.theta, head_dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float period = frequencies[i];
    const float extrapolated = 1.0f / period;
    const float interpolated = 1.0f / (static_cast<float>(config.factor) * period);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    frequencies[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return frequencies;
}

double YarnMagnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double YarnAttentionFactor(const RopeConfig& config) {
  if (config.attention_factor.has_value()) {
    return *config.attention_factor;
  }
  const double mscale = config.mscale.value_or(0.0);
  const double mscale_all_dim = config.mscale_all_dim.value_or(0.0);
  if (mscale != 0.0 && mscale_all_dim != 0.0) {
    return YarnMagnitude(config.factor, mscale) / YarnMagnitude(config.factor, mscale_all_dim);
  }
  return YarnMagnitude(config.factor, 1.0);
}

}  // namespace

const char* RopeTypeName(RopeType type) {
  switch (type) {
    case RopeType::kDefault: return "default";
    case RopeType::kLinear: return "linear";
    case RopeType::kLlama3: return "llama3";
    case RopeType::kYarn: return "yarn";
  }
  return "unknown";
}

RopeTable ComputeRope(const RopeConfig& config, int64_t head_dim) {
  CHECK_GT(head_dim, 0);
  CHECK_EQ(head_dim % 2, 0);
  RopeTable table;
  if (config.type == RopeType::kYarn) {
    table.inverse_frequencies = YarnFrequencies(config, head_dim);
    table.attention_factor = static_cast<float>(YarnAttentionFactor(config));
    return table;
  }
  table.inverse_frequencies = Periods(config.theta, head_dim);
  for (float& value : table.inverse_frequencies) {
    value = 1.0f / value;
  }
  if (config.type == RopeType::kLinear) {
    for (float& value : table.inverse_frequencies) {
      value = value / static_cast<float>(config.factor);
    }
  } else if (config.type == RopeType::kLlama3) {
    ScaleLlama3(config, &table.inverse_frequencies);
  }
  return table;
}

}  // namespace lserve
