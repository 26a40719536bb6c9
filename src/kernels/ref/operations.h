// The operations of the `ref` backend, run at once on the calling thread. Definitions:
// kernels/ops.h.
#pragma once

#include "base/check.h"
#include "kernels/ops.h"

namespace lserve::ref {

void RunEmbedRows(const EmbedRowsParams& params);
void RunAddRmsNorm(const AddRmsNormParams& params);
void RunLinear(const LinearParams& params);
void RunRopeAngles(const RopeAnglesParams& params);
void RunRopeAppend(const RopeAppendParams& params);
void RunAppendStreaming(const AppendStreamingParams& params);
void RunSelectUnits(const SelectUnitsParams& params);
void RunAttendDecode(const AttendDecodeParams& params);
void RunAttendPrefill(const AttendPrefillParams& params);
void RunSample(const SampleParams& params);
void RunFillNormal(const FillNormalParams& params);
void RunCopyPages(const CopyPagesParams& params);
void RunExportPage(const TransferPageParams& params);
void RunImportPage(const TransferPageParams& params);

// Calls function.operator()<T>() with T the type of activations of `dtype`; the cache holds the
// same type.
template <typename Function>
void WithActivations(DType dtype, Function function) {
  if (dtype == DType::kFloat32) {
    function.template operator()<float>();
  } else {
    CHECK_MSG(dtype == DType::kBFloat16, "activations of {}", DTypeName(dtype));
    function.template operator()<BFloat16>();
  }
}

inline int32_t BatchRows(const BatchView& batch) {
  return batch.counts[kDecodeRows] + batch.counts[kPrefillRows];
}

// Debug builds: the device lists are in range, and a sequence has at most one decode row or one
// chunk in a step.
void CheckBatchLists(const BatchView& batch);

}  // namespace lserve::ref
