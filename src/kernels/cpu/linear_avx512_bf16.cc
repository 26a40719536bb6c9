// Products of few rows with the bf16 dot product of AVX-512, which takes a broadcast pair of x and
// a row of a panel. A sum over k is two chains of pairs, whatever the other rows are.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/linear.h"

#define LSERVE_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace lserve::cpu {
namespace {

LSERVE_AVX512_BF16 inline __m512bh LoadPanelRow(const BFloat16* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}

LSERVE_AVX512_BF16 inline __m512bh BroadcastPair(const BFloat16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

// kRows rows times kPanels panels.
template <int kRows, int kPanels>
LSERVE_AVX512_BF16 void MultiplyBlock(const BFloat16* input, int64_t input_stride, int64_t depth,
                                      const BFloat16* panels, float* output,
                                      int64_t output_stride) {
  __m512 sums[kRows][kPanels][2];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      sums[r][p][0] = _mm512_setzero_ps();
      sums[r][p][1] = _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 4) {
    for (int chain = 0; chain < 2; ++chain) {
      __m512bh weights[kPanels];
      for (int p = 0; p < kPanels; ++p) {
        weights[p] = LoadPanelRow(panels + (p * depth + k + 2 * chain) * kPanelColumns);
      }
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x = BroadcastPair(input + r * input_stride + k + 2 * chain);
        for (int p = 0; p < kPanels; ++p) {
          sums[r][p][chain] = _mm512_dpbf16_ps(sums[r][p][chain], weights[p], x);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      _mm512_storeu_ps(output + r * output_stride + p * kPanelColumns,
                       _mm512_add_ps(sums[r][p][0], sums[r][p][1]));
    }
  }
}

template <int kRows>
void MultiplyPanels(const ProductTask& task, const BFloat16* input, float* output) {
  const int64_t depth = task.weight->padded_depth();
  const int64_t stride = task.panels * kPanelColumns;
  constexpr int kPanels = kRows == 1 ? 4 : 2;
  int64_t p = 0;
  for (; p + kPanels <= task.panels; p += kPanels) {
    MultiplyBlock<kRows, kPanels>(input, task.input_stride, depth,
                                  task.weight->panel(task.first_panel + p),
                                  output + p * kPanelColumns, stride);
  }
  for (; p < task.panels; ++p) {
    MultiplyBlock<kRows, 1>(input, task.input_stride, depth,
                            task.weight->panel(task.first_panel + p), output + p * kPanelColumns,
                            stride);
  }
}

}  // namespace

void MultiplyRowsAvx512Bf16(const ProductTask& task) {
  for (int32_t row = 0; row < task.rows;) {
    const int32_t left = task.rows - row;
    const BFloat16* input = task.input + row * task.input_stride;
    float* output = task.output + row * task.panels * kPanelColumns;
    if (left >= 4) {
      MultiplyPanels<4>(task, input, output);
      row += 4;
    } else if (left >= 2) {
      MultiplyPanels<2>(task, input, output);
      row += 2;
    } else {
      MultiplyPanels<1>(task, input, output);
      row += 1;
    }
  }
}

}  // namespace lserve::cpu
