// Launching kernels. Host functions; thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace lserve::cuda {

constexpr int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// The dynamic shared memory of a kernel. Device code.
__device__ inline std::byte* SharedMemory() {
  extern __shared__ __align__(128) std::byte lserve_shared_memory[];
  return lserve_shared_memory;
}

inline int32_t Multiprocessors() {
  static const int32_t count = [] {
    int device = 0;
    int value = 0;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) == cudaSuccess);
    return value;
  }();
  return count;
}

// Blocks of a kernel that walks a device-side count of items, of which there are at most `most`.
inline int32_t PersistentBlocks(int64_t most, int32_t blocks_per_multiprocessor) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(most, 1, int64_t{Multiprocessors()} * blocks_per_multiprocessor));
}

// Whether the current device starts a kernel before the one in front of it has ended.
inline bool HasDependentLaunch() {
  static const bool has = [] {
    int device = 0;
    int major = 0;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess);
    return major >= 9;
  }();
  return has;
}

// Whether the current device runs code of architecture 90a, as no other does.
inline bool HasWarpgroups() {
  static const bool has = [] {
    int device = 0;
    int major = 0;
    int minor = 0;
    CHECK(cudaGetDevice(&device) == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess);
    return major == 9 && minor == 0;
  }();
  return has;
}

// How a kernel is launched: `attributes` of its configuration.
template <typename... Args>
void LaunchWith(std::span<const cudaLaunchAttribute> attributes, const char* op,
                void (*kernel)(Args...), dim3 grid, int32_t threads, int64_t shared_bytes,
                cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  // Without leave a block gets 48 KiB, of which the kernel's static arrays take their part. The
  // check of the launch tells if it is not given.
  if (shared_bytes > 32 * 1024) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = const_cast<cudaLaunchAttribute*>(attributes.data());
  config.numAttrs = static_cast<unsigned>(attributes.size());
  cudaLaunchKernelEx(&config, kernel, args...);
  CheckLaunch(op);
}

// A kernel that begins when everything before it in the stream has ended.
template <typename... Args>
void Launch(const char* op, void (*kernel)(Args...), dim3 grid, int32_t threads,
            int64_t shared_bytes, cudaStream_t stream, const std::type_identity_t<Args>&... args) {
  LaunchWith({}, op, kernel, grid, threads, shared_bytes, stream, args...);
}

// A kernel of a decode step, which calls WaitForEarlierKernels() (device.cuh). A recording keeps
// this as a programmatic edge from the kernel before; behind a copy, or where the device has no
// such launch, it is a launch like any other.
template <typename... Args>
void LaunchDependent(const char* op, void (*kernel)(Args...), dim3 grid, int32_t threads,
                     int64_t shared_bytes, cudaStream_t stream,
                     const std::type_identity_t<Args>&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  LaunchWith({&early, HasDependentLaunch() ? size_t{1} : size_t{0}}, op, kernel, grid, threads,
             shared_bytes, stream, args...);
}

// The same, in clusters of `cluster` blocks of the grid's one dimension; 1 unless the device has
// dependent launch, and with it clusters.
template <typename... Args>
void LaunchDependentClusters(const char* op, void (*kernel)(Args...), int32_t cluster, dim3 grid,
                             int32_t threads, cudaStream_t stream,
                             const std::type_identity_t<Args>&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  const size_t count = cluster > 1 ? 2 : HasDependentLaunch() ? 1 : 0;
  LaunchWith({attributes, count}, op, kernel, grid, threads, 0, stream, args...);
}

}  // namespace lserve::cuda
