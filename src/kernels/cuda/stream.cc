#include "kernels/cuda/stream.h"

#include <cstring>

#include "base/check.h"

namespace lserve::cuda {

CudaStream::CudaStream(StagingPool& staging) : staging_(staging) {
  Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  Check(cudaMalloc(&tickets_, kTickets * sizeof(int32_t)), "making a stream");
  Zero(tickets_, kTickets * static_cast<int64_t>(sizeof(int32_t)));
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  cudaFree(tickets_);
  GiveBackStaging();
}

Status CudaStream::Synchronize() {
  CHECK(!capturing_);
  Check(cudaStreamSynchronize(stream_), "the GPU");
  GiveBackStaging();
  return status_;
}

// Relaxed, because a kernel's first launch may load its code, which other modes forbid.
void CudaStream::BeginCapture() {
  CHECK(!capturing_);
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "recording");
  capturing_ = true;
}

std::unique_ptr<Graph> CudaStream::EndCapture() {
  CHECK(capturing_);
  capturing_ = false;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Check(cudaStreamEndCapture(stream_, &graph), "recording");
  if (graph != nullptr) {
    Check(cudaGraphInstantiate(&executable, graph), "recording");
    cudaGraphDestroy(graph);
  }
  return std::make_unique<CudaGraph>(executable);
}

void CudaStream::Launch(const Graph& graph) {
  CHECK(!capturing_);
  const cudaGraphExec_t executable = static_cast<const CudaGraph&>(graph).executable();
  if (executable != nullptr) {  // else Synchronize tells why it could not be recorded
    Check(cudaGraphLaunch(executable, stream_), "launching a step");
  }
}

void CudaStream::CopyToDevice(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) {
    return;
  }
  const auto size = static_cast<size_t>(bytes);
  std::byte* staged = capturing_ ? nullptr : Stage(bytes);
  if (staged != nullptr) {
    std::memcpy(staged, from, size);
    from = staged;
  }
  Check(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
  if (staged == nullptr && !capturing_) {
    Check(cudaStreamSynchronize(stream_), "copying to the GPU");
  }
}

void CudaStream::CopyToHost(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) {
    Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
          "copying from the GPU");
  }
}

void CudaStream::Zero(void* to, int64_t bytes) {
  if (bytes > 0) {
    Check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_), "zeroing memory");
  }
}

void CudaStream::Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess && status_.ok()) {
    status_ = StatusOf(error, what);
  }
}

std::byte* CudaStream::Stage(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  constexpr int64_t kBlock = StagingPool::kBlockBytes;
  if (bytes > kBlock) {
    return nullptr;
  }
  if (blocks_.empty() || used_ + bytes > kBlock) {
    std::byte* block = staging_.Take();
    if (block == nullptr) {
      return nullptr;
    }
    blocks_.push_back(block);
    used_ = 0;
  }
  std::byte* room = blocks_.back() + used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return room;
}

void CudaStream::GiveBackStaging() {
  for (std::byte* block : blocks_) {
    staging_.GiveBack(block);
  }
  blocks_.clear();
  used_ = 0;
}

}  // namespace lserve::cuda
