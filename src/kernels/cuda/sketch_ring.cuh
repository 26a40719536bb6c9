// SketchRing: where a warp's next pages' boxes and codes lie in shared memory, and how they get
// there: by bulk copies where the device has them, one of a page, else by copies of 16 bytes of a
// lane. Device code; all lanes of a warp call together.
#pragma once

#include <cstdint>

#include "kernels/cuda/bulk_copy.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// kDim: of heads, not below the padded one. kSets: pages of a stage. Stages are filled in turn, all
// of them before the first is waited for.
template <int32_t kDim, int32_t kSets>
class SketchRing {
 public:
  static constexpr int32_t kStages = kSets == 2 ? 2 : 3;
  static constexpr int32_t kPageBytes = 20 * kDim;
  // The second page of a stage lies 16 bytes aside, in other banks; before it the barrier.
  static constexpr int32_t kPageStride = kPageBytes + 16;
  static constexpr int32_t kStageBytes = kSets * kPageStride;
  static constexpr int32_t kBytes = kStages * kStageBytes;

  // bytes: of a page's boxes and codes.
  __device__ SketchRing(std::byte* shared, int32_t bytes)
      : shared_(Uniform(SharedAddress(shared))),
        bytes_(bytes),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (lane_ == 0) {
#pragma unroll
      for (int32_t i = 0; i < kStages; ++i) {
        InitBarrier(Barrier(i), 1);
      }
      FenceBarrierInit();
    }
    __syncwarp();
#endif
  }

  // After the last stage that was filled has been waited for.
  __device__ void End() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __syncwarp();
    if (lane_ == 0) {
#pragma unroll
      for (int32_t i = 0; i < kStages; ++i) {
        EndBarrier(Barrier(i));
      }
    }
#endif
  }

  // Begins the copies of a stage's pages, at page_at(i), to a stage that all lanes are done with:
  // one of the first kStages, later the current one. With `none`, of no page.
  template <typename PageAt>
  __device__ __forceinline__ void Fill(int32_t stage, bool none, PageAt page_at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const uint32_t to = Uniform(shared_ + stage * kStageBytes);
    const std::byte* from[kSets];
#pragma unroll
    for (int32_t i = 0; i < kSets; ++i) {
      from[i] = page_at(i);
    }
    if (!none && ElectLane()) {
      ArriveExpecting(to + kPageBytes, kSets * bytes_);
#pragma unroll
      for (int32_t i = 0; i < kSets; ++i) {
        CopyBulk(to + i * kPageStride, from[i], bytes_, to + kPageBytes);
      }
    }
#else
    const uint32_t to = shared_ + stage * kStageBytes + lane_ * 16;
    if (!none) {
#pragma unroll
      for (int32_t i = 0; i < kSets; ++i) {
        const std::byte* from = page_at(i) + lane_ * 16;
#pragma unroll
        for (int32_t at = 0; at < kPageBytes; at += kWarpLanes * 16) {
          if (at + lane_ * 16 < bytes_) {
            CopyAsync16(to + i * kPageStride + at, from + at);
          }
        }
      }
    }
    CommitCopies();
#endif
  }

  // Until the pages of the current stage, of which there are some, have come.
  __device__ __forceinline__ void Wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    WaitPhase(Barrier(stage_), parity_);
#else
    WaitCopies<kStages - 1>();
    __syncwarp();
#endif
  }

  __device__ __forceinline__ void Advance() {
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    parity_ ^= stage_ == 0 ? 1u : 0u;
  }

  __device__ int32_t stage() const { return stage_; }
  __device__ uint32_t address() const { return shared_ + stage_ * kStageBytes; }

 private:
  __device__ uint32_t Barrier(int32_t stage) const {
    return shared_ + stage * kStageBytes + kPageBytes;
  }

  uint32_t shared_;
  int32_t bytes_;
  int32_t lane_;
  int32_t stage_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace lserve::cuda
