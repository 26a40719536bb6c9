// The weight matrix of the `ref` backend: [out_features, in_features] of the activations' type.
#pragma once

#include <utility>

#include "kernels/backend.h"

namespace lserve::ref {

class RefLinear : public PackedLinear {
 public:
  // A checkpoint's values rounded to the activations' dtype, as every backend multiplies them.
  RefLinear(const LinearWeight& weight, DType activations, Buffer memory);

  DType dtype() const { return dtype_; }
  // Row n, in_features elements of T.
  template <typename T>
  const T* Row(int64_t n) const {
    return data_.As<const T>() + n * in_features();
  }

 private:
  DType dtype_;
  Buffer data_;
};

}  // namespace lserve::ref
