// The kernels of linear layers and their arguments. Host functions, used by one thread at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/ops.h"

namespace lserve::cuda {

inline constexpr int32_t kLinearRowMultiple = 16;    // packed rows are padded to it
inline constexpr int32_t kLinearDepthMultiple = 64;  // and their elements

// output = epilogue(input * weight^T), with the weight as CudaLinear packs it.
struct LinearArguments {
  const int32_t* counts;        // of the batch
  const __nv_bfloat16* input;   // [rows, depth]
  const __nv_bfloat16* weight;  // [packed_rows, padded_depth]
  const __nv_bfloat16* bias;    // [columns] under kBias
  void* output;                 // [rows, columns]
  int32_t depth;
  int32_t padded_depth;
  int32_t packed_rows;
  int32_t columns;
  int32_t max_rows;  // of the kind that the kernel computes
  Epilogue epilogue;
  RowSet rows;
  // Of a single row that LinearRows normalises before it is multiplied; else null.
  const __nv_bfloat16* norm_weight = nullptr;  // [depth]
  const int32_t* logit_row = nullptr;          // which row of the input it is; null: the first
  float norm_epsilon = 0.0f;
};

// Whether LinearRows normalises the one row that there can be.
bool NormalisesItsRow(int32_t max_rows, int32_t depth);

// The decode rows, or the logit rows, which are computed alike (linear_rows.cu).
void LinearRows(const LinearArguments& arguments, DType output_dtype, cudaStream_t stream);
// The prefill rows (linear_tiles.cu).
void LinearTiles(const LinearArguments& arguments, DType output_dtype, cudaStream_t stream);

// What a library's product leaves to do (linear_finish.cu). The prefill rows of sums [max_rows,
// packed_rows], gate and up in bf16, to a bf16 output; columns are a multiple of 8.
void LinearSiluMul(const LinearArguments& arguments, const void* sums, cudaStream_t stream);
// Copies the decode rows of [max_rows, row_bytes], of which there are at most max_decode_rows;
// row_bytes is a multiple of 16.
void CopyDecodeRows(const BatchView& batch, const void* from, void* to, int64_t row_bytes,
                    cudaStream_t stream);

}  // namespace lserve::cuda
