// Memory of the CUDA backend: zeroed device memory, and pinned host memory through which copies to
// the device pass, so that a caller's bytes are its own again when the call returns. Used by one
// thread at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "tensor/buffer.h"

namespace lserve::cuda {

// OK, or kInternal with what was done and the runtime's words.
Status StatusOf(cudaError_t error, const char* what);

// Zeroed device memory, aligned to 256 bytes; the zeros are there when the call returns. Errors:
// kResourceExhausted with the bytes asked for and those that are free; kInternal.
Result<Buffer> AllocateZeroed(int64_t bytes, cudaStream_t stream);

// Blocks of pinned host memory. A stream takes one for its copies and gives it back when they have
// run. The blocks live as long as the pool.
class StagingPool {
 public:
  static constexpr int64_t kBlockBytes = int64_t{256} << 10;

  StagingPool() = default;
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  // A block of kBlockBytes; null if the host has no memory to pin.
  std::byte* Take();
  void GiveBack(std::byte* block) { free_.push_back(block); }

 private:
  std::vector<std::byte*> blocks_, free_;
};

}  // namespace lserve::cuda
