// Embedding, normalisation and linear layers.
#include "kernels/ref/linear.h"

#include "kernels/ref/operations.h"
#include "kernels/ref/scalar.h"

namespace lserve::ref {
namespace {

// Element `index` of an array of a checkpoint's dtype.
float Load(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kBFloat16: return ToFloat(static_cast<const BFloat16*>(data)[index]);
    case DType::kFloat16: return ToFloat(static_cast<const Float16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

template <typename T, typename Output>
void LinearRow(const RefLinear& weight, Epilogue epilogue, const T* input, const T* bias,
               Output* output) {
  const int64_t n = weight.out_features();
  const int64_t k = weight.in_features();
  const auto product = [&](int64_t row) { return Dot(input, weight.Row<T>(row), k); };
  switch (epilogue) {
    case Epilogue::kNone:
      for (int64_t i = 0; i < n; ++i) {
        output[i] = Store<Output>(product(i));
      }
      break;
    case Epilogue::kBias:
      for (int64_t i = 0; i < n; ++i) {
        output[i] = Store<Output>(product(i) + static_cast<double>(ToFloat(bias[i])));
      }
      break;
    case Epilogue::kResidual:
      for (int64_t i = 0; i < n; ++i) {
        output[i] = Store<Output>(static_cast<double>(ToFloat(output[i])) + product(i));
      }
      break;
    case Epilogue::kSiluMul:
      for (int64_t i = 0; i < n / 2; ++i) {
        output[i] = Store<Output>(Silu(product(i)) * product(n / 2 + i));
      }
      break;
  }
}

}  // namespace

RefLinear::RefLinear(const LinearWeight& weight, DType activations, Buffer memory)
    : PackedLinear(weight.out_features, weight.in_features),
      dtype_(activations),
      data_(std::move(memory)) {
  WithActivations(activations, [&]<typename T>() {
    T* data = data_.As<T>();
    for (int64_t i = 0; i < weight.out_features * weight.in_features; ++i) {
      data[i] = FromFloat<T>(Load(weight.data, weight.dtype, i));
    }
  });
}

void RunEmbedRows(const EmbedRowsParams& params) {
  CheckBatchLists(params.batch);
  WithActivations(params.dtype, [&]<typename T>() {
    T* output = static_cast<T*>(params.output);
    for (int32_t row = 0; row < BatchRows(params.batch); ++row) {
      int32_t token = params.batch.row_token[row];
      if (token == -1) {
        token = params.last_token[params.batch.row_slot[row]];
      }
      DCHECK(token >= 0 && token < params.vocab_size);
      for (int32_t i = 0; i < params.hidden; ++i) {
        output[int64_t{row} * params.hidden + i] = FromFloat<T>(
            Load(params.table, params.table_dtype, int64_t{token} * params.hidden + i));
      }
    }
  });
}

// The sum is rounded to dtype where it becomes the residual; the norm sees the rounded residual.
void RunAddRmsNorm(const AddRmsNormParams& params) {
  const bool logits = params.rows == RowSet::kLogits;
  const int32_t rows = logits ? params.batch.counts[kLogitRows] : BatchRows(params.batch);
  WithActivations(params.dtype, [&]<typename T>() {
    std::vector<double> x(static_cast<size_t>(params.hidden));
    for (int32_t i = 0; i < rows; ++i) {
      const int64_t row = logits ? params.batch.logit_row[i] : i;
      T* residual = static_cast<T*>(params.residual) + row * params.hidden;
      const T* addend = params.addend == nullptr
                            ? nullptr
                            : static_cast<const T*>(params.addend) + row * params.hidden;
      for (size_t d = 0; d < x.size(); ++d) {
        T sum = residual[d];
        if (addend != nullptr) {
          sum = Store<T>(static_cast<double>(ToFloat(residual[d])) +
                         static_cast<double>(ToFloat(addend[d])));
          if (!logits) {
            residual[d] = sum;
          }
        }
        x[d] = static_cast<double>(ToFloat(sum));
      }
      RmsNorm(std::span<double>(x), static_cast<const T*>(params.weight),
              static_cast<double>(params.epsilon));
      T* output = static_cast<T*>(params.output) + int64_t{i} * params.hidden;
      for (size_t d = 0; d < x.size(); ++d) {
        output[d] = Store<T>(x[d]);
      }
    }
  });
}

void RunLinear(const LinearParams& params) {
  if (params.norm.weight != nullptr) {
    RunAddRmsNorm(NormOfInput(params));
    return RunLinear(BehindNorm(params));
  }
  const auto& weight = static_cast<const RefLinear&>(*params.weight);
  CHECK(weight.dtype() == params.dtype);
  const int32_t rows =
      params.rows == RowSet::kLogits ? params.batch.counts[kLogitRows] : BatchRows(params.batch);
  const int64_t columns =
      params.epilogue == Epilogue::kSiluMul ? weight.out_features() / 2 : weight.out_features();
  WithActivations(params.dtype, [&]<typename T>() {
    WithActivations(params.output_dtype, [&]<typename Output>() {
      for (int64_t row = 0; row < rows; ++row) {
        LinearRow(weight, params.epilogue,
                  static_cast<const T*>(params.input) + row * weight.in_features(),
                  static_cast<const T*>(params.bias),
                  static_cast<Output*>(params.output) + row * columns);
      }
    });
  });
}

}  // namespace lserve::ref
