#include "kernels/backend.h"

#include <limits>
#include <utility>

#include "tensor/arena.h"

namespace lserve {

Result<std::unique_ptr<PackedLinear>> Backend::PackLinear(const LinearWeight& weight,
                                                          DType activations, bool fused_silu) {
  RETURN_IF_ERROR(Validate(weight, fused_silu));
  RETURN_IF_ERROR(SupportsActivations(activations));
  ASSIGN_OR_RETURN(Buffer memory, Allocate(PackedBytes(weight, activations, fused_silu)));
  return PackLinear(weight, activations, fused_silu, std::move(memory));
}

Status Validate(const LinearWeight& weight, bool fused_silu) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 128;  // and what it is padded to
  if (weight.data == nullptr || weight.out_features < 1 || weight.in_features < 1 ||
      weight.out_features > kMost || weight.in_features > kMost) {
    return InvalidArgument("a weight of shape [{}, {}] cannot be packed", weight.out_features,
                           weight.in_features);
  }
  if (weight.dtype != DType::kBFloat16 && weight.dtype != DType::kFloat16 &&
      weight.dtype != DType::kFloat32) {
    return InvalidArgument("a weight of {} cannot be packed", DTypeName(weight.dtype));
  }
  if (fused_silu && weight.out_features % 2 != 0) {
    return InvalidArgument("gate and up together have {} rows, must be even", weight.out_features);
  }
  return OkStatus();
}

Status AllocateTogether(Backend& backend, const BufferSizes& wanted) {
  int64_t bytes = 0;
  for (const auto& [buffer, size] : wanted) {
    bytes += Arena::Room(size);
  }
  ASSIGN_OR_RETURN(Buffer block, backend.Allocate(bytes));
  Arena arena(std::move(block));
  for (const auto& [buffer, size] : wanted) {
    *buffer = arena.Cut(size);
  }
  return OkStatus();
}

Result<std::unique_ptr<Backend>> MakeBackend(const std::string& device,
                                             const BackendOptions& options) {
  if (device == "auto") {
    Result<std::unique_ptr<Backend>> cuda = MakeCudaBackend(options);
    return cuda.ok() ? std::move(cuda) : MakeCpuBackend(options);
  }
  if (device == "cpu") {
    return MakeCpuBackend(options);
  }
  if (device == "cuda") {
    return MakeCudaBackend(options);
  }
  if (device == "ref") {
    return MakeRefBackend(options);
  }
  return InvalidArgument("unknown device '{}': use auto, cpu, cuda or ref", device);
}

}  // namespace lserve
