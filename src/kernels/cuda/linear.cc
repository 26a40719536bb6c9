// Linear: which kernel computes which rows.
#include "base/check.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/operations.h"

namespace lserve::cuda {
namespace {

const CudaLinear& WeightOf(const LinearParams& params) {
  return static_cast<const CudaLinear&>(*params.weight);
}

bool HasPrefillRows(const LinearParams& params) {
  return params.rows == RowSet::kBatch && params.batch.max_chunks > 0;
}

}  // namespace

void Linear(const LinearParams& params, cudaStream_t stream) {
  const CudaLinear& weight = WeightOf(params);
  CHECK(params.dtype == DType::kBFloat16);
  CHECK_EQ(weight.fused_silu(), params.epilogue == Epilogue::kSiluMul);
  const bool logits = params.rows == RowSet::kLogits;
  const int64_t outputs = weight.out_features();
  LinearArguments arguments{
      .counts = params.batch.counts,
      .input = static_cast<const __nv_bfloat16*>(params.input),
      .weight = static_cast<const __nv_bfloat16*>(weight.data()),
      .bias = static_cast<const __nv_bfloat16*>(params.bias),
      .output = params.output,
      .depth = static_cast<int32_t>(weight.in_features()),
      .padded_depth = weight.padded_depth(),
      .packed_rows = weight.packed_rows(),
      .columns = static_cast<int32_t>(weight.fused_silu() ? outputs / 2 : outputs),
      .max_rows = logits ? params.batch.max_logit_rows : params.batch.max_decode_rows,
      .epilogue = params.epilogue,
      .rows = params.rows,
  };
  if (arguments.max_rows > 0) {
    LinearRows(arguments, params.output_dtype, stream);
  }
  if (HasPrefillRows(params)) {
    arguments.max_rows = params.batch.max_rows;
    LinearTiles(arguments, params.output_dtype, stream);
  }
}

int64_t LinearWorkspace(const LinearParams& /*params*/) { return 0; }

const char* LinearVariant(const LinearParams& params) {
  return HasPrefillRows(params) ? "rows, tiles" : "rows";
}

}  // namespace lserve::cuda
