// Stands in for the CUDA backend in a program built without a CUDA compiler.
#include "kernels/backend.h"

namespace lserve {

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& /*options*/) {
  return Unimplemented("the CUDA backend was not built into this program");
}

}  // namespace lserve
