#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/cpu/instructions.h"
#include "kernels/cpu/one_dnn.h"
#include "kernels/cpu/row_ops.h"

namespace lserve::cpu {
namespace {

// A prefill task's panels: its weights stay in a core's second-level cache while row tiles pass,
// and its sums beside them.
constexpr int64_t kSliceBytes = int64_t{512} << 10;
constexpr int64_t kMaxSlicePanels = 32;

// Rows of a row task whose sums are kept at once.
constexpr int32_t kRowBlock = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Panels(const LinearWeight& weight, bool fused_silu) {
  return fused_silu ? 2 * CeilDiv(weight.out_features / 2, kPanelColumns)
                    : CeilDiv(weight.out_features, kPanelColumns);
}

int64_t PaddedDepth(const LinearWeight& weight) {
  return CeilDiv(weight.in_features, kDepthMultiple) * kDepthMultiple;
}

BFloat16 LoadWeight(const LinearWeight& weight, int64_t index) {
  switch (weight.dtype) {
    case DType::kBFloat16: return static_cast<const BFloat16*>(weight.data)[index];
    case DType::kFloat16:
      return ToBFloat16(ToFloat(static_cast<const Float16*>(weight.data)[index]));
    default: return ToBFloat16(static_cast<const float*>(weight.data)[index]);
  }
}

bool Always(const CpuLinear& /*weight*/) { return true; }

const ProductKernel kTileKernels[] = {
    {"amx", [](const CpuLinear& /*weight*/) { return HasAmxBf16(); }, MultiplyTileAmx, true},
    {"onednn", [](const CpuLinear& weight) { return weight.one_dnn() != nullptr; },
     MultiplyTileOneDnn, false},
    {"simd", Always, MultiplyRowsSimd, true},
};

const ProductKernel kRowKernels[] = {
    {"amx", [](const CpuLinear& /*weight*/) { return HasAmxBf16(); }, MultiplyRowsAmx, true},
    {"avx512bf16", [](const CpuLinear& /*weight*/) { return HasAvx512Bf16(); },
     MultiplyRowsAvx512Bf16, true},
    {"simd", Always, MultiplyRowsSimd, true},
};

const ProductKernel& FirstSupported(std::span<const ProductKernel> kernels,
                                    const CpuLinear& weight) {
  return *std::find_if(kernels.begin(), kernels.end() - 1,
                       [&](const ProductKernel& kernel) { return kernel.supports(weight); });
}

// A thread's scratch during one Linear: sums, padded input rows, the kernel's own.
class LinearScratch {
 public:
  LinearScratch(const CpuLinear& weight, Team& team) {
    const int64_t sums_bytes = kTileRows * std::max(weight.slice_panels(), kMaxSlicePanels) *
                               kPanelColumns * int64_t{sizeof(float)};
    const int64_t input_bytes = weight.padded_depth() == weight.in_features()
                                    ? 0
                                    : kTileRows * weight.padded_depth() * int64_t{sizeof(BFloat16)};
    std::byte* data = team.Scratch(sums_bytes + input_bytes + KernelScratchBytes(weight));
    sums = reinterpret_cast<float*>(data);
    input = reinterpret_cast<BFloat16*>(data + sums_bytes);
    kernel = data + sums_bytes + input_bytes;
  }
  float* sums;
  BFloat16* input;
  std::byte* kernel;
};

// Rows [first_row, first_row + rows) of the input times some panels, finished into the output.
// read_rows rows may be read, of which `rows` are finished.
void MultiplyAndFinish(const LinearParams& params, const CpuLinear& weight,
                       const ProductKernel& kernel, int64_t first_row, int32_t read_rows,
                       int32_t rows, int64_t first_panel, int64_t panels,
                       const LinearScratch& scratch) {
  const int64_t depth = weight.in_features();
  ProductTask product{.weight = &weight,
                      .input = static_cast<const BFloat16*>(params.input) + first_row * depth,
                      .input_stride = depth,
                      .rows = read_rows,
                      .first_panel = first_panel,
                      .panels = panels,
                      .output = scratch.sums,
                      .scratch = scratch.kernel};
  if (kernel.padded_input && depth != weight.padded_depth()) {
    for (int32_t r = 0; r < read_rows; ++r) {
      BFloat16* to = scratch.input + r * weight.padded_depth();
      std::copy_n(product.input + r * depth, depth, to);
      std::fill(to + depth, to + weight.padded_depth(), BFloat16{0});
    }
    product.input = scratch.input;
    product.input_stride = weight.padded_depth();
  }
  kernel.run(product);
  FinishLinear({.params = &params,
                .sums = scratch.sums,
                .first_row = first_row,
                .rows = rows,
                .first_panel = first_panel,
                .panels = panels});
}

}  // namespace

int64_t CpuLinear::PackedBytes(const LinearWeight& weight, bool fused_silu) {
  return Panels(weight, fused_silu) * kPanelColumns * PaddedDepth(weight) *
         int64_t{sizeof(BFloat16)};
}

CpuLinear::CpuLinear(const LinearWeight& weight, bool fused_silu, Buffer memory)
    : PackedLinear(weight.out_features, weight.in_features),
      fused_silu_(fused_silu),
      panels_(Panels(weight, fused_silu)),
      padded_depth_(PaddedDepth(weight)),
      data_(std::move(memory)) {
  CHECK_EQ(data_.bytes(), PackedBytes(weight, fused_silu));
  const int64_t fitting = kSliceBytes / (panel_elements() * int64_t{sizeof(BFloat16)});
  slice_panels_ = std::min(panels_, std::clamp<int64_t>(fitting / 2 * 2, 4, kMaxSlicePanels));
  Fill(weight);
  const int64_t last_panels = panels_ - (CeilDiv(panels_, slice_panels_) - 1) * slice_panels_;
  one_dnn_ = OneDnnProduct::Make(weight.in_features, slice_panels_ * kPanelColumns,
                                 last_panels * kPanelColumns);
}

CpuLinear::~CpuLinear() = default;

void CpuLinear::Fill(const LinearWeight& weight) {
  const int64_t half = weight.out_features / 2;
  const int64_t rows = fused_silu_ ? half : weight.out_features;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels_; ++p) {
    const int64_t first = (fused_silu_ ? p / 2 : p) * kPanelColumns;
    const int64_t offset = fused_silu_ && p % 2 == 1 ? half : 0;
    BFloat16* to = data_.As<BFloat16>() + p * panel_elements();
    for (int64_t n = first; n < std::min(rows, first + kPanelColumns); ++n) {
      for (int64_t k = 0; k < weight.in_features; ++k) {
        to[k / 2 * (2 * kPanelColumns) + (n - first) * 2 + k % 2] =
            LoadWeight(weight, (offset + n) * weight.in_features + k);
      }
    }
  }
}

std::span<const ProductKernel> TileKernels() { return kTileKernels; }
std::span<const ProductKernel> RowKernels() { return kRowKernels; }

const ProductKernel& TileKernel(const CpuLinear& weight) {
  return FirstSupported(kTileKernels, weight);
}

const ProductKernel& RowKernel(const CpuLinear& weight) {
  return FirstSupported(kRowKernels, weight);
}

int64_t KernelScratchBytes(const CpuLinear& weight) {
  return std::max(SimdScratchBytes(weight.padded_depth()),
                  weight.one_dnn() == nullptr ? 0 : weight.one_dnn()->scratch_bytes());
}

void MultiplyTileOneDnn(const ProductTask& task) {
  task.weight->one_dnn()->Run(task.panels * kPanelColumns, task.input,
                              task.weight->panel(task.first_panel), task.output, task.scratch);
}

int64_t LinearWorkspace(const LinearParams& /*params*/) { return 0; }

const char* LinearVariant(const LinearParams& params) {
  const auto& weight = static_cast<const CpuLinear&>(*params.weight);
  return (params.rows == RowSet::kLogits ? RowKernel(weight) : TileKernel(weight)).name;
}

void RunLinear(const LinearParams& params, Team& team) {
  if (params.norm.weight != nullptr) {
    RunAddRmsNorm(NormOfInput(params), team);
    team.Barrier();
    return RunLinear(BehindNorm(params), team);
  }
  const auto& weight = static_cast<const CpuLinear&>(*params.weight);
  CHECK_EQ(weight.fused_silu(), params.epilogue == Epilogue::kSiluMul);
  const bool logits = params.rows == RowSet::kLogits;
  const int32_t row_rows = params.batch.counts[logits ? kLogitRows : kDecodeRows];
  const int32_t tile_rows = logits ? 0 : params.batch.counts[kPrefillRows];
  const int64_t tiles = CeilDiv(tile_rows, kTileRows);
  const int64_t tile_tasks = tiles * CeilDiv(weight.panels(), weight.slice_panels());
  // Few panels a task, so that every thread gets some; pairs, for gate and up.
  const int64_t row_panels = weight.panels() >= int64_t{8} * team.threads() ? 4 : 2;
  const int64_t row_tasks = row_rows == 0 ? 0 : CeilDiv(weight.panels(), row_panels);
  const LinearScratch scratch(weight, team);
  for (int64_t task = team.Next(); task < tile_tasks + row_tasks; task = team.Next()) {
    if (task < tile_tasks) {
      // All tiles of a slice before the next slice: its weights stay in cache.
      const int64_t first_panel = task / tiles * weight.slice_panels();
      const int64_t first = task % tiles * kTileRows;
      const auto rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, tile_rows - first));
      MultiplyAndFinish(params, weight, TileKernel(weight), row_rows + first, kTileRows, rows,
                        first_panel, std::min(weight.slice_panels(), weight.panels() - first_panel),
                        scratch);
      continue;
    }
    const int64_t first_panel = (task - tile_tasks) * row_panels;
    const int64_t panels = std::min(row_panels, weight.panels() - first_panel);
    for (int32_t first = 0; first < row_rows; first += kRowBlock) {
      const int32_t rows = std::min(kRowBlock, row_rows - first);
      MultiplyAndFinish(params, weight, RowKernel(weight), first, rows, rows, first_panel, panels,
                        scratch);
    }
  }
}

}  // namespace lserve::cpu
