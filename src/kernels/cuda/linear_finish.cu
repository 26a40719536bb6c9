// What a library's matrix product leaves to do: the product of SiLU(gate) and up, and the rows that
// are not the library's.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_common.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kColumns = 8;  // a thread's

// Blocks (row, columns). Sums come in eights of the gate and eights of up.
__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(const __grid_constant__ LinearArguments arguments, const uint4* sums) {
  if (static_cast<int32_t>(blockIdx.x) >= arguments.counts[kPrefillRows]) {
    return;
  }
  const int64_t row = int64_t{arguments.counts[kDecodeRows]} + blockIdx.x;
  const int32_t column = kColumns * static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  if (column >= arguments.columns) {
    return;
  }
  const uint4* from = sums + (row * arguments.packed_rows + 2 * column) / kColumns;
  float gate[kColumns];
  float up[kColumns];
  Unpack8(from[0], gate);
  Unpack8(from[1], up);
  float y[kColumns];
#pragma unroll
  for (int32_t i = 0; i < kColumns; ++i) {
    y[i] = Silu(gate[i]) * up[i];
  }
  auto* to = static_cast<__nv_bfloat16*>(arguments.output) + row * arguments.columns + column;
  *reinterpret_cast<uint4*>(to) = Pack8(y);
}

__global__ void __launch_bounds__(kThreads)
    CopyDecodeRowsKernel(const int32_t* counts, const uint4* from, uint4* to, int64_t row_vectors) {
  const int64_t row = blockIdx.x;
  if (row >= counts[kDecodeRows]) {
    return;
  }
  for (int64_t i = threadIdx.x; i < row_vectors; i += kThreads) {
    to[row * row_vectors + i] = from[row * row_vectors + i];
  }
}

}  // namespace

void LinearSiluMul(const LinearArguments& arguments, const void* sums, cudaStream_t stream) {
  const dim3 grid(static_cast<uint32_t>(arguments.max_rows),
                  static_cast<uint32_t>(CeilDiv(arguments.columns, kColumns * kThreads)));
  Launch("linear, silu", SiluMulKernel, grid, kThreads, 0, stream, arguments,
         static_cast<const uint4*>(sums));
}

void CopyDecodeRows(const BatchView& batch, const void* from, void* to, int64_t row_bytes,
                    cudaStream_t stream) {
  if (batch.max_decode_rows == 0) {
    return;
  }
  Launch("linear, decode rows", CopyDecodeRowsKernel, static_cast<uint32_t>(batch.max_decode_rows),
         kThreads, 0, stream, batch.counts, static_cast<const uint4*>(from),
         static_cast<uint4*>(to), row_bytes / static_cast<int64_t>(sizeof(uint4)));
}

}  // namespace lserve::cuda
