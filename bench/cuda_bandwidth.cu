#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bandwidth.h"
#include "base/check.h"
#include "base/clock.h"

namespace lserve::bench {
namespace {

constexpr size_t kBytes = size_t{4} << 30;
constexpr int kRepetitions = 4;  // of one run
constexpr int kThreads = 512;
constexpr int kLoads = 8;  // of 16 bytes in flight, a thread

#define CHECK_CUDA(call) CHECK_EQ(static_cast<int>(call), 0)

// Any bytes but zeros.
__global__ void FillKernel(uint4* data, size_t count) {
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += size_t{gridDim.x} * kThreads) {
    const auto x = static_cast<uint32_t>(i) * 2654435761u;
    data[i] = {x, x ^ (x >> 13), x * 5u + 1u, ~x};
  }
}

__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* __restrict__ data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t{gridDim.x} * kThreads * kLoads;
  for (size_t first = size_t{blockIdx.x} * kThreads * kLoads + threadIdx.x; first < count;
       first += step) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      loaded[i] =
          __ldcs(data + first + size_t{kThreads} * i);  // count is a multiple of kThreads * kLoads
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      sum ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
    }
  }
  if (sum == 0x9E3779B9u) {  // never in practice, but the compiler cannot tell
    *sink = sum;
  }
}

template <typename Work>
double MedianSecondsOf(int runs, Work work) {
  std::vector<double> seconds;
  for (int run = 0; run <= runs; ++run) {
    CHECK_CUDA(cudaDeviceSynchronize());
    const double start = NowSeconds();
    for (int i = 0; i < kRepetitions; ++i) {
      work();
    }
    CHECK_CUDA(cudaDeviceSynchronize());
    seconds.push_back((NowSeconds() - start) / kRepetitions);
  }
  seconds.erase(seconds.begin());  // warms up
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

Bandwidth MeasureCudaBandwidth(int runs) {
  std::byte* data = nullptr;
  CHECK_CUDA(cudaMalloc(&data, kBytes));
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  const int blocks = 4 * properties.multiProcessorCount;
  const size_t count = kBytes / sizeof(uint4);
  auto* elements = reinterpret_cast<uint4*>(data);
  FillKernel<<<blocks, kThreads>>>(elements, count);
  const double copy = MedianSecondsOf(runs, [&] {
    CHECK_CUDA(cudaMemcpyAsync(data, data + kBytes / 2, kBytes / 2, cudaMemcpyDeviceToDevice));
  });
  const double read = MedianSecondsOf(runs, [&] {
    ReadKernel<<<blocks, kThreads>>>(elements, count, reinterpret_cast<uint32_t*>(data));
  });
  CHECK_CUDA(cudaGetLastError());
  CHECK_CUDA(cudaFree(data));
  return {.copy_gbps = static_cast<double>(kBytes) / copy / 1e9,
          .read_gbps = static_cast<double>(kBytes) / read / 1e9};
}

}  // namespace lserve::bench
