// FillNormal: a thread eight elements, one 16-byte store.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/normal_numbers.h"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kVector = 8;  // bf16 elements of a 16-byte access
constexpr int32_t kBlocksPerMultiprocessor = 8;

__global__ void __launch_bounds__(kThreads)
    FillNormalKernel(const __grid_constant__ FillNormalParams params, float unit) {
  auto* data = static_cast<__nv_bfloat16*>(params.data);
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVector;
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  for (int64_t i = begin; i < params.count; i += stride) {
    const uint64_t pair = (params.first + static_cast<uint64_t>(i)) / 2;
    float x[kVector];
#pragma unroll
    for (int32_t e = 0; e < kVector; e += 2) {
      const auto sums = NormalPair(params.seed, pair + static_cast<uint64_t>(e / 2));
      x[e] = static_cast<float>(sums[0]) * unit;
      x[e + 1] = static_cast<float>(sums[1]) * unit;
    }
    if (i + kVector <= params.count) {
      *reinterpret_cast<uint4*>(data + i) = Pack8(x);
    } else {
#pragma unroll
      for (int32_t e = 0; e < kVector; ++e) {
        if (i + e < params.count) {
          data[i + e] = __float2bfloat16_rn(x[e]);
        }
      }
    }
  }
}

}  // namespace

void FillNormal(const FillNormalParams& params, cudaStream_t stream) {
  CHECK(params.dtype == DType::kBFloat16);
  const int64_t blocks = CeilDiv(params.count, int64_t{kThreads} * kVector);
  if (blocks > 0) {
    Launch("fill_normal", FillNormalKernel,
           static_cast<unsigned>(PersistentBlocks(blocks, kBlocksPerMultiprocessor)), kThreads, 0,
           stream, params, NormalUnit(params.deviation));
  }
}

}  // namespace lserve::cuda
