// The CPU backend: memory of the host, one team of threads, the table of its operations.
#include <algorithm>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_stream.h"
#include "kernels/cpu/instructions.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/row_ops.h"

namespace lserve {
namespace cpu {
namespace {

template <typename Params>
int64_t NoWorkspace(const Params& /*params*/) {
  return 0;
}

template <typename Params>
const char* Simd(const Params& /*params*/) {
  return SimdVariant();
}

template <typename Params>
const char* Scalar(const Params& /*params*/) {
  return "scalar";
}

constexpr Ops kOps = {
    .embed_rows = {"embed_rows", NoWorkspace, AppendOp<EmbedRowsParams, RunEmbedRows>, Scalar},
    .add_rms_norm = {"add_rms_norm", NoWorkspace, AppendOp<AddRmsNormParams, RunAddRmsNorm>, Simd},
    .linear = {"linear", LinearWorkspace, AppendOp<LinearParams, RunLinear>, LinearVariant},
    .rope_angles = {"rope_angles", NoWorkspace, AppendOp<RopeAnglesParams, RunRopeAngles>, Scalar},
    .rope_append = {"rope_append", NoWorkspace, AppendOp<RopeAppendParams, RunRopeAppend>, Simd},
    .append_streaming = {"append_streaming", NoWorkspace,
                         AppendOp<AppendStreamingParams, RunAppendStreaming>, Scalar},
    .select_units = {"select_units", SelectUnitsWorkspace,
                     AppendOp<SelectUnitsParams, RunSelectUnits>, SelectUnitsVariant},
    .attend_decode = {"attend_decode", AttendDecodeWorkspace,
                      AppendOp<AttendDecodeParams, RunAttendDecode>, AttendDecodeVariant},
    .attend_prefill = {"attend_prefill", AttendPrefillWorkspace,
                       AppendOp<AttendPrefillParams, RunAttendPrefill>, AttendPrefillVariant},
    .sample = {"sample", NoWorkspace, AppendOp<SampleParams, RunSample>, Simd},
    .fill_normal = {"fill_normal", NoWorkspace, AppendOp<FillNormalParams, RunFillNormal>, Scalar},
    .copy_pages = {"copy_pages", NoWorkspace, AppendOp<CopyPagesParams, RunCopyPages>, Scalar},
    .export_page = {"export_page", NoWorkspace, AppendOp<TransferPageParams, RunExportPage>,
                    Scalar},
    .import_page = {"import_page", NoWorkspace, AppendOp<TransferPageParams, RunImportPage>,
                    Scalar},
};

// A copy that is recorded in a graph, or a Zero (source null).
struct MoveBytesParams {
  void* destination;
  const void* source;
  int64_t bytes;
};

void RunMoveBytes(const MoveBytesParams& params, Team& team) {
  const ThreadRange range(team, params.bytes);
  std::byte* to = static_cast<std::byte*>(params.destination) + range.begin;
  const auto size = static_cast<size_t>(range.end - range.begin);
  if (params.source == nullptr) {
    std::memset(to, 0, size);
  } else {
    std::memcpy(to, static_cast<const std::byte*>(params.source) + range.begin, size);
  }
}

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int32_t threads) : facts_(ReadHostFacts(threads)) {}

  const char* name() const override { return "cpu"; }
  const DeviceFacts& facts() const override { return facts_; }
  const Ops& ops() const override { return kOps; }

  Status SupportsActivations(DType dtype) const override {
    if (dtype == DType::kBFloat16) {
      return OkStatus();
    }
    if (dtype == DType::kFloat32) {
      return Unimplemented("float32 activations run on --device ref");
    }
    return Unimplemented("activations of {} do not run on --device cpu", DTypeName(dtype));
  }

  Result<Buffer> Allocate(int64_t bytes) override { return AllocateZeroed(bytes); }

  void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) override {
    Move(device, host, bytes, stream);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) override {
    Move(host, device, bytes, stream);
  }
  void Zero(void* device, int64_t bytes, Stream& stream) override {
    Move(device, nullptr, bytes, stream);
  }

  std::unique_ptr<Stream> MakeStream() override {
    return std::make_unique<CpuStream>(facts_.threads);
  }

  int64_t PackedBytes(const LinearWeight& weight, DType /*activations*/,
                      bool fused_silu) const override {
    return CpuLinear::PackedBytes(weight, fused_silu);
  }

  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu, Buffer memory) override {
    RETURN_IF_ERROR(Validate(weight, fused_silu));
    RETURN_IF_ERROR(SupportsActivations(activations));
    return std::unique_ptr<PackedLinear>(
        std::make_unique<CpuLinear>(weight, fused_silu, std::move(memory)));
  }

 private:
  // What was appended before runs first; then the bytes move at once, so the caller's memory is
  // free again. In a capture the move is recorded.
  static void Move(void* to, const void* from, int64_t bytes, Stream& stream) {
    if (bytes == 0) {
      return;
    }
    if (static_cast<CpuStream&>(stream).capturing()) {
      AppendOp<MoveBytesParams, RunMoveBytes>(stream, {to, from, bytes});
      return;
    }
    CHECK_OK(stream.Synchronize());
    if (from == nullptr) {
      std::memset(to, 0, static_cast<size_t>(bytes));
    } else {
      std::memcpy(to, from, static_cast<size_t>(bytes));
    }
  }

  DeviceFacts facts_;
};

}  // namespace
}  // namespace cpu

Result<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options) {
  constexpr int32_t kMaxThreads = 1024;
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("{} threads: give 0 (one a core) to {}", options.threads, kMaxThreads);
  }
  RETURN_IF_ERROR(cpu::ApplyInstructionLimit());
  const int32_t threads = options.threads == 0 ? cpu::AvailableCpus() : options.threads;
  return std::unique_ptr<Backend>(std::make_unique<cpu::CpuBackend>(threads));
}

}  // namespace lserve
