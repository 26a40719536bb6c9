// Products of row tiles on AMX: a pair of panels and a pair of 16-row tiles share four
// accumulators. A panel's 32 values of k are one tile as they lie; a row's 32 values are one tile
// row of the input. A row's sums depend on nothing but the row: k ascends, 32 at a time.
#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/linear.h"

#define LSERVE_AMX_BF16 __attribute__((target("amx-tile,amx-bf16,avx512f")))

namespace lserve::cpu {
namespace {

constexpr int64_t kTileDepth = 32;   // bf16 values of k in a tile row
constexpr int64_t kTileHeight = 16;  // rows of a tile

// The palette-1 layout that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of the few-row kernel: 0 to 3 sums, 4 input (both of `input_rows` rows), 5 to 7 weights.
TileConfig ConfigForRows(int32_t input_rows) {
  TileConfig config;
  for (int tile = 0; tile <= 4; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(input_rows);
  }
  return config;
}

// 32 rows times two panels (or one, when `pair` is false: the second pair of accumulators idles).
LSERVE_AMX_BF16 inline void MultiplyPair(const BFloat16* input, int64_t input_stride,
                                         const BFloat16* panel, int64_t depth, bool pair,
                                         float* output, int64_t output_stride) {
  const auto input_bytes = static_cast<size_t>(input_stride) * sizeof(BFloat16);
  const auto output_bytes = static_cast<size_t>(output_stride) * sizeof(float);
  const BFloat16* lower = input + kTileHeight * input_stride;
  const BFloat16* second = panel + depth * kPanelColumns;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    _tile_loadd(4, input + k, input_bytes);
    _tile_loadd(6, panel + k * kPanelColumns, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, lower + k, input_bytes);
    _tile_dpbf16ps(2, 5, 6);
    if (pair) {
      _tile_loadd(7, second + k * kPanelColumns, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, output, output_bytes);
  _tile_stored(2, output + kTileHeight * output_stride, output_bytes);
  if (pair) {
    _tile_stored(1, output + kPanelColumns, output_bytes);
    _tile_stored(3, output + kTileHeight * output_stride + kPanelColumns, output_bytes);
  }
}

// The configured rows times four panels.
LSERVE_AMX_BF16 inline void MultiplyFourPanels(const BFloat16* input, int64_t input_stride,
                                               const BFloat16* panels, int64_t depth, float* output,
                                               int64_t output_stride) {
  const auto input_bytes = static_cast<size_t>(input_stride) * sizeof(BFloat16);
  const auto output_bytes = static_cast<size_t>(output_stride) * sizeof(float);
  const int64_t panel_elements = depth * kPanelColumns;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const BFloat16* weights = panels + k * kPanelColumns;
    _tile_loadd(4, input + k, input_bytes);
    _tile_loadd(5, weights, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, weights + panel_elements, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, weights + 2 * panel_elements, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, weights + 3 * panel_elements, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, output, output_bytes);
  _tile_stored(1, output + kPanelColumns, output_bytes);
  _tile_stored(2, output + 2 * kPanelColumns, output_bytes);
  _tile_stored(3, output + 3 * kPanelColumns, output_bytes);
}

LSERVE_AMX_BF16 inline void MultiplyOnePanel(const BFloat16* input, int64_t input_stride,
                                             const BFloat16* panel, int64_t depth, float* output,
                                             int64_t output_stride) {
  _tile_zero(0);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    _tile_loadd(4, input + k, static_cast<size_t>(input_stride) * sizeof(BFloat16));
    _tile_loadd(5, panel + k * kPanelColumns, 64);
    _tile_dpbf16ps(0, 4, 5);
  }
  _tile_stored(0, output, static_cast<size_t>(output_stride) * sizeof(float));
}

}  // namespace

LSERVE_AMX_BF16 void MultiplyRowsAmx(const ProductTask& task) {
  const int64_t depth = task.weight->padded_depth();
  const int64_t stride = task.panels * kPanelColumns;
  for (int32_t row = 0; row < task.rows; row += kTileHeight) {
    const TileConfig config =
        ConfigForRows(std::min(static_cast<int32_t>(kTileHeight), task.rows - row));
    _tile_loadconfig(&config);
    const BFloat16* input = task.input + row * task.input_stride;
    float* output = task.output + row * stride;
    int64_t p = 0;
    for (; p + 4 <= task.panels; p += 4) {
      MultiplyFourPanels(input, task.input_stride, task.weight->panel(task.first_panel + p), depth,
                         output + p * kPanelColumns, stride);
    }
    for (; p < task.panels; ++p) {
      MultiplyOnePanel(input, task.input_stride, task.weight->panel(task.first_panel + p), depth,
                       output + p * kPanelColumns, stride);
    }
  }
  _tile_release();
}

LSERVE_AMX_BF16 void MultiplyTileAmx(const ProductTask& task) {
  static_assert(kTileRows % (2 * kTileHeight) == 0);
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t depth = task.weight->padded_depth();
  const int64_t stride = task.panels * kPanelColumns;
  for (int64_t p = 0; p < task.panels; p += 2) {
    const bool pair = p + 1 < task.panels;
    for (int64_t row = 0; row < task.rows; row += 2 * kTileHeight) {
      MultiplyPair(task.input + row * task.input_stride, task.input_stride,
                   task.weight->panel(task.first_panel + p), depth, pair,
                   task.output + row * stride + p * kPanelColumns, stride);
    }
  }
  _tile_release();
}

}  // namespace lserve::cpu
