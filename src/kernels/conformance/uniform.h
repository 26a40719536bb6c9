// Attention whose result is known without attention: queries are zero, so every visible token
// weighs the same and a row's output is the mean of the values that it sees. One token too many,
// too few or twice shows in every element. Values are such that every page format holds them
// exactly.
#pragma once

#include <vector>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {

// Zero queries, random keys, and random values among 16 that lie on the grids of int4 and int8 (the
// lowest and the highest are in every row, which fixes its grid).
TokenData UniformData(const LayerShape& shape, uint64_t seed);

// Whether query heads of KV head `head` in `output` (a row's [q_heads, head_dim]) are the mean of
// the values of `tokens`.
testing::AssertionResult IsMeanOf(std::span<const float> output, const std::vector<int32_t>& tokens,
                                  const LayerShape& shape, DType dtype, const TokenData& data,
                                  int32_t sequence, int32_t head);

// What a streaming head's query at `position` sees.
std::vector<int32_t> StreamingTokens(const LayerShape& shape, int32_t position);

// Tokens below `tokens` of units of `unit_tokens`.
std::vector<int32_t> TokensOf(const std::vector<int32_t>& units, int32_t unit_tokens,
                              int32_t tokens);

// [0, tokens)
std::vector<int32_t> AllTokens(int32_t tokens);

}  // namespace lserve::conformance
