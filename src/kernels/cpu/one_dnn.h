// One oneDNN matrix product of fixed shape: kTileRows rows of bf16 times a slice of a packed weight
// gives float32. Made once (with one thread, on the caller's), then run by any thread at any time.
#pragma once

#include <cstdint>
#include <memory>

#include "tensor/dtype.h"

namespace lserve::cpu {

class OneDnnProduct {
 public:
  // Null where oneDNN has no bf16 kernel of its own on this machine, or refuses the shape.
  static std::unique_ptr<OneDnnProduct> Make(int64_t depth, int64_t columns, int64_t last_columns);
  ~OneDnnProduct();

  int64_t scratch_bytes() const;

  // columns: of the two that Make was told. input: [kTileRows, depth]; panels: packed columns;
  // output: [kTileRows, columns].
  void Run(int64_t columns, const BFloat16* input, const BFloat16* panels, float* output,
           std::byte* scratch) const;

 private:
  struct State;
  explicit OneDnnProduct(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace lserve::cpu
