// EmbedRows and AddRmsNorm.
#include <cmath>
#include <cstring>

#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embed_norm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

// residual' = round(residual + addend), stored if `sums` is not null; returns its sum of squares.
float AddAndSquare(const BFloat16* residual, const BFloat16* addend, BFloat16* sums,
                   int64_t hidden) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto squares0 = hn::Zero(df);
  auto squares1 = hn::Zero(df);
  const auto take = [&](int64_t d) HWY_ATTR {
    auto x = LoadBF16(df, residual + d);
    if (addend != nullptr) {
      x = RoundBF16(df, hn::Add(x, LoadBF16(df, addend + d)));
      StoreBF16(df, x, sums + d);
    }
    return x;
  };
  int64_t d = 0;
  for (; d + 2 * lanes <= hidden; d += 2 * lanes) {
    const auto x0 = take(d);
    const auto x1 = take(d + lanes);
    squares0 = hn::MulAdd(x0, x0, squares0);
    squares1 = hn::MulAdd(x1, x1, squares1);
  }
  float total = hn::GetLane(hn::SumOfLanes(df, hn::Add(squares0, squares1)));
  for (; d < hidden; ++d) {
    float x = ToFloat(residual[d]);
    if (addend != nullptr) {
      sums[d] = ToBFloat16(x + ToFloat(addend[d]));
      x = ToFloat(sums[d]);
    }
    total += x * x;
  }
  return total;
}

void ScaleByWeight(const BFloat16* x, const BFloat16* weight, float inverse_rms, BFloat16* output,
                   int64_t hidden) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto scale = hn::Set(df, inverse_rms);
  int64_t d = 0;
  for (; d + lanes <= hidden; d += lanes) {
    const auto normed = hn::Mul(LoadBF16(df, x + d), scale);
    StoreBF16(df, hn::Mul(normed, LoadBF16(df, weight + d)), output + d);
  }
  for (; d < hidden; ++d) {
    output[d] = ToBFloat16(ToFloat(x[d]) * inverse_rms * ToFloat(weight[d]));
  }
}

void AddRmsNormRows(const AddRmsNormParams& params, int64_t begin, int64_t end) {
  const int64_t hidden = params.hidden;
  const bool logits = params.rows == RowSet::kLogits;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = logits ? params.batch.logit_row[i] : i;
    BFloat16* residual = static_cast<BFloat16*>(params.residual) + row * hidden;
    const BFloat16* addend = params.addend == nullptr
                                 ? nullptr
                                 : static_cast<const BFloat16*>(params.addend) + row * hidden;
    BFloat16* output = static_cast<BFloat16*>(params.output) + i * hidden;
    // Logit rows leave the residual alone: their sum waits in the output.
    BFloat16* sums = logits && addend != nullptr ? output : residual;
    const float squares = AddAndSquare(residual, addend, sums, hidden);
    const float inverse_rms =
        1.0f / std::sqrt(squares / static_cast<float>(hidden) + params.epsilon);
    ScaleByWeight(sums, static_cast<const BFloat16*>(params.weight), inverse_rms, output, hidden);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(AddRmsNormRows);

template <typename T>
void ConvertRow(const T* source, BFloat16* destination, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    destination[i] = ToBFloat16(ToFloat(source[i]));
  }
}

}  // namespace

void RunEmbedRows(const EmbedRowsParams& params, Team& team) {
  const ThreadRange range(team, BatchRows(params.batch));
  const int64_t hidden = params.hidden;
  for (int64_t row = range.begin; row < range.end; ++row) {
    int64_t token = params.batch.row_token[row];
    if (token == -1) {
      token = params.last_token[params.batch.row_slot[row]];
    }
    DCHECK(token >= 0 && token < params.vocab_size);
    BFloat16* output = static_cast<BFloat16*>(params.output) + row * hidden;
    const int64_t first = token * hidden;
    switch (params.table_dtype) {
      case DType::kBFloat16:
        std::memcpy(output, static_cast<const BFloat16*>(params.table) + first,
                    static_cast<size_t>(hidden) * sizeof(BFloat16));
        break;
      case DType::kFloat16:
        ConvertRow(static_cast<const Float16*>(params.table) + first, output, params.hidden);
        break;
      default:
        ConvertRow(static_cast<const float*>(params.table) + first, output, params.hidden);
        break;
    }
  }
}

void RunAddRmsNorm(const AddRmsNormParams& params, Team& team) {
  const ThreadRange range(team, RowsOf(params.batch, params.rows));
  HWY_DYNAMIC_DISPATCH(AddRmsNormRows)(params, range.begin, range.end);
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
