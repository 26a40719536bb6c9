// Linear layers of the CPU backend: packed weights, and the kernels that multiply with them. How a
// row is computed depends on its kind alone: prefill rows go in tiles of kTileRows to a matrix
// kernel, decode and logit rows to a kernel bound by the weights' bandwidth. Every kernel computes
// a row independently of its neighbours, in an order fixed by the weight's shape.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/team.h"
#include "kernels/ops.h"
#include "tensor/buffer.h"

namespace lserve::cpu {

inline constexpr int32_t kPanelColumns = 16;
inline constexpr int32_t kTileRows = 64;
inline constexpr int32_t kDepthMultiple = 32;  // k is padded to it

class OneDnnProduct;

// bf16 panels of 16 columns in pairs of k: [panel][padded k / 2][16][2], oneDNN's BA16a16b2a;
// padding is zero. With fused_silu, panel 2j holds 16 columns of the gate and panel 2j + 1 the same
// columns of up, so that one slice of panels gives finished outputs. Of the layouts that oneDNN
// takes this one is chosen over BA16a64b2a (equally fast there) because 32 values of k of a panel
// are one AMX tile as they lie, and 16-wide panels pad less.
class CpuLinear : public PackedLinear {
 public:
  static int64_t PackedBytes(const LinearWeight& weight, bool fused_silu);
  // memory: PackedBytes of zeros.
  CpuLinear(const LinearWeight& weight, bool fused_silu, Buffer memory);
  ~CpuLinear() override;

  bool fused_silu() const { return fused_silu_; }
  int64_t panels() const { return panels_; }
  int64_t padded_depth() const { return padded_depth_; }
  int64_t panel_elements() const { return padded_depth_ * kPanelColumns; }
  const BFloat16* panel(int64_t index) const {
    return data_.As<const BFloat16>() + index * panel_elements();
  }

  // Prefill tasks take this many panels (the last one the rest): even, by the weight's shape alone.
  int64_t slice_panels() const { return slice_panels_; }
  // The product of a tile with a slice; null where oneDNN has none for bf16.
  const OneDnnProduct* one_dnn() const { return one_dnn_.get(); }

 private:
  void Fill(const LinearWeight& weight);

  bool fused_silu_;
  int64_t panels_;
  int64_t padded_depth_;
  int64_t slice_panels_;
  Buffer data_;
  std::unique_ptr<OneDnnProduct> one_dnn_;
};

// Rows of bf16 input times panels [first_panel, first_panel + panels) of a weight.
struct ProductTask {
  const CpuLinear* weight;
  const BFloat16* input;  // [rows, depth], `input_stride` elements apart
  int64_t input_stride;
  int32_t rows;
  int64_t first_panel;
  int64_t panels;
  float* output;       // [rows, panels * 16]
  std::byte* scratch;  // KernelScratchBytes(weight)
};

// A way to compute products. In a list of these the first one supported is taken; the last is
// total.
struct ProductKernel {
  const char* name;
  bool (*supports)(const CpuLinear& weight);
  void (*run)(const ProductTask& task);
  bool padded_input;  // needs rows of the padded depth, zeros at their end
};

// For tiles of kTileRows prefill rows, of which all must be readable.
std::span<const ProductKernel> TileKernels();
const ProductKernel& TileKernel(const CpuLinear& weight);
// For any number of decode or logit rows.
std::span<const ProductKernel> RowKernels();
const ProductKernel& RowKernel(const CpuLinear& weight);
// Scratch that any kernel needs with this weight.
int64_t KernelScratchBytes(const CpuLinear& weight);
int64_t SimdScratchBytes(int64_t padded_depth);

// Kernels of their own files.
void MultiplyRowsSimd(const ProductTask& task);
void MultiplyRowsAvx512Bf16(const ProductTask& task);
void MultiplyRowsAmx(const ProductTask& task);
void MultiplyTileOneDnn(const ProductTask& task);
void MultiplyTileAmx(const ProductTask& task);

// A slice of finished sums on its way to the output.
struct EpilogueTask {
  const LinearParams* params;
  const float* sums;  // [rows, panels * 16]
  int64_t first_row;  // of the output
  int32_t rows;
  int64_t first_panel;
  int64_t panels;
};

// Applies the epilogue, rounds once and writes; rows and columns that do not exist are not touched.
void FinishLinear(const EpilogueTask& task);

int64_t LinearWorkspace(const LinearParams& params);
void RunLinear(const LinearParams& params, Team& team);
const char* LinearVariant(const LinearParams& params);

}  // namespace lserve::cpu
