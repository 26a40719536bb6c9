// Backend: a device's memory, streams, graphs and facts, and its table of operations. Nothing above
// this floor knows which backend runs. A Backend outlives what it made; it is used by one thread at
// a time (the engine's).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/ops.h"
#include "tensor/buffer.h"

namespace lserve {

struct DeviceFacts {
  std::string name;          // "AMD EPYC ...", "NVIDIA H200"
  std::string instructions;  // what the variants can use: "avx512bf16, amx"
  int64_t memory_bytes = 0;  // of the device
  int64_t free_bytes = 0;    // at start-up
  // The memory is the device's alone. Else it is the host's, which other programs live in.
  bool own_memory = false;
  int32_t threads = 1;  // host threads that the backend computes with
};

// Operations in order. `run` of an Op appends; work may start at once or at Synchronize.
class Stream {
 public:
  virtual ~Stream() = default;

  // Waits until everything appended has run. Errors: kInternal when the device failed; it then
  // stays failed.
  virtual Status Synchronize() = 0;

  // From here to EndCapture appended operations are recorded, not run.
  virtual void BeginCapture() = 0;
  // Ends the recording; the graph can be launched again and again.
  virtual std::unique_ptr<class Graph> EndCapture() = 0;
  // Appends a graph recorded on a stream of the same backend.
  virtual void Launch(const class Graph& graph) = 0;
};

// A recorded list of operations. Immutable.
class Graph {
 public:
  virtual ~Graph() = default;
};

// A weight matrix as a checkpoint holds it: [out_features, in_features], row-major.
struct LinearWeight {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;
  int64_t out_features = 0;
  int64_t in_features = 0;
  // The matrix lies in a Buffer of the backend, is bf16, and what fills it has run.
  bool on_device = false;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* name() const = 0;  // "ref", "cpu", "cuda"
  virtual const DeviceFacts& facts() const = 0;
  virtual const Ops& ops() const = 0;

  // What is free now of a device's own memory; of the host's, what was at start-up.
  virtual int64_t FreeBytes() const { return facts().free_bytes; }

  // kUnimplemented, naming the value, if activations of this dtype do not run here.
  virtual Status SupportsActivations(DType dtype) const = 0;

  // Zeroed memory, aligned to 64 bytes; physical pages may be taken only when touched.
  // Errors: kResourceExhausted with the bytes asked for.
  virtual Result<Buffer> Allocate(int64_t bytes) = 0;

  // Copies, in the order of the stream.
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) = 0;
  virtual void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) = 0;
  virtual void Zero(void* device, int64_t bytes, Stream& stream) = 0;

  // Host bytes as memory that operations can read. A backend that computes in host memory returns a
  // view, so `host` must outlive the buffer. Errors: those of Allocate.
  virtual Result<Buffer> Upload(const void* host, int64_t bytes, Stream& stream) {
    ASSIGN_OR_RETURN(Buffer buffer, Allocate(bytes));
    CopyToDevice(buffer.data(), host, bytes, stream);
    return buffer;
  }

  virtual std::unique_ptr<Stream> MakeStream() = 0;

  // What PackLinear takes for a weight of this shape.
  virtual int64_t PackedBytes(const LinearWeight& weight, DType activations,
                              bool fused_silu) const = 0;

  // Packs a weight for activations of `activations` dtype into `memory`, PackedBytes of zeros;
  // `fused_silu` tells that it will run with Epilogue::kSiluMul. Errors: those of Validate;
  // kUnimplemented (activations).
  virtual Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight,
                                                           DType activations, bool fused_silu,
                                                           Buffer memory) = 0;

  // The same into memory of its own. Errors: also those of Allocate.
  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu);
};

// kInvalidArgument, naming the value, if a weight has a shape or dtype that no backend packs.
Status Validate(const LinearWeight& weight, bool fused_silu);

// Buffers to be made, and their bytes.
using BufferSizes = std::vector<std::pair<Buffer*, int64_t>>;

// One block of memory for all that is wanted, cut into these buffers; they go in any order. Errors:
// those of Allocate, for the block.
Status AllocateTogether(Backend& backend, const BufferSizes& wanted);

struct BackendOptions {
  int32_t threads = 0;  // 0: one a core
};

// Each backend's factory; one that was not built returns kUnimplemented.
Result<std::unique_ptr<Backend>> MakeRefBackend(const BackendOptions& options);
Result<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options);
Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options);

// device: "auto" (the fastest there is), "cpu", "cuda" or "ref". Errors: kInvalidArgument.
Result<std::unique_ptr<Backend>> MakeBackend(const std::string& device,
                                             const BackendOptions& options);

}  // namespace lserve
