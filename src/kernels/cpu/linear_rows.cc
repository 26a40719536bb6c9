// Products of few rows, bound by reading the weights: every load of a panel serves up to four rows.
// A sum over k is two chains, even and odd elements, whatever the other rows are.
#include <algorithm>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

// kRows rows of float32 input times kPanels panels; panels_left says how many of them exist.
template <int kRows, int kPanels>
HWY_INLINE void MultiplyBlock(const float* input, int64_t depth, const BFloat16* panels,
                              float* output, int64_t output_stride) {
  const hn::CappedTag<float, kPanelColumns> df;
  const hn::Rebind<uint32_t, decltype(df)> du32;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(hn::CappedTag<float, 16>()));
  using V = hn::Vec<decltype(df)>;
  const auto upper = hn::Set(du32, 0xFFFF0000u);
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    V even[kRows][kPanels];
    V odd[kRows][kPanels];
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPanels; ++p) {
        even[r][p] = hn::Zero(df);
        odd[r][p] = hn::Zero(df);
      }
    }
    const auto* weights = reinterpret_cast<const uint32_t*>(panels) + column;
    for (int64_t k = 0; k < depth; k += 2) {
      for (int p = 0; p < kPanels; ++p) {
        const auto pair =
            hn::LoadU(du32, weights + p * depth * kPanelColumns / 2 + k / 2 * kPanelColumns);
        const auto low = hn::BitCast(df, hn::ShiftLeft<16>(pair));
        const auto high = hn::BitCast(df, hn::And(pair, upper));
        for (int r = 0; r < kRows; ++r) {
          even[r][p] = hn::MulAdd(low, hn::Set(df, input[r * depth + k]), even[r][p]);
          odd[r][p] = hn::MulAdd(high, hn::Set(df, input[r * depth + k + 1]), odd[r][p]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPanels; ++p) {
        hn::StoreU(hn::Add(even[r][p], odd[r][p]), df,
                   output + r * output_stride + p * kPanelColumns + column);
      }
    }
  }
}

template <int kRows>
void MultiplyPanels(const ProductTask& task, const float* input, float* output) {
  const int64_t depth = task.weight->padded_depth();
  const int64_t stride = task.panels * kPanelColumns;
  constexpr int kPanels = kRows == 1 ? 4 : 2;
  int64_t p = 0;
  for (; p + kPanels <= task.panels; p += kPanels) {
    MultiplyBlock<kRows, kPanels>(input, depth, task.weight->panel(task.first_panel + p),
                                  output + p * kPanelColumns, stride);
  }
  for (; p < task.panels; ++p) {
    MultiplyBlock<kRows, 1>(input, depth, task.weight->panel(task.first_panel + p),
                            output + p * kPanelColumns, stride);
  }
}

void MultiplyRows(const ProductTask& task) {
  constexpr int32_t kBlock = 4;
  const int64_t depth = task.weight->padded_depth();
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto* widened = reinterpret_cast<float*>(task.scratch);  // [kBlock, depth]
  for (int32_t row = 0; row < task.rows;) {
    const int32_t rows = task.rows - row >= kBlock ? kBlock : 1;
    for (int32_t r = 0; r < rows; ++r) {
      const BFloat16* from = task.input + (row + r) * task.input_stride;
      for (int64_t k = 0; k < depth; k += lanes) {
        hn::StoreU(LoadBF16(df, from + k), df, widened + r * depth + k);
      }
    }
    float* output = task.output + row * task.panels * kPanelColumns;
    if (rows == kBlock) {
      MultiplyPanels<kBlock>(task, widened, output);
    } else {
      MultiplyPanels<1>(task, widened, output);
    }
    row += rows;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(MultiplyRows);

}  // namespace

int64_t SimdScratchBytes(int64_t padded_depth) { return 4 * padded_depth * int64_t{sizeof(float)}; }

void MultiplyRowsSimd(const ProductTask& task) { HWY_DYNAMIC_DISPATCH(MultiplyRows)(task); }

const char* SimdVariant() {
  const int64_t best = hwy::SupportedTargets() & HWY_TARGETS;
  return (best & HWY_AVX3) != 0 ? "avx512" : (best & HWY_AVX2) != 0 ? "avx2" : "ssse3";
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
