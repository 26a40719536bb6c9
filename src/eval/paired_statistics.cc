#include "eval/paired_statistics.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "eval/questions.h"

namespace lserve {

void PairedTally::Add(double dense, double sparse) {
  const bool dense_is_right = IsRight(dense);
  const bool sparse_is_right = IsRight(sparse);
  ++total;
  dense_right += dense_is_right ? 1 : 0;
  sparse_right += sparse_is_right ? 1 : 0;
  lost += dense_is_right && !sparse_is_right ? 1 : 0;
  gained += sparse_is_right && !dense_is_right ? 1 : 0;
  dense_score += dense;
  sparse_score += sparse;
}

double PairedTally::DifferencePoints() const {
  return total == 0
             ? 0
             : 100.0 * static_cast<double>(sparse_right - dense_right) / static_cast<double>(total);
}

double McNemarExactP(int64_t lost, int64_t gained) {
  CHECK_GE(lost, 0);
  CHECK_GE(gained, 0);
  const int64_t flips = lost + gained;
  const int64_t fewer = std::min(lost, gained);
  // log C(n, i) / 2^n: the terms themselves underflow from n = 1075 on.
  const auto log_term = [&](int64_t i) {
    const auto n = static_cast<double>(flips);
    const auto k = static_cast<double>(i);
    return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1) - n * std::log(2.0);
  };
  double tail = 0;
  for (int64_t i = 0; i <= fewer; ++i) {
    tail += std::exp(log_term(i));
  }
  return std::min(1.0, 2 * tail);
}

std::pair<double, double> DifferenceInterval(const PairedTally& tally) {
  CHECK_GE(tally.total, 1);
  const double lost = static_cast<double>(tally.lost) + 0.5;
  const double gained = static_cast<double>(tally.gained) + 0.5;
  const double pairs = static_cast<double>(tally.total) + 2;
  const double difference = (gained - lost) / pairs;
  const double variance = ((lost + gained) / pairs - difference * difference) / pairs;
  constexpr double kNormalQuantile = 1.959964;  // of 97.5 %
  const double half = kNormalQuantile * std::sqrt(variance);
  return {std::max(-100.0, 100 * (difference - half)), std::min(100.0, 100 * (difference + half))};
}

}  // namespace lserve
