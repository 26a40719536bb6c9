// Memory bandwidth of a GPU, for ceilings. Free functions, used by one thread.
#pragma once

namespace lserve::bench {

struct Bandwidth {
  double copy_gbps = 0;  // cudaMemcpyAsync of 2 GiB on the device, bytes read and bytes written
  double read_gbps = 0;  // a kernel that reads 4 GiB, 16 bytes a load
};

// Median of `runs`, each of several copies or reads in a row by the host's clock. Zeros where the
// program was built without CUDA.
Bandwidth MeasureCudaBandwidth(int runs);

}  // namespace lserve::bench
