// The operations of the CUDA backend: each appends its kernels to a stream and returns.
// Definitions: kernels/ops.h. Grids are sized by a POD's upper bounds; kernels read the counts on
// the device, so that a recorded step can be launched again with other rows. Activations are bf16.
// Used by one thread at a time.
//
// FooWorkspace is the scratch that Foo needs at params.workspace; FooVariant names its kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace lserve::cuda {

// Whether this program has machine code for the current device.
cudaError_t KernelsLoad();

void EmbedRows(const EmbedRowsParams& params, cudaStream_t stream);
void AddRmsNorm(const AddRmsNormParams& params, cudaStream_t stream);
void RopeAngles(const RopeAnglesParams& params, cudaStream_t stream);
void AppendStreaming(const AppendStreamingParams& params, cudaStream_t stream);

void Linear(const LinearParams& params, cudaStream_t stream);
int64_t LinearWorkspace(const LinearParams& params);
const char* LinearVariant(const LinearParams& params);

void Sample(const SampleParams& params, cudaStream_t stream);

void RopeAppend(const RopeAppendParams& params, cudaStream_t stream);
const char* RopeAppendVariant(const RopeAppendParams& params);

// tickets: zeros, and zeros again when it has run; of the stream, at least one more than there are
// rows and retrieval heads.
void SelectUnits(const SelectUnitsParams& params, std::span<int32_t> tickets, cudaStream_t stream);
int64_t SelectUnitsWorkspace(const SelectUnitsParams& params);
const char* SelectUnitsVariant(const SelectUnitsParams& params);

// tickets: zeros, and zeros again when it has run; of the stream, at least one for each row, KV
// head and eight queries of its group.
void AttendDecode(const AttendDecodeParams& params, std::span<int32_t> tickets,
                  cudaStream_t stream);
int64_t AttendDecodeWorkspace(const AttendDecodeParams& params);
const char* AttendDecodeVariant(const AttendDecodeParams& params);

void AttendPrefill(const AttendPrefillParams& params, cudaStream_t stream);
int64_t AttendPrefillWorkspace(const AttendPrefillParams& params);
const char* AttendPrefillVariant(const AttendPrefillParams& params);

void FillNormal(const FillNormalParams& params, cudaStream_t stream);

void CopyPages(const CopyPagesParams& params, cudaStream_t stream);
void ExportPage(const TransferPageParams& params, cudaStream_t stream);
void ImportPage(const TransferPageParams& params, cudaStream_t stream);

}  // namespace lserve::cuda
