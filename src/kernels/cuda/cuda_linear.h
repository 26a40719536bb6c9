// Linear layers of the CUDA backend: packed weights. How a row is computed depends on its kind
// alone: prefill rows go in tiles to a matrix product, decode and logit rows to a kernel bound by
// the weight's bandwidth. Both sum a row in an order fixed by the weight's shape.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/stream.h"
#include "tensor/buffer.h"

namespace lserve::cuda {

// bf16 [packed rows][padded depth], row-major as in the checkpoint; padding is zero. With
// fused_silu, eight rows of the gate alternate with the same eight of up, so that the two sums of
// an output lie in one thread's registers.
class CudaLinear : public PackedLinear {
 public:
  static int64_t PackedBytes(const LinearWeight& weight, bool fused_silu);
  // Packs into `memory`, PackedBytes of zeros, by way of `stream` and waits for it. Errors:
  // kInvalidArgument (shape or dtype), kInternal.
  static Result<std::unique_ptr<CudaLinear>> Make(const LinearWeight& weight, bool fused_silu,
                                                  Buffer memory, CudaStream& stream);

  bool fused_silu() const { return fused_silu_; }
  int32_t packed_rows() const { return packed_rows_; }
  int32_t padded_depth() const { return padded_depth_; }
  const void* data() const { return data_.data(); }

 private:
  CudaLinear(const LinearWeight& weight, bool fused_silu, Buffer memory);
  // The checkpoint's row that is packed row `row`; -1: padding.
  int64_t SourceRow(int32_t row) const;
  void Pack(const LinearWeight& weight, CudaStream& stream) const;
  Status PackFromDevice(const LinearWeight& weight, cudaStream_t stream) const;

  bool fused_silu_;
  int32_t packed_rows_;
  int32_t padded_depth_;
  Buffer data_;
};

}  // namespace lserve::cuda
