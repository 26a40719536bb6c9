#include "engine/cost_model.h"

#include <algorithm>

namespace lserve {
namespace {

constexpr double kFade = 0.7;     // of a step's weight, with each later step
constexpr double kOutlier = 4.0;  // a step counts as at most this many times its estimate
constexpr double kMinRowSeconds = 1e-9;
// Weight of the estimate before: a small fraction of one step of 128 rows at 2048 keys.
constexpr double kRidge = 0.02;
constexpr double kRidgeRows = 128.0;
constexpr double kRidgeContext = 128.0 * 2048.0;

}  // namespace

double CostEstimate::RowContext(int64_t first, int64_t rows) {
  const auto n = static_cast<double>(rows);
  return n * static_cast<double>(first) + n * (n + 1) / 2;
}

double CostEstimate::PrefillSeconds(int64_t first, int64_t rows) const {
  return row_seconds * static_cast<double>(rows) + row_context_seconds * RowContext(first, rows);
}

void CostFit::Observe(int64_t decode_rows, int64_t prefill_rows, double prefill_row_context,
                      double seconds) {
  const auto decoded = static_cast<double>(decode_rows);
  if (prefill_rows > 0) {
    // The decode rows' share is taken as known. At least a tenth is left to prefill: an
    // overestimated decode row must not make prompts look free.
    const double rest = seconds - decoded * estimate_.decode_row_seconds;
    FitPrefill(static_cast<double>(prefill_rows), prefill_row_context,
               std::max(rest, 0.1 * seconds));
  } else if (decode_rows > 0) {
    const double row = seconds / decoded;
    estimate_.decode_row_seconds =
        has_decode_ ? kFade * estimate_.decode_row_seconds + (1 - kFade) * row : row;
    has_decode_ = true;
  }
}

void CostFit::FitPrefill(double rows, double row_context, double seconds) {
  const double before = estimate_.row_seconds * rows + estimate_.row_context_seconds * row_context;
  // One step that was swapped out must not shrink the chunks of the next dozen.
  if (has_prefill_) seconds = std::min(seconds, kOutlier * before);
  // The initial guess knows nothing: the first step replaces it.
  if (!has_prefill_) estimate_.row_seconds = seconds / rows;
  has_prefill_ = true;

  rr_ = kFade * rr_ + rows * rows;
  rc_ = kFade * rc_ + rows * row_context;
  cc_ = kFade * cc_ + row_context * row_context;
  rt_ = kFade * rt_ + rows * seconds;
  ct_ = kFade * ct_ + row_context * seconds;

  const double ridge_r = kRidge * kRidgeRows * kRidgeRows;
  const double ridge_c = kRidge * kRidgeContext * kRidgeContext;
  const double a = rr_ + ridge_r;
  const double d = cc_ + ridge_c;
  const double x = rt_ + ridge_r * estimate_.row_seconds;
  const double y = ct_ + ridge_c * estimate_.row_context_seconds;
  const double determinant = a * d - rc_ * rc_;  // > 0: a Gram matrix plus a positive diagonal
  double row = (x * d - rc_ * y) / determinant;
  double context = (a * y - rc_ * x) / determinant;
  // Neither can be negative; the other one then explains the steps alone.
  if (context < 0) {
    context = 0;
    row = x / a;
  } else if (row < kMinRowSeconds) {
    row = kMinRowSeconds;
    context = y / d;
  }
  estimate_.row_seconds = std::max(row, kMinRowSeconds);
  estimate_.row_context_seconds = context;
}

}  // namespace lserve
