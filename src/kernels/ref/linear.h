// The weight matrix of the `ref` backend: [out_features, in_features] of the activations' type.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"

namespace lserve::ref {

class RefLinear : public PackedLinear {
 public:
  // A checkpoint's values rounded to the activations' dtype, as every backend multiplies them.
  static Result<std::unique_ptr<PackedLinear>> Make(const LinearWeight& weight, DType activations);

  DType dtype() const { return dtype_; }
  // Row n, in_features elements of T.
  template <typename T>
  const T* Row(int64_t n) const {
    return reinterpret_cast<const T*>(data_.data()) + n * in_features();
  }

 private:
  RefLinear(int64_t out_features, int64_t in_features, DType dtype)
      : PackedLinear(out_features, in_features), dtype_(dtype) {}

  DType dtype_;
  std::vector<std::byte> data_;
};

}  // namespace lserve::ref
