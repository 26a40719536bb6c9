#include "kernels/cuda/memory.h"

namespace lserve::cuda {

Status StatusOf(cudaError_t error, const char* what) {
  return error == cudaSuccess ? OkStatus() : Internal("{}: {}", what, cudaGetErrorString(error));
}

Result<Buffer> AllocateZeroed(int64_t bytes, cudaStream_t stream) {
  if (bytes < 0) {
    return InvalidArgument("cannot allocate {} bytes", bytes);
  }
  if (bytes == 0) {
    return Buffer();
  }
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not an error of the next launch
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    return ResourceExhausted("cannot allocate {} bytes of GPU memory, {} of {} are free", bytes,
                             free, total);
  }
  RETURN_IF_ERROR(StatusOf(error, "GPU memory"));
  Buffer buffer(static_cast<std::byte*>(data), bytes,
                [](std::byte* block, int64_t) { cudaFree(block); });
  RETURN_IF_ERROR(
      StatusOf(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream), "zeroing memory"));
  RETURN_IF_ERROR(StatusOf(cudaStreamSynchronize(stream), "zeroing memory"));
  return buffer;
}

StagingPool::~StagingPool() {
  for (std::byte* block : blocks_) {
    cudaFreeHost(block);
  }
}

std::byte* StagingPool::Take() {
  if (free_.empty()) {
    void* block = nullptr;
    if (cudaMallocHost(&block, static_cast<size_t>(kBlockBytes)) != cudaSuccess) {
      cudaGetLastError();  // not an error of the next launch
      return nullptr;
    }
    blocks_.push_back(static_cast<std::byte*>(block));
    return blocks_.back();
  }
  std::byte* block = free_.back();
  free_.pop_back();
  return block;
}

}  // namespace lserve::cuda
