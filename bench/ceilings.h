// What the machine can do, measured in the same run as what is compared with it. Single-threaded
// callers; the measurements use the given number of threads.
#pragma once

#include <cstdint>

namespace lserve::bench {

struct Ceilings {
  double bf16_product_gflops = 0;  // oneDNN matmul, 4096 cubed, bf16 with float32 output
  double f32_product_gflops = 0;   // oneDNN matmul, 2048 cubed
  double read_gbps = 0;            // summing 1 GiB
};

// Best of `repeat`; a rate that the machine does not support is 0.
Ceilings MeasureCeilings(int32_t threads, int32_t repeat);

}  // namespace lserve::bench
