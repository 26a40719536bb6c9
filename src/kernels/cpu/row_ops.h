// The operations of the CPU backend that go row by row or page by page, as the team runs them: all
// but the linear layers (linear.h) and attention (attention.h). Definitions: kernels/ops.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

void RunEmbedRows(const EmbedRowsParams& params, Team& team);
void RunAddRmsNorm(const AddRmsNormParams& params, Team& team);
void RunRopeAngles(const RopeAnglesParams& params, Team& team);
void RunRopeAppend(const RopeAppendParams& params, Team& team);
void RunAppendStreaming(const AppendStreamingParams& params, Team& team);
void RunSample(const SampleParams& params, Team& team);
void RunFillNormal(const FillNormalParams& params, Team& team);
void RunCopyPages(const CopyPagesParams& params, Team& team);
void RunExportPage(const TransferPageParams& params, Team& team);
void RunImportPage(const TransferPageParams& params, Team& team);

// The instruction set that Highway chose: "avx512", "avx2", "ssse3".
const char* SimdVariant();

inline int32_t BatchRows(const BatchView& batch) {
  return batch.counts[kDecodeRows] + batch.counts[kPrefillRows];
}

// Rows [0, rows) that an operation works on.
inline int32_t RowsOf(const BatchView& batch, RowSet rows) {
  return rows == RowSet::kLogits ? batch.counts[kLogitRows] : BatchRows(batch);
}

// This thread's part of [0, items): contiguous, the same in every operation of a step, so that a
// row tends to stay in one core's cache.
struct ThreadRange {
  ThreadRange(const Team& team, int64_t items)
      : begin(items * team.thread() / team.threads()),
        end(items * (team.thread() + 1) / team.threads()) {}
  int64_t begin;
  int64_t end;
};

}  // namespace lserve::cpu
