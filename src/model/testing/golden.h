// Golden logits: what Hugging Face transformers computed in float32 (tests/goldens), and how far a
// result is from them. For tests.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lserve::testing {

struct LogitsError {
  double relative = 0;  // 2-norm of the difference over the 2-norm of the reference
  int64_t rows = 0;
  int64_t argmax_differs = 0;  // rows whose largest logit is elsewhere
  int64_t clear_rows = 0;      // rows whose top-2 margin exceeds 0.1 RMS of the row's logits
  int64_t clear_differs = 0;   // of those, rows whose argmax differs
};

// got, want: [rows, vocab_size]
LogitsError CompareLogits(std::span<const float> got, std::span<const float> want,
                          int64_t vocab_size);

}  // namespace lserve::testing
