// One linear layer in several copies of its weight, for benchmarks: random bf16 weights and
// activations, and the arrays of a step. Repetition i of the operation takes copy i % copies. Used
// by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace lserve::bench {

enum class RowKind { kDecode, kPrefill, kLogits };

struct LinearShape {
  int64_t out_features = 0;
  int64_t in_features = 0;
  Epilogue epilogue = Epilogue::kNone;
  int32_t copies = 1;
  int32_t rows = 0;  // at most

  int64_t weight_bytes() const { return out_features * in_features * 2; }
  int64_t columns() const {
    return epilogue == Epilogue::kSiluMul ? out_features / 2 : out_features;
  }
};

class LinearLayers {
 public:
  // CHECKs that the memory suffices.
  LinearLayers(Backend& backend, const LinearShape& shape);

  const LinearShape& shape() const { return shape_; }
  Stream& stream() { return *stream_; }

  // From here on `rows` rows of this kind; logits are float32.
  void Start(RowKind kind, int32_t rows);
  // Appends to `stream`, which is by default this layer's own.
  void Run(int32_t repetition) { Run(repetition, *stream_); }
  void Run(int32_t repetition, Stream& stream);
  const char* variant() const;

 private:
  Backend& backend_;
  const LinearShape shape_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<PackedLinear>> weights_;
  Buffer input_, output_, words_, workspace_;
  LinearParams params_{};
};

}  // namespace lserve::bench
