// What the kernels of linear layers share: how they read a row and how they finish a sum. Device
// code.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear_kernels.h"

namespace lserve::cuda {

// Elements [k, k + 8) of an input row; zeros from `depth` on. kAligned: depth is a multiple of 8.
template <bool kAligned>
__device__ uint4 LoadInput(const __nv_bfloat16* row, int32_t k, int32_t depth) {
  if constexpr (kAligned) {
    return k < depth ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
  } else {
    float x[8];
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      x[i] = k + i < depth ? __bfloat162float(row[k + i]) : 0.0f;
    }
    return Pack8(x);
  }
}

__device__ inline float Silu(float x) { return x / (1.0f + expf(-x)); }

template <typename Output>
__device__ float ToOutputFloat(Output x) {
  if constexpr (sizeof(Output) == sizeof(float)) {
    return x;
  } else {
    return __bfloat162float(x);
  }
}

// What the epilogue adds to a sum: the bias, or what the output holds.
template <typename Output>
__device__ float Addend(const LinearArguments& arguments, int64_t row, int32_t column) {
  if (arguments.epilogue == Epilogue::kBias) {
    return __bfloat162float(arguments.bias[column]);
  }
  if (arguments.epilogue == Epilogue::kResidual) {
    return ToOutputFloat(
        static_cast<const Output*>(arguments.output)[row * arguments.columns + column]);
  }
  return 0.0f;
}

template <typename Output>
__device__ void StoreOutput(const LinearArguments& arguments, int64_t row, int32_t column,
                            float x) {
  Output& output = static_cast<Output*>(arguments.output)[row * arguments.columns + column];
  if constexpr (sizeof(Output) == sizeof(float)) {
    output = x;
  } else {
    output = __float2bfloat16_rn(x);
  }
}

// Writes one output; `sum` has gone through SiLU if there is one.
template <typename Output>
__device__ void FinishOutput(const LinearArguments& arguments, int64_t row, int32_t column,
                             float sum) {
  StoreOutput<Output>(arguments, row, column, sum + Addend<Output>(arguments, row, column));
}

// Calls function.operator()<Output>() with the type of `dtype`.
template <typename Function>
void WithOutput(DType dtype, Function function) {
  if (dtype == DType::kFloat32) {
    function.template operator()<float>();
  } else {
    function.template operator()<__nv_bfloat16>();
  }
}

}  // namespace lserve::cuda
