// The named scalar functions of which `ref` composes the fused operations: the definition of what
// every backend computes. Inputs are stored values; sums and functions are double; the caller
// rounds once. Free functions, thread-safe.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/dtype.h"

namespace lserve::ref {

// x as it reads back after being stored as a T.
template <typename T>
float Round(double x) {
  return ToFloat(FromFloat<T>(static_cast<float>(x)));
}

template <typename T>
T Store(double x) {
  return FromFloat<T>(static_cast<float>(x));
}

// sum_i a[i] * b[i]. Eight partial sums, because one would wait for itself.
template <typename A, typename B>
double Dot(const A* a, const B* b, int64_t n) {
  double sums[8] = {};
  const int64_t whole = n / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) {
      sums[lane] +=
          static_cast<double>(ToFloat(a[i + lane])) * static_cast<double>(ToFloat(b[i + lane]));
    }
  }
  double total = 0.0;
  for (int64_t i = whole; i < n; ++i) {
    total += static_cast<double>(ToFloat(a[i])) * static_cast<double>(ToFloat(b[i]));
  }
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

// 1 / rms(x), rms(x) = sqrt(mean(x^2) + epsilon) (Zhang and Sennrich, 2019).
inline double InverseRms(std::span<const double> x, double epsilon) {
  double squares = 0.0;
  for (const double value : x) {
    squares += value * value;
  }
  return 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
}

// x[i] = x[i] / rms(x) * weight[i]
template <typename T>
void RmsNorm(std::span<double> x, const T* weight, double epsilon) {
  const double inverse = InverseRms(x, epsilon);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = x[i] * inverse * static_cast<double>(ToFloat(weight[i]));
  }
}

inline double Silu(double x) { return x / (1.0 + std::exp(-x)); }

// Rotary embedding in NeoX halves (Su et al., 2021): the pair (x[d], x[d + D / 2]) turns by angle
// d, given as (cos, sin).
inline void Rotate(std::span<double> x, const float* angles) {
  const size_t half = x.size() / 2;
  for (size_t d = 0; d < half; ++d) {
    const double cosine = static_cast<double>(angles[2 * d]);
    const double sine = static_cast<double>(angles[2 * d + 1]);
    const double low = x[d];
    const double high = x[d + half];
    x[d] = low * cosine - high * sine;
    x[d + half] = high * cosine + low * sine;
  }
}

// A cached token as one KV head sees it.
template <typename T>
struct CachedToken {
  const T* key;    // [head_dim]
  const T* value;  // [head_dim]
};

// output = sum_t P_t v_t / sum_t p_t with s_t = q . k_t / sqrt(D), p_t = exp(s_t - max s). P is p
// rounded to T before the product with the values, as tensor units take it; the sum of the
// denominator sees p unrounded. Without tokens the output is zero. Returns log(sum_t exp(s_t)).
template <typename T>
double SoftmaxAttention(const T* q, std::span<const CachedToken<T>> tokens, int32_t head_dim,
                        T* output) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> scores(tokens.size());
  double maximum = -INFINITY;
  for (size_t t = 0; t < tokens.size(); ++t) {
    scores[t] = Dot(q, tokens[t].key, head_dim) * scale;
    maximum = std::max(maximum, scores[t]);
  }
  std::vector<double> sums(static_cast<size_t>(head_dim), 0.0);
  double denominator = 0.0;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const double p = std::exp(scores[t] - maximum);
    denominator += p;
    const double rounded = static_cast<double>(Round<T>(p));
    for (size_t d = 0; d < sums.size(); ++d) {
      sums[d] += rounded * static_cast<double>(ToFloat(tokens[t].value[d]));
    }
  }
  for (size_t d = 0; d < sums.size(); ++d) {
    output[d] = Store<T>(tokens.empty() ? 0.0 : sums[d] / denominator);
  }
  return maximum + std::log(denominator);
}

// Whether a row weighs each block of its walk, given the highest score s / sqrt(D) that it has in
// each (-inf: it sees no key there): exp(score) at least `threshold` times exp(highest score so
// far), which is looked at after every `step` blocks.
inline std::vector<bool> WeighedBlocks(std::span<const double> scores, double threshold,
                                       size_t step) {
  std::vector<bool> weighed;
  double running = -INFINITY;
  for (size_t begin = 0; begin < scores.size(); begin += step) {
    const size_t end = std::min(begin + step, scores.size());
    for (size_t i = begin; i < end; ++i) {
      running = std::max(running, scores[i]);
    }
    for (size_t i = begin; i < end; ++i) {
      weighed.push_back(std::exp(scores[i] - running) >= threshold);
    }
  }
  return weighed;
}

// What one query head thinks of a logical page: sum_d max(q_d kmax_d, q_d kmin_d) / sqrt(D)
// (LServe, section 3.5.1), with q rounded to bf16.
template <typename T>
double PageScoreOf(const T* q, const T* minimum, const T* maximum, int32_t head_dim) {
  double sum = 0.0;
  for (int32_t d = 0; d < head_dim; ++d) {
    const double query = static_cast<double>(RoundToBFloat16(ToFloat(q[d])));
    sum += std::max(query * static_cast<double>(ToFloat(minimum[d])),
                    query * static_cast<double>(ToFloat(maximum[d])));
  }
  return sum / std::sqrt(static_cast<double>(head_dim));
}

// What one query head thinks of a key: q k / sqrt(D), with q rounded to bf16. key(d) is the key's
// element, as it is or as its sketch reads it back.
template <typename T, typename Key>
double KeyScoreOf(const T* q, Key key, int32_t head_dim) {
  double sum = 0.0;
  for (int32_t d = 0; d < head_dim; ++d) {
    sum += static_cast<double>(RoundToBFloat16(ToFloat(q[d]))) * static_cast<double>(key(d));
  }
  return sum / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace lserve::ref
