// Statistics of two modes that answered the same questions. Free functions, thread-safe.
#pragma once

#include <cstdint>
#include <utility>

namespace lserve {

// Counts of one group of questions.
struct PairedTally {
  int64_t total = 0;
  int64_t dense_right = 0;
  int64_t sparse_right = 0;
  int64_t lost = 0;        // right with dense, wrong with sparse
  int64_t gained = 0;      // wrong with dense, right with sparse
  double dense_score = 0;  // sums of scores in [0, 1]: partial credit counts
  double sparse_score = 0;

  void Add(double dense, double sparse);
  // Percentage points, sparse minus dense; 0 without questions.
  double DifferencePoints() const;
};

// McNemar's exact two-sided test (McNemar 1947, binomial form): the probability, if a flip were as
// likely either way, of flips at least as one-sided as these. 1 without a flip.
double McNemarExactP(int64_t lost, int64_t gained);

// 95 % interval of the difference in percentage points, sparse minus dense, of matched pairs: Wald
// with half a pair added to each kind of pair (Agresti and Min, Statistics in Medicine 24, 2005),
// cut to [-100, 100]. It has width also where no answer flipped. total >= 1.
std::pair<double, double> DifferenceInterval(const PairedTally& tally);

}  // namespace lserve
