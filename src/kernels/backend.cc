#include "kernels/backend.h"

#include <utility>

namespace lserve {

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
