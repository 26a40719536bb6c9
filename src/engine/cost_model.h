// What a step costs: an estimate that sizes prompt chunks, fitted to measured steps. Values and one
// class; used by one thread (the engine's).
#pragma once

#include <cstdint>

namespace lserve {

// Seconds of a step = decode rows * decode_row_seconds
//                   + sum over prefill rows of (row_seconds + row_context_seconds * keys it sees).
struct CostEstimate {
  // Before anything is measured a step is 128 rows, whatever the model: a larger guess could take
  // a minute on a large model.
  double row_seconds = 1.0 / 128;
  double row_context_seconds = 0;
  double decode_row_seconds = 0;

  // Keys that the prefill rows at positions [first, first + rows) see, summed: row i sees i + 1.
  static double RowContext(int64_t first, int64_t rows);

  double PrefillSeconds(int64_t first, int64_t rows) const;
};

// Least squares over the last few steps (old ones fade by a constant factor). Regularised towards
// the estimate before, so a coefficient that the recent steps say nothing about stays.
class CostFit {
 public:
  // prefill_row_context: RowContext summed over the step's chunks. seconds: measured, > 0.
  void Observe(int64_t decode_rows, int64_t prefill_rows, double prefill_row_context,
               double seconds);

  const CostEstimate& estimate() const { return estimate_; }

 private:
  void FitPrefill(double rows, double row_context, double seconds);

  CostEstimate estimate_;
  bool has_prefill_ = false;
  bool has_decode_ = false;
  // Normal equations over (rows, row context): rr, rc, cc and rt, ct.
  double rr_ = 0, rc_ = 0, cc_ = 0, rt_ = 0, ct_ = 0;
};

}  // namespace lserve
