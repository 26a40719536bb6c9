// Memory and facts of the host, for the CPU backend. Free functions, thread-safe.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/backend.h"
#include "tensor/buffer.h"

namespace lserve::cpu {

// Zeroed memory aligned to 64 bytes. Large blocks are fresh pages of the kernel, which take
// physical memory only when touched, in huge pages where the kernel has them. Errors:
// kInvalidArgument (negative), kResourceExhausted (with the bytes asked for).
Result<Buffer> AllocateZeroed(int64_t bytes);

// How many CPUs this process may run on.
int32_t AvailableCpus();

// Name, instruction sets, memory (the smaller of the machine's and the control group's) and the
// number of threads that the backend will use.
DeviceFacts ReadHostFacts(int32_t threads);

}  // namespace lserve::cpu
