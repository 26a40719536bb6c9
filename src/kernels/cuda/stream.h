// Streams and graphs of the CUDA backend: a cudaStream_t with the copies that go through it, and
// what was recorded on one. Used by one thread at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/memory.h"

namespace lserve::cuda {

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t executable) : executable_(executable) {}
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraphExec_t executable_;
};

class CudaStream : public Stream {
 public:
  // 1024 decode rows, the most that settings allow, of 128 query heads.
  static constexpr int64_t kTickets = 1024 * 128;

  explicit CudaStream(StagingPool& staging);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  // The first error of anything appended so far; it stays.
  Status Synchronize() override;
  void BeginCapture() override;
  std::unique_ptr<Graph> EndCapture() override;
  void Launch(const Graph& graph) override;

  cudaStream_t get() const { return stream_; }

  // Counters in device memory for the blocks of one kernel at a time: zeros between kernels. They
  // stand as long as the stream, so that recorded kernels may hold them.
  std::span<int32_t> tickets() const { return {tickets_, static_cast<size_t>(kTickets)}; }

  // In the order of the stream. `from` may be changed when CopyToDevice returns, `to` may be read
  // after Synchronize. A copy that is recorded keeps both addresses.
  void CopyToDevice(void* to, const void* from, int64_t bytes);
  void CopyToHost(void* to, const void* from, int64_t bytes);
  void Zero(void* to, int64_t bytes);

 private:
  void Check(cudaError_t error, const char* what);
  // Pinned room for `bytes` until the stream has run; null if there is none.
  std::byte* Stage(int64_t bytes);
  void GiveBackStaging();

  StagingPool& staging_;
  cudaStream_t stream_ = nullptr;
  int32_t* tickets_ = nullptr;
  bool capturing_ = false;
  Status status_;
  std::vector<std::byte*> blocks_;  // staging blocks in use; the last one up to used_
  int64_t used_ = 0;
};

}  // namespace lserve::cuda
