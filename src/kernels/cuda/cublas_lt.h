// Products by cuBLASLt, which the program looks for when it starts to use a GPU: a machine may have
// the driver and not the library. Thread-safe.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace lserve::cuda {

inline constexpr int64_t kCublasLtWorkspace = int64_t{32} << 20;  // bytes; aligned to 256

// output[rows, columns] = input[rows, depth] * weight[columns, depth]^T, and more as told. Input,
// weight and bias are bf16; rows of the weight lie `weight_stride` elements apart.
struct CublasLtProduct {
  int64_t rows;
  int64_t columns;
  int64_t depth;
  int64_t weight_stride;
  const void* input;
  const void* weight;
  const void* bias;  // [columns], or null
  bool accumulate;   // output += product, which may be rounded to output_dtype first
  void* output;
  DType output_dtype;
  void* workspace;  // kCublasLtWorkspace bytes
};

bool HasCublasLt();

// Appends the product; a sum is in one order, whatever the row and the number of rows. CHECKs that
// the library takes it: depth, columns and weight_stride are multiples of 8, and a bias goes with a
// bf16 output.
void MultiplyByCublasLt(const CublasLtProduct& product, cudaStream_t stream);

}  // namespace lserve::cuda
