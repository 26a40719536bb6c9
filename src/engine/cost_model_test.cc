#include "engine/cost_model.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace lserve {
namespace {

TEST(CostEstimate, RowContextIsTheSumOfKeys) {
  EXPECT_EQ(CostEstimate::RowContext(0, 3), 1 + 2 + 3);
  EXPECT_EQ(CostEstimate::RowContext(10, 2), 11 + 12);
}

TEST(CostFit, BeginsWith128Rows) {
  EXPECT_NEAR(CostFit().estimate().PrefillSeconds(0, 128), 1.0, 1e-12);
}

// Steps of a prefill of 64K tokens on a machine with these costs.
CostFit Prefilled(double row, double row_context, double noise) {
  CostFit fit;
  int64_t position = 0;
  for (uint64_t step = 0; position < 65536; ++step) {
    const int64_t rows = 128 * (1 + Philox(3, step)[0] % 8);
    const double context = CostEstimate::RowContext(position, rows);
    const double jitter = 1 + noise * (2 * UniformFloat(Philox(4, step)[0]) - 1);
    fit.Observe(0, rows, context,
                (row * static_cast<double>(rows) + row_context * context) * jitter);
    position += rows;
  }
  return fit;
}

TEST(CostFit, FindsTheCoefficientsAtAnySpeed) {
  for (const double row : {1e-6, 1e-4, 1e-2}) {
    for (const double ratio : {0.0, 1e-5, 1e-3}) {
      const CostEstimate estimate = Prefilled(row, row * ratio, 0).estimate();
      const CostEstimate truth = {.row_seconds = row, .row_context_seconds = row * ratio};
      const double expected = truth.PrefillSeconds(65536, 512);
      EXPECT_NEAR(estimate.PrefillSeconds(65536, 512), expected, 0.02 * expected)
          << row << " " << ratio;
    }
  }
}

TEST(CostFit, BearsNoise) {
  const CostEstimate truth = {.row_seconds = 1e-4, .row_context_seconds = 1e-8};
  const double expected = truth.PrefillSeconds(65536, 1024);
  EXPECT_NEAR(Prefilled(1e-4, 1e-8, 0.2).estimate().PrefillSeconds(65536, 1024), expected,
              0.25 * expected);
}

TEST(CostFit, RecoversFromASlowFirstStep) {
  CostFit fit;
  fit.Observe(0, 128, CostEstimate::RowContext(0, 128), 30.0);
  for (int64_t step = 1; step < 16; ++step) {
    fit.Observe(0, 128, CostEstimate::RowContext(128 * step, 128), 0.01);
  }
  EXPECT_LT(fit.estimate().PrefillSeconds(2048, 128), 0.3);
}

TEST(CostFit, AnOutlierCountsAsFourTimesItsEstimate) {
  CostFit fit = Prefilled(1e-4, 0, 0);
  fit.Observe(0, 1024, CostEstimate::RowContext(0, 1024), 60.0);
  EXPECT_LT(fit.estimate().PrefillSeconds(0, 1024), 0.5);
}

TEST(CostFit, DecodeRowsAreLearntApart) {
  CostFit fit;
  fit.Observe(4, 0, 0, 0.02);
  EXPECT_NEAR(fit.estimate().decode_row_seconds, 0.005, 1e-12);
  EXPECT_NEAR(fit.estimate().row_seconds, 1.0 / 128, 1e-12);
  // Of a mixed step, prefill gets what decode leaves.
  fit.Observe(4, 128, CostEstimate::RowContext(0, 128), 0.02 + 0.128);
  EXPECT_NEAR(fit.estimate().PrefillSeconds(0, 128), 0.128, 0.01);
  // And never less than a tenth.
  CostFit slow;
  slow.Observe(1, 0, 0, 10.0);
  slow.Observe(1, 128, CostEstimate::RowContext(0, 128), 1.0);
  EXPECT_GT(slow.estimate().PrefillSeconds(0, 128), 0.09);
}

TEST(CostFit, NeverNegative) {
  CostFit fit;
  for (uint64_t step = 0; step < 2000; ++step) {
    const int64_t rows = 1 + Philox(5, step)[0] % 2048;
    const int64_t first = 128 * (Philox(5, step)[1] % 512);
    fit.Observe(Philox(5, step)[2] % 3, rows, CostEstimate::RowContext(first, rows),
                1e-3 + UniformFloat(Philox(5, step)[3]));
    ASSERT_GT(fit.estimate().row_seconds, 0);
    ASSERT_GE(fit.estimate().row_context_seconds, 0);
  }
}

}  // namespace
}  // namespace lserve
