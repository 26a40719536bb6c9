// The `ref` backend: host memory, a stream that runs at once, and graphs that are lists of
// closures.
#include "kernels/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/ref/linear.h"
#include "kernels/ref/operations.h"

namespace lserve {
namespace {

using Closure = std::function<void()>;

class RefGraph : public Graph {
 public:
  explicit RefGraph(std::vector<Closure> closures) : closures_(std::move(closures)) {}
  const std::vector<Closure>& closures() const { return closures_; }

 private:
  std::vector<Closure> closures_;
};

class RefStream : public Stream {
 public:
  Status Synchronize() override { return OkStatus(); }

  void BeginCapture() override {
    CHECK(!capturing_);
    capturing_ = true;
  }

  std::unique_ptr<Graph> EndCapture() override {
    CHECK(capturing_);
    capturing_ = false;
    return std::make_unique<RefGraph>(std::exchange(recorded_, {}));
  }

  void Launch(const Graph& graph) override {
    for (const Closure& closure : static_cast<const RefGraph&>(graph).closures()) {
      Append(closure);
    }
  }

  void Append(Closure closure) {
    if (capturing_) {
      recorded_.push_back(std::move(closure));
    } else {
      closure();
    }
  }

 private:
  bool capturing_ = false;
  std::vector<Closure> recorded_;
};

template <auto kRun, typename Params>
void SetOp(Op<Params>& op, const char* name) {
  op.name = name;
  op.workspace_bytes = [](const Params&) -> int64_t { return 0; };
  op.run = [](Stream& stream, const Params& params) {
    static_cast<RefStream&>(stream).Append([params] { kRun(params); });
  };
  op.variant = [](const Params&) { return "scalar"; };
}

Ops MakeOps() {
  Ops ops;
  SetOp<ref::RunEmbedRows>(ops.embed_rows, "embed_rows");
  SetOp<ref::RunAddRmsNorm>(ops.add_rms_norm, "add_rms_norm");
  SetOp<ref::RunLinear>(ops.linear, "linear");
  SetOp<ref::RunRopeAngles>(ops.rope_angles, "rope_angles");
  SetOp<ref::RunRopeAppend>(ops.rope_append, "rope_append");
  SetOp<ref::RunAppendStreaming>(ops.append_streaming, "append_streaming");
  SetOp<ref::RunSelectUnits>(ops.select_units, "select_units");
  SetOp<ref::RunAttendDecode>(ops.attend_decode, "attend_decode");
  SetOp<ref::RunAttendPrefill>(ops.attend_prefill, "attend_prefill");
  SetOp<ref::RunSample>(ops.sample, "sample");
  SetOp<ref::RunFillNormal>(ops.fill_normal, "fill_normal");
  SetOp<ref::RunCopyPages>(ops.copy_pages, "copy_pages");
  SetOp<ref::RunExportPage>(ops.export_page, "export_page");
  SetOp<ref::RunImportPage>(ops.import_page, "import_page");
  return ops;
}

std::string ProcessorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (const size_t colon = line.find(": ");
        line.rfind("model name", 0) == 0 && colon < line.size()) {
      return line.substr(colon + 2);
    }
  }
  return "unknown processor";
}

class RefBackend : public Backend {
 public:
  RefBackend() : ops_(MakeOps()) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    facts_.name = ProcessorName();
    facts_.instructions = "scalar";
    facts_.memory_bytes = sysconf(_SC_PHYS_PAGES) * page;
    facts_.free_bytes = sysconf(_SC_AVPHYS_PAGES) * page;
  }

  const char* name() const override { return "ref"; }
  const DeviceFacts& facts() const override { return facts_; }
  const Ops& ops() const override { return ops_; }

  Status SupportsActivations(DType dtype) const override {
    if (dtype == DType::kFloat32 || dtype == DType::kBFloat16) {
      return OkStatus();
    }
    return Unimplemented("the ref backend does not run {} activations", DTypeName(dtype));
  }

  Result<Buffer> Allocate(int64_t bytes) override {
    CHECK_GE(bytes, 0);
    if (bytes == 0) {
      return Buffer();
    }
    void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return ResourceExhausted("no memory for {} bytes", bytes);
    }
    return Buffer(static_cast<std::byte*>(data), bytes, [](std::byte* memory, int64_t length) {
      munmap(memory, static_cast<size_t>(length));
    });
  }

  void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) override {
    Copy(device, host, bytes, stream);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) override {
    Copy(host, device, bytes, stream);
  }
  void Zero(void* device, int64_t bytes, Stream& stream) override {
    static_cast<RefStream&>(stream).Append(
        [=] { std::memset(device, 0, static_cast<size_t>(bytes)); });
  }

  std::unique_ptr<Stream> MakeStream() override { return std::make_unique<RefStream>(); }

  int64_t PackedBytes(const LinearWeight& weight, DType activations,
                      bool /*fused_silu*/) const override {
    return weight.out_features * weight.in_features * DTypeBytes(activations);
  }

  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu, Buffer memory) override {
    RETURN_IF_ERROR(Validate(weight, fused_silu));
    RETURN_IF_ERROR(SupportsActivations(activations));
    CHECK_EQ(memory.bytes(), PackedBytes(weight, activations, fused_silu));
    return std::unique_ptr<PackedLinear>(
        std::make_unique<ref::RefLinear>(weight, activations, std::move(memory)));
  }

 private:
  static void Copy(void* to, const void* from, int64_t bytes, Stream& stream) {
    if (bytes > 0) {  // an empty array may have no address
      static_cast<RefStream&>(stream).Append(
          [=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
    }
  }

  DeviceFacts facts_;
  Ops ops_;
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeRefBackend(const BackendOptions& /*options*/) {
  return std::unique_ptr<Backend>(std::make_unique<RefBackend>());
}

}  // namespace lserve
