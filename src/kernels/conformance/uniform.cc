#include "kernels/conformance/uniform.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lserve::conformance {

TokenData UniformData(const LayerShape& shape, uint64_t seed) {
  const TokenData random = RandomData(seed);
  const auto dim = static_cast<size_t>(shape.head_dim);
  const auto queries = static_cast<size_t>(shape.q_heads()) * dim;
  const auto keys = static_cast<size_t>(shape.kv_heads()) * dim;
  return [=](int32_t sequence, int32_t position, std::span<float> qkv) {
    random(sequence, position, qkv);
    std::fill(qkv.begin(), qkv.begin() + static_cast<std::ptrdiff_t>(queries), 0.0f);
    for (size_t i = queries + keys; i < qkv.size(); ++i) {
      const auto place = (i + static_cast<size_t>(position)) % dim;
      const float cell = place == 0   ? 0.0f
                         : place == 1 ? 15.0f
                                      : std::clamp(std::round(7.5f + 3.0f * qkv[i]), 0.0f, 15.0f);
      qkv[i] = -8.0f + cell * 17.0f / 16.0f;  // int4 steps by 17/16, int8 by 1/16
    }
  };
}

testing::AssertionResult IsMeanOf(std::span<const float> output, const std::vector<int32_t>& tokens,
                                  const LayerShape& shape, DType dtype, const TokenData& data,
                                  int32_t sequence, int32_t head) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  const size_t first = static_cast<size_t>(shape.q_heads() + shape.kv_heads() + head) * dim;
  std::vector<double> sums(dim, 0.0);
  std::vector<float> qkv(static_cast<size_t>(shape.qkv_columns()));
  for (const int32_t token : tokens) {
    data(sequence, token, qkv);
    for (size_t d = 0; d < dim; ++d) {
      const float value = qkv[first + d];
      sums[d] += static_cast<double>(dtype == DType::kBFloat16 ? RoundToBFloat16(value) : value);
    }
  }
  std::vector<float> want(dim);
  for (size_t d = 0; d < dim; ++d) {
    want[d] = static_cast<float>(sums[d] / static_cast<double>(tokens.size()));
  }
  for (int32_t g = 0; g < shape.group; ++g) {
    const size_t query_head = static_cast<size_t>(head * shape.group + g);
    testing::AssertionResult near =
        Near(output.subspan(query_head * dim, dim), want, {1.0 / 200.0, 1e-4});
    if (!near) {
      return near << " in query head " << query_head << ", mean of " << tokens.size() << " tokens";
    }
  }
  return testing::AssertionSuccess();
}

std::vector<int32_t> StreamingTokens(const LayerShape& shape, int32_t position) {
  std::vector<int32_t> tokens;
  for (int32_t token = 0; token <= position; ++token) {
    if (token < shape.sink_tokens || position - token < shape.local_tokens) {
      tokens.push_back(token);
    }
  }
  return tokens;
}

std::vector<int32_t> TokensOf(const std::vector<int32_t>& units, int32_t unit_tokens,
                              int32_t tokens) {
  std::vector<int32_t> result;
  for (const int32_t unit : units) {
    for (int32_t token = unit * unit_tokens; token < std::min((unit + 1) * unit_tokens, tokens);
         ++token) {
      result.push_back(token);
    }
  }
  return result;
}

std::vector<int32_t> AllTokens(int32_t tokens) {
  std::vector<int32_t> result(static_cast<size_t>(tokens));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

}  // namespace lserve::conformance
