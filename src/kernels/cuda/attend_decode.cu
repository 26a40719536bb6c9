// AttendDecode: the choice of an instance, and the kernel that combines segments.
#include "kernels/cuda/attend_decode.cuh"
#include "kernels/cuda/operations.h"

namespace lserve::cuda {
namespace {

constexpr int32_t kCombineThreads = 128;

// One row and query head: the records of its segments, each with its weight, to the rounded output.
// Threads take four dims each; sets of threads that cover a head share the segments, and their sums
// are added in order.
__global__ void __launch_bounds__(kCombineThreads)
    CombineSegmentsKernel(const __grid_constant__ AttendDecodeParams params) {
  __shared__ float weights[kMaxSegments];
  __shared__ float partial[2][kCombineThreads / kWarpLanes];
  __shared__ float4 sums[kCombineThreads];
  LetNextKernelStart();
  const DecodeShape shape(params);
  const auto q_head = static_cast<int32_t>(blockIdx.x);
  const auto row = static_cast<int32_t>(blockIdx.y);
  const bool exists = row < params.batch.counts[kDecodeRows];
  WaitForEarlierKernels();
  if (!exists) {
    return;
  }
  const auto thread = static_cast<int32_t>(threadIdx.x);
  // How many segments there are stands in the first; the others' heads come at the same time.
  constexpr int32_t kHeads = kMaxSegments / kCombineThreads;
  float4 heads[kHeads];
#pragma unroll
  for (int32_t i = 0; i < kHeads; ++i) {
    const int32_t s = i * kCombineThreads + thread;
    heads[i] = s < shape.max_segments
                   ? *reinterpret_cast<const float4*>(DecodeRecord(params, shape, row, q_head, s))
                   : float4{};
  }
  const auto segments = static_cast<int32_t>(DecodeRecord(params, shape, row, q_head, 0)[2]);

  float highest = -INFINITY;
#pragma unroll
  for (int32_t i = 0; i < kHeads; ++i) {
    highest = i * kCombineThreads + thread < segments ? fmaxf(highest, heads[i].x) : highest;
  }
  highest = MaxOverLanes<31>(highest);
  if (thread % kWarpLanes == 0) {
    partial[0][thread / kWarpLanes] = highest;
  }
  __syncthreads();
#pragma unroll
  for (int32_t warp = 0; warp < kCombineThreads / kWarpLanes; ++warp) {
    highest = fmaxf(highest, partial[0][warp]);
  }
  const float base = highest == -INFINITY ? 0.0f : highest;
  float sum = 0.0f;
#pragma unroll
  for (int32_t i = 0; i < kHeads; ++i) {
    const int32_t s = i * kCombineThreads + thread;
    if (s < segments) {
      weights[s] = Exp2(heads[i].x - base);
      sum += weights[s] * heads[i].y;
    }
  }
  sum = SumOverLanes<31>(sum);
  if (thread % kWarpLanes == 0) {
    partial[1][thread / kWarpLanes] = sum;
  }
  __syncthreads();
  sum = 0.0f;
#pragma unroll
  for (int32_t warp = 0; warp < kCombineThreads / kWarpLanes; ++warp) {
    sum += partial[1][warp];
  }

  const int32_t fours = shape.padded_head_dim / 4;  // 8 to 64
  const int32_t sets = kCombineThreads / fours;
  const int32_t set = thread / fours;
  const int32_t d = thread % fours * 4;
  float4 output = {0.0f, 0.0f, 0.0f, 0.0f};
  if (set < sets) {
#pragma unroll 4
    for (int32_t s = set; s < segments; s += sets) {
      const float4 part = *reinterpret_cast<const float4*>(
          DecodeRecord(params, shape, row, q_head, s) + kRecordOutput + d);
      output.x += weights[s] * part.x;
      output.y += weights[s] * part.y;
      output.z += weights[s] * part.z;
      output.w += weights[s] * part.w;
    }
  }
  sums[thread] = output;
  __syncthreads();
  if (set == 0) {
    for (int32_t other = 1; other < sets; ++other) {
      const float4 part = sums[other * fours + thread];
      output.x += part.x;
      output.y += part.y;
      output.z += part.z;
      output.w += part.w;
    }
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    const float values[4] = {output.x, output.y, output.z, output.w};
    const int64_t head = int64_t{row} * params.q_heads + q_head;
    auto* to = static_cast<uint16_t*>(params.output) + head * shape.head_dim;
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (d + i < shape.head_dim) {
        to[d + i] = ToBFloat16(values[i] * inverse).bits;
      }
    }
    if (thread == 0 && params.log_sums != nullptr) {
      params.log_sums[head] = (base + log2f(sum)) * 0.6931471805599453f;
    }
  }
}

}  // namespace

#define LSERVE_DECLARE(kDim) \
  template <>                \
  void LaunchAttendDecode<kDim>(const AttendDecodeParams& params, cudaStream_t stream)
LSERVE_DECLARE(32);
LSERVE_DECLARE(64);
LSERVE_DECLARE(96);
LSERVE_DECLARE(128);
LSERVE_DECLARE(256);
#undef LSERVE_DECLARE

void AttendDecode(const AttendDecodeParams& params, cudaStream_t stream) {
  if (params.batch.max_decode_rows == 0) {
    return;
  }
  const int32_t padded = DecodeShape(params).padded_head_dim;
  if (padded == 32) {
    LaunchAttendDecode<32>(params, stream);
  } else if (padded == 64) {
    LaunchAttendDecode<64>(params, stream);
  } else if (padded == 96) {
    LaunchAttendDecode<96>(params, stream);
  } else if (padded == 128) {
    LaunchAttendDecode<128>(params, stream);
  } else {
    LaunchAttendDecode<256>(params, stream);
  }
  LaunchDependent("attend_decode", CombineSegmentsKernel,
                  dim3(static_cast<unsigned>(params.q_heads),
                       static_cast<unsigned>(params.batch.max_decode_rows)),
                  kCombineThreads, 0, stream, params);
}

int64_t AttendDecodeWorkspace(const AttendDecodeParams& params) {
  const DecodeShape shape(params);
  return int64_t{params.batch.max_decode_rows} * params.q_heads * shape.max_segments *
         shape.record_floats * static_cast<int64_t>(sizeof(float));
}

const char* AttendDecodeVariant(const AttendDecodeParams& /*params*/) { return "mma"; }

}  // namespace lserve::cuda
