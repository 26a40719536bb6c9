// Linear: which kernel computes which rows. Decode and logit rows have one kernel; prefill rows
// have cuBLASLt where a step has room for many, and tiles of our own for every shape. A library
// takes the number of rows from the host, so it computes all that there can be; what it leaves in
// the decode rows is put right behind it. It rounds a product to bf16 before a residual or SiLU
// gets it, as ops.h allows.
#include "base/check.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/operations.h"

namespace lserve::cuda {
namespace {

// Below this many rows the product is not worth the rows that are computed for nothing.
constexpr int32_t kCublasLtRows = 256;

const CudaLinear& WeightOf(const LinearParams& params) {
  return static_cast<const CudaLinear&>(*params.weight);
}

bool HasPrefillRows(const LinearParams& params) {
  return params.rows == RowSet::kBatch && params.batch.max_chunks > 0;
}

int64_t Columns(const LinearParams& params) {
  const int64_t outputs = params.weight->out_features();
  return params.epilogue == Epilogue::kSiluMul ? outputs / 2 : outputs;
}

bool UsesCublasLt(const LinearParams& params) {
  const bool fuses = params.epilogue == Epilogue::kNone || params.epilogue == Epilogue::kResidual ||
                     params.output_dtype == DType::kBFloat16;
  return HasPrefillRows(params) && params.batch.max_rows >= kCublasLtRows && fuses &&
         params.weight->in_features() % 8 == 0 && Columns(params) % 8 == 0 && HasCublasLt();
}

// Behind the library's workspace: the sums of gate and up, or the decode rows' residual.
int64_t ScratchBytes(const LinearParams& params) {
  switch (params.epilogue) {
    case Epilogue::kSiluMul:
      return int64_t{params.batch.max_rows} * WeightOf(params).packed_rows() *
             static_cast<int64_t>(sizeof(BFloat16));
    case Epilogue::kResidual:
      return params.batch.max_decode_rows * Columns(params) * DTypeBytes(params.output_dtype);
    default: return 0;
  }
}

// Leaves the decode rows of a residual as they were, those of other outputs anyhow.
void PrefillRowsByCublasLt(const LinearParams& params, const LinearArguments& arguments,
                           cudaStream_t stream) {
  const bool silu = params.epilogue == Epilogue::kSiluMul;
  const bool residual = params.epilogue == Epilogue::kResidual;
  void* scratch = static_cast<std::byte*>(params.workspace) + kCublasLtWorkspace;
  const int64_t row_bytes = Columns(params) * DTypeBytes(params.output_dtype);
  if (residual) {
    CopyDecodeRows(params.batch, params.output, scratch, row_bytes, stream);
  }
  MultiplyByCublasLt({.rows = params.batch.max_rows,
                      .columns = silu ? arguments.packed_rows : arguments.columns,
                      .depth = arguments.depth,
                      .weight_stride = arguments.padded_depth,
                      .input = params.input,
                      .weight = arguments.weight,
                      .bias = params.bias,
                      .accumulate = residual,
                      .output = silu ? scratch : params.output,
                      .output_dtype = params.output_dtype,
                      .workspace = params.workspace},
                     stream);
  if (residual) {
    CopyDecodeRows(params.batch, scratch, params.output, row_bytes, stream);
  } else if (silu) {
    LinearSiluMul(arguments, scratch, stream);
  }
}

}  // namespace

void Linear(const LinearParams& params, cudaStream_t stream) {
  const CudaLinear& weight = WeightOf(params);
  const bool logits = params.rows == RowSet::kLogits;
  const int32_t few_rows = logits ? params.batch.max_logit_rows : params.batch.max_decode_rows;
  const auto depth = static_cast<int32_t>(weight.in_features());
  const bool norm = params.norm.weight != nullptr;
  if (norm && (HasPrefillRows(params) || !NormalisesItsRow(few_rows, depth))) {
    AddRmsNorm(NormOfInput(params), stream);
    return Linear(BehindNorm(params), stream);
  }
  CHECK(params.dtype == DType::kBFloat16);
  CHECK_EQ(weight.fused_silu(), params.epilogue == Epilogue::kSiluMul);
  LinearArguments arguments{
      .counts = params.batch.counts,
      .input = static_cast<const __nv_bfloat16*>(params.input),
      .weight = static_cast<const __nv_bfloat16*>(weight.data()),
      .bias = static_cast<const __nv_bfloat16*>(params.bias),
      .output = params.output,
      .depth = depth,
      .padded_depth = weight.padded_depth(),
      .packed_rows = weight.packed_rows(),
      .columns = static_cast<int32_t>(Columns(params)),
      .max_rows = params.batch.max_rows,
      .epilogue = params.epilogue,
      .rows = params.rows,
      .norm_weight = static_cast<const __nv_bfloat16*>(params.norm.weight),
      .logit_row = logits && norm ? params.batch.logit_row : nullptr,
      .norm_epsilon = params.norm.epsilon,
  };
  if (UsesCublasLt(params)) {
    PrefillRowsByCublasLt(params, arguments, stream);
  } else if (HasPrefillRows(params)) {
    LinearTiles(arguments, params.output_dtype, stream);
  }
  arguments.max_rows = few_rows;
  if (arguments.max_rows > 0) {
    LinearRows(arguments, params.output_dtype, stream);
  }
}

int64_t LinearWorkspace(const LinearParams& params) {
  return UsesCublasLt(params) ? kCublasLtWorkspace + ScratchBytes(params) : 0;
}

const char* LinearVariant(const LinearParams& params) {
  return UsesCublasLt(params) ? "rows, cublaslt" : HasPrefillRows(params) ? "rows, tiles" : "rows";
}

}  // namespace lserve::cuda
