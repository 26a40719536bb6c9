#include "model/testing/golden.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace lserve::testing {

LogitsError CompareLogits(std::span<const float> got, std::span<const float> want,
                          int64_t vocab_size) {
  CHECK_EQ(got.size(), want.size());
  const auto width = static_cast<size_t>(vocab_size);
  CHECK_EQ(want.size() % width, 0u);
  LogitsError error;
  double difference = 0;
  double norm = 0;
  for (size_t begin = 0; begin < want.size(); begin += width) {
    const auto g = got.subspan(begin, width);
    const auto w = want.subspan(begin, width);
    double row_norm = 0;
    for (size_t i = 0; i < width; ++i) {
      const double d = static_cast<double>(g[i]) - w[i];
      difference += d * d;
      row_norm += static_cast<double>(w[i]) * w[i];
    }
    norm += row_norm;
    const auto best = std::max_element(w.begin(), w.end());
    float second = -INFINITY;
    for (auto it = w.begin(); it != w.end(); ++it) {
      if (it != best) {
        second = std::max(second, *it);
      }
    }
    const bool differs = std::max_element(g.begin(), g.end()) - g.begin() != best - w.begin();
    const bool clear = *best - second > 0.1 * std::sqrt(row_norm / static_cast<double>(width));
    ++error.rows;
    error.argmax_differs += differs ? 1 : 0;
    error.clear_rows += clear ? 1 : 0;
    error.clear_differs += differs && clear ? 1 : 0;
  }
  error.relative = std::sqrt(difference / norm);
  // A NaN anywhere must not pass a comparison.
  if (std::isnan(error.relative)) {
    error.relative = INFINITY;
  }
  return error;
}

}  // namespace lserve::testing
