// What follows a product while its sums are in cache: bias, residual or silu-mul, one rounding.
#include <algorithm>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_epilogue.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

using DF = hn::CappedTag<float, kPanelColumns>;
using VF = hn::Vec<DF>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(DF()));

HWY_INLINE VF LoadAs(DF df, const float* p) { return hn::LoadU(df, p); }
HWY_INLINE VF LoadAs(DF df, const BFloat16* p) { return LoadBF16(df, p); }
HWY_INLINE void StoreAs(DF df, VF v, float* p) { hn::StoreU(v, df, p); }
HWY_INLINE void StoreAs(DF df, VF v, BFloat16* p) { StoreBF16(df, v, p); }

// 1 / (1 + e^-x), to about 1e-6: e^-x = 2^n 2^f with |f| <= 1/2, and 2^f by its Taylor polynomial
// of degree 6.
HWY_INLINE VF Sigmoid(DF df, VF x) {
  const hn::Rebind<int32_t, DF> di32;
  const auto limit = hn::Set(df, 87.0f);  // 2^n stays finite; the sigmoid is 0 or 1 to float32
  const auto clamped = hn::Max(hn::Min(x, limit), hn::Neg(limit));
  const auto exponent = hn::Mul(clamped, hn::Set(df, -1.44269504f));
  const auto n = hn::NearestInt(exponent);
  const auto f = hn::Sub(exponent, hn::ConvertTo(df, n));
  auto power = hn::Set(df, 1.5403530e-4f);
  power = hn::MulAdd(power, f, hn::Set(df, 1.3333558e-3f));
  power = hn::MulAdd(power, f, hn::Set(df, 9.6181291e-3f));
  power = hn::MulAdd(power, f, hn::Set(df, 5.5504109e-2f));
  power = hn::MulAdd(power, f, hn::Set(df, 2.4022651e-1f));
  power = hn::MulAdd(power, f, hn::Set(df, 6.9314718e-1f));
  power = hn::MulAdd(power, f, hn::Set(df, 1.0f));
  const auto scale = hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di32, 127))));
  const auto divisor = hn::MulAdd(power, scale, hn::Set(df, 1.0f));
  const auto guess = hn::ApproximateReciprocal(divisor);  // then one Newton step
  return hn::Mul(guess, hn::NegMulAdd(guess, divisor, hn::Set(df, 2.0f)));
}

// Finishes columns [column, column + count) of a row, count <= 16, from 16 sums.
template <Epilogue kEpilogue, typename Output>
HWY_INLINE void FinishColumns(const float* sums, const BFloat16* bias, int64_t count,
                              Output* output) {
  const DF df;
  const auto finish = [&](const float* from, const BFloat16* bias_from, Output* to) HWY_ATTR {
    for (int64_t c = 0; c < kPanelColumns; c += kLanes) {
      auto v = hn::LoadU(df, from + c);
      if constexpr (kEpilogue == Epilogue::kBias) {
        v = hn::Add(v, LoadBF16(df, bias_from + c));
      } else if constexpr (kEpilogue == Epilogue::kResidual) {
        v = hn::Add(v, LoadAs(df, to + c));
      } else if constexpr (kEpilogue == Epilogue::kSiluMul) {
        const auto up = hn::LoadU(df, from + kPanelColumns + c);
        v = hn::Mul(hn::Mul(v, Sigmoid(df, v)), up);
      }
      StoreAs(df, v, to + c);
    }
  };
  if (count == kPanelColumns) {
    finish(sums, bias, output);
    return;
  }
  Output padded[kPanelColumns] = {};
  BFloat16 padded_bias[kPanelColumns] = {};
  std::copy_n(output, count, padded);
  if constexpr (kEpilogue == Epilogue::kBias) {
    std::copy_n(bias, count, padded_bias);
  }
  finish(sums, padded_bias, padded);
  std::copy_n(padded, count, output);
}

template <Epilogue kEpilogue, typename Output>
void FinishAs(const EpilogueTask& task) {
  const LinearParams& params = *task.params;
  constexpr int64_t kPanelsPerBlock = kEpilogue == Epilogue::kSiluMul ? 2 : 1;
  const int64_t columns = params.weight->out_features() / kPanelsPerBlock;
  const int64_t first_column = task.first_panel / kPanelsPerBlock * kPanelColumns;
  const int64_t end_column =
      std::min(columns, first_column + task.panels / kPanelsPerBlock * kPanelColumns);
  const auto* bias = static_cast<const BFloat16*>(params.bias);
  for (int32_t r = 0; r < task.rows; ++r) {
    const float* sums = task.sums + r * task.panels * kPanelColumns;
    Output* output = static_cast<Output*>(params.output) + (task.first_row + r) * columns;
    for (int64_t column = first_column; column < end_column; column += kPanelColumns) {
      const int64_t count = std::min<int64_t>(kPanelColumns, end_column - column);
      FinishColumns<kEpilogue>(sums, bias == nullptr ? nullptr : bias + column, count,
                               output + column);
      sums += kPanelsPerBlock * kPanelColumns;
    }
  }
}

template <typename Output>
void FinishTo(const EpilogueTask& task) {
  switch (task.params->epilogue) {
    case Epilogue::kNone: return FinishAs<Epilogue::kNone, Output>(task);
    case Epilogue::kBias: return FinishAs<Epilogue::kBias, Output>(task);
    case Epilogue::kResidual: return FinishAs<Epilogue::kResidual, Output>(task);
    case Epilogue::kSiluMul: return FinishAs<Epilogue::kSiluMul, Output>(task);
  }
}

void Finish(const EpilogueTask& task) {
  if (task.params->output_dtype == DType::kFloat32) {
    FinishTo<float>(task);
  } else {
    FinishTo<BFloat16>(task);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(Finish);

}  // namespace

void FinishLinear(const EpilogueTask& task) { HWY_DYNAMIC_DISPATCH(Finish)(task); }

}  // namespace lserve::cpu
#endif  // HWY_ONCE
