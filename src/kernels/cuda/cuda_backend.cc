// The CUDA backend: one GPU's memory and streams, and the table of its operations.
#include <cuda_runtime.h>

#include <utility>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/stream.h"

namespace lserve {
namespace cuda {
namespace {

template <typename Params, void (*kRun)(const Params&, cudaStream_t)>
void AppendOp(Stream& stream, const Params& params) {
  kRun(params, static_cast<CudaStream&>(stream).get());
}

// An operation whose blocks draw tickets.
template <typename Params, void (*kRun)(const Params&, std::span<int32_t>, cudaStream_t)>
void AppendTicketOp(Stream& stream, const Params& params) {
  auto& cuda_stream = static_cast<CudaStream&>(stream);
  kRun(params, cuda_stream.tickets(), cuda_stream.get());
}

template <typename Params>
int64_t NoWorkspace(const Params& /*params*/) {
  return 0;
}

// The name of an operation that has one kernel.
template <typename Params>
const char* Simt(const Params& /*params*/) {
  return "simt";
}

constexpr Ops kOps = {
    .embed_rows = {"embed_rows", NoWorkspace, AppendOp<EmbedRowsParams, EmbedRows>, Simt},
    .add_rms_norm = {"add_rms_norm", NoWorkspace, AppendOp<AddRmsNormParams, AddRmsNorm>, Simt},
    .linear = {"linear", LinearWorkspace, AppendOp<LinearParams, Linear>, LinearVariant},
    .rope_angles = {"rope_angles", NoWorkspace, AppendOp<RopeAnglesParams, RopeAngles>, Simt},
    .rope_append = {"rope_append", NoWorkspace, AppendOp<RopeAppendParams, RopeAppend>,
                    RopeAppendVariant},
    .append_streaming = {"append_streaming", NoWorkspace,
                         AppendOp<AppendStreamingParams, AppendStreaming>, Simt},
    .select_units = {"select_units", SelectUnitsWorkspace,
                     AppendTicketOp<SelectUnitsParams, SelectUnits>, SelectUnitsVariant},
    .attend_decode = {"attend_decode", AttendDecodeWorkspace,
                      AppendTicketOp<AttendDecodeParams, AttendDecode>, AttendDecodeVariant},
    .attend_prefill = {"attend_prefill", AttendPrefillWorkspace,
                       AppendOp<AttendPrefillParams, AttendPrefill>, AttendPrefillVariant},
    .sample = {"sample", NoWorkspace, AppendOp<SampleParams, Sample>, Simt},
    .fill_normal = {"fill_normal", NoWorkspace, AppendOp<FillNormalParams, FillNormal>, Simt},
    .copy_pages = {"copy_pages", NoWorkspace, AppendOp<CopyPagesParams, CopyPages>, Simt},
    .export_page = {"export_page", NoWorkspace, AppendOp<TransferPageParams, ExportPage>, Simt},
    .import_page = {"import_page", NoWorkspace, AppendOp<TransferPageParams, ImportPage>, Simt},
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(DeviceFacts facts) : facts_(std::move(facts)), setup_(staging_) {}

  const char* name() const override { return "cuda"; }
  const DeviceFacts& facts() const override { return facts_; }
  const Ops& ops() const override { return kOps; }

  int64_t FreeBytes() const override {
    size_t free = 0;
    size_t total = 0;
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
  }

  Status SupportsActivations(DType dtype) const override {
    if (dtype == DType::kBFloat16) {
      return OkStatus();
    }
    if (dtype == DType::kFloat32) {
      return Unimplemented("float32 activations run on --device ref");
    }
    return Unimplemented("activations of {} do not run on --device cuda", DTypeName(dtype));
  }

  Result<Buffer> Allocate(int64_t bytes) override { return AllocateZeroed(bytes, setup_.get()); }

  void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) override {
    static_cast<CudaStream&>(stream).CopyToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) override {
    static_cast<CudaStream&>(stream).CopyToHost(host, device, bytes);
  }
  void Zero(void* device, int64_t bytes, Stream& stream) override {
    static_cast<CudaStream&>(stream).Zero(device, bytes);
  }

  std::unique_ptr<Stream> MakeStream() override { return std::make_unique<CudaStream>(staging_); }

  int64_t PackedBytes(const LinearWeight& weight, DType /*activations*/,
                      bool fused_silu) const override {
    return CudaLinear::PackedBytes(weight, fused_silu);
  }

  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu, Buffer memory) override {
    RETURN_IF_ERROR(SupportsActivations(activations));
    ASSIGN_OR_RETURN(std::unique_ptr<CudaLinear> linear,
                     CudaLinear::Make(weight, fused_silu, std::move(memory), setup_));
    return std::unique_ptr<PackedLinear>(std::move(linear));
  }

 private:
  DeviceFacts facts_;
  StagingPool staging_;
  CudaStream setup_;  // of allocations and weights
};

// The first GPU, if the kernels of this program run on it.
Result<DeviceFacts> FindDevice() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return FailedPrecondition("no NVIDIA driver is installed");
  }
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
    cudaGetLastError();  // not an error of the next launch
    return FailedPrecondition("no NVIDIA GPU can be used with a driver for CUDA {}.{}: {}",
                              driver / 1000, driver % 1000 / 10, cudaGetErrorString(error));
  }
  if (devices == 0) {
    return FailedPrecondition("there is no NVIDIA GPU");
  }
  RETURN_IF_ERROR(StatusOf(cudaSetDevice(0), "the first GPU"));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(StatusOf(cudaGetDeviceProperties(&properties, 0), "the first GPU"));
  if (const cudaError_t error = KernelsLoad(); error != cudaSuccess) {
    cudaGetLastError();
    return FailedPrecondition(
        "{} has compute capability {}.{}, which this program does not run on: {}", properties.name,
        properties.major, properties.minor, cudaGetErrorString(error));
  }
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(StatusOf(cudaMemGetInfo(&free, &total), "the memory of the first GPU"));
  DeviceFacts facts;
  facts.name = properties.name;
  facts.instructions = fmt::format("sm_{}{}, {} multiprocessors", properties.major,
                                   properties.minor, properties.multiProcessorCount);
  facts.memory_bytes = static_cast<int64_t>(total);
  facts.free_bytes = static_cast<int64_t>(free);
  facts.own_memory = true;
  return facts;
}

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& /*options*/) {
  ASSIGN_OR_RETURN(DeviceFacts facts, cuda::FindDevice());
  return std::unique_ptr<Backend>(std::make_unique<cuda::CudaBackend>(std::move(facts)));
}

}  // namespace lserve
