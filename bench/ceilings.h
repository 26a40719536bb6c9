// What the machine can do, measured in the same run as what is compared with it. Single-threaded
// callers; on a CPU the measurements use the backend's number of threads.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"

namespace lserve::bench {

// A rate that was not measured, or that the machine does not support, is 0.
struct Ceilings {
  // CPU: oneDNN matmul, 4096 cubed, bf16 with float32 output. GPU: the backend's own product for
  // prefill rows (a library's), 8192 cubed, bf16.
  double bf16_product_gflops = 0;
  std::string bf16_product_variant = "onednn";
  double f32_product_gflops = 0;  // CPU: oneDNN matmul, 2048 cubed
  double copy_gbps = 0;           // GPU: 2 GiB on the device, bytes read and bytes written
  double read_gbps = 0;           // CPU: summing 1 GiB; GPU: a kernel that reads 4 GiB

  // What a rate of memory is a share of: copies on a GPU, reads on a CPU.
  double memory_gbps() const { return copy_gbps > 0 ? copy_gbps : read_gbps; }
};

// Of a CPU the best of `repeat`, of a GPU the median.
Ceilings MeasureCeilings(Backend& backend, int32_t repeat);

}  // namespace lserve::bench
