// EmbedRows, AddRmsNorm, RopeAngles and AppendStreaming: operations that go row by row or page by
// page and do nothing but move bytes.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kVector = 8;  // bf16 elements of a 16-byte access

// ---- EmbedRows: a block a row.

template <typename T>
__device__ void CopyRow(const T* source, __nv_bfloat16* output, int32_t count) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    reinterpret_cast<BFloat16*>(output)[i] = ToBFloat16(ToFloat(source[i]));
  }
}

__global__ void __launch_bounds__(kThreads)
    EmbedRowsKernel(const __grid_constant__ EmbedRowsParams params) {
  BeginDependentKernel();
  const int64_t row = blockIdx.x;
  if (row >= BatchRows(params.batch)) {
    return;
  }
  int64_t token = params.batch.row_token[row];
  if (token == -1) {
    token = params.last_token[params.batch.row_slot[row]];
  }
  const int32_t hidden = params.hidden;
  __nv_bfloat16* output = static_cast<__nv_bfloat16*>(params.output) + row * hidden;
  const int64_t first = token * hidden;
  if (params.table_dtype == DType::kFloat16) {
    CopyRow(static_cast<const Float16*>(params.table) + first, output, hidden);
  } else if (params.table_dtype == DType::kFloat32) {
    CopyRow(static_cast<const float*>(params.table) + first, output, hidden);
  } else if (hidden % kVector == 0) {
    const auto* from =
        reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(params.table) + first);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < hidden / kVector; i += kThreads) {
      reinterpret_cast<uint4*>(output)[i] = from[i];
    }
  } else {
    const auto* from = static_cast<const __nv_bfloat16*>(params.table) + first;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < hidden; i += kThreads) {
      output[i] = from[i];
    }
  }
}

// ---- AddRmsNorm: a block a row. Rows of real models stay in registers between the sum of squares
// and the output. Of others the first pass leaves the rounded sum where the second reads it, each
// thread its own elements: in the residual, or for logit rows, which leave it alone, in the output.

constexpr int32_t kHeldThreads = 512;
constexpr int32_t kHeldVectors = 4;  // of a thread
constexpr int32_t kMostHeld = kHeldThreads * kHeldVectors * kVector;

// Rows of a multiple of kVector elements, at most kMostHeld.
__global__ void __launch_bounds__(kHeldThreads)
    AddRmsNormHeldKernel(const __grid_constant__ AddRmsNormParams params) {
  LetNextKernelStart();
  const int64_t index = blockIdx.x;
  const bool logits = params.rows == RowSet::kLogits;
  const bool exists = index < RowsOf(params.batch, params.rows);
  const int64_t row = exists && logits ? params.batch.logit_row[index] : index;
  const int32_t hidden = params.hidden;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  uint4 scales[kHeldVectors];
#pragma unroll
  for (int32_t v = 0; v < kHeldVectors; ++v) {
    const int32_t i = v * kHeldThreads + thread;
    scales[v] = i < hidden / kVector ? static_cast<const uint4*>(params.weight)[i] : uint4{};
  }
  auto* residual = static_cast<__nv_bfloat16*>(params.residual) + row * hidden;
  auto* output = static_cast<__nv_bfloat16*>(params.output) + index * hidden;
  if (exists && thread * kVector < hidden) {  // their addresses are translated then
    PrefetchToL2(residual + thread * kVector);
    PrefetchToL2(output + thread * kVector);
  }
  WaitForEarlierKernels();
  if (!exists) {
    return;
  }
  const __nv_bfloat16* addend =
      params.addend == nullptr ? nullptr
                               : static_cast<const __nv_bfloat16*>(params.addend) + row * hidden;
  float x[kHeldVectors][kVector] = {};
  float squares = 0.0f;
#pragma unroll
  for (int32_t v = 0; v < kHeldVectors; ++v) {
    const int32_t i = v * kHeldThreads + thread;
    if (i < hidden / kVector) {
      Unpack8(reinterpret_cast<const uint4*>(residual)[i], x[v]);
      if (addend != nullptr) {
        float y[kVector];
        Unpack8(reinterpret_cast<const uint4*>(addend)[i], y);
#pragma unroll
        for (int32_t j = 0; j < kVector; ++j) {
          x[v][j] = __bfloat162float(__float2bfloat16_rn(x[v][j] + y[j]));
        }
        if (!logits) {
          reinterpret_cast<uint4*>(residual)[i] = Pack8(x[v]);
        }
      }
#pragma unroll
      for (int32_t j = 0; j < kVector; ++j) {
        squares += x[v][j] * x[v][j];
      }
    }
  }
  const float mean = BlockSum<kHeldThreads>(squares) / static_cast<float>(hidden);
  const float inverse_rms = 1.0f / sqrtf(mean + params.epsilon);
#pragma unroll
  for (int32_t v = 0; v < kHeldVectors; ++v) {
    const int32_t i = v * kHeldThreads + thread;
    if (i < hidden / kVector) {
      float scale[kVector];
      Unpack8(scales[v], scale);
#pragma unroll
      for (int32_t j = 0; j < kVector; ++j) {
        x[v][j] = x[v][j] * inverse_rms * scale[j];
      }
      reinterpret_cast<uint4*>(output)[i] = Pack8(x[v]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    AddRmsNormKernel(const __grid_constant__ AddRmsNormParams params) {
  BeginDependentKernel();
  const int64_t index = blockIdx.x;
  if (index >= RowsOf(params.batch, params.rows)) {
    return;
  }
  const bool logits = params.rows == RowSet::kLogits;
  const int64_t row = logits ? params.batch.logit_row[index] : index;
  const int32_t hidden = params.hidden;
  auto* residual = static_cast<__nv_bfloat16*>(params.residual) + row * hidden;
  auto* output = static_cast<__nv_bfloat16*>(params.output) + index * hidden;
  const auto* weight = static_cast<const __nv_bfloat16*>(params.weight);
  const __nv_bfloat16* addend =
      params.addend == nullptr ? nullptr
                               : static_cast<const __nv_bfloat16*>(params.addend) + row * hidden;
  __nv_bfloat16* sums = logits && addend != nullptr ? output : residual;

  float squares = 0.0f;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < hidden; i += kThreads) {
    float x = __bfloat162float(residual[i]);
    if (addend != nullptr) {
      sums[i] = __float2bfloat16_rn(x + __bfloat162float(addend[i]));
      x = __bfloat162float(sums[i]);
    }
    squares += x * x;
  }
  const float mean = BlockSum<kThreads>(squares) / static_cast<float>(hidden);
  const float inverse_rms = 1.0f / sqrtf(mean + params.epsilon);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < hidden; i += kThreads) {
    output[i] =
        __float2bfloat16_rn(__bfloat162float(sums[i]) * inverse_rms * __bfloat162float(weight[i]));
  }
}

// ---- RopeAngles: a thread an angle.

__global__ void __launch_bounds__(kThreads)
    RopeAnglesKernel(const __grid_constant__ RopeAnglesParams params) {
  BeginDependentKernel();
  const int32_t half = params.head_dim / 2;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = index / half;
  if (row >= BatchRows(params.batch)) {
    return;
  }
  const auto position = static_cast<float>(params.batch.row_position[row]);
  float sine, cosine;
  sincosf(position * params.inverse_frequencies[index % half], &sine, &cosine);
  reinterpret_cast<float2*>(params.angles)[index] = {cosine * params.scale, sine * params.scale};
}

// ---- AppendStreaming: blocks (chunk, place), where places are first the sink pages and then the
// newest ring pages, backwards; each page of a chunk that still matters has one.

__global__ void __launch_bounds__(kThreads)
    AppendStreamingKernel(const __grid_constant__ AppendStreamingParams params) {
  if (static_cast<int32_t>(blockIdx.x) >= params.batch.counts[kChunks]) {
    return;
  }
  const StreamingLane& lane = params.streaming;
  const PrefillChunk chunk = params.batch.chunks[blockIdx.x];
  const int32_t first_page = chunk.first_position / kPageTokens;
  const int32_t last_page = (chunk.first_position + chunk.rows - 1) / kPageTokens;
  const auto place = static_cast<int32_t>(blockIdx.y);
  const bool sink = place < lane.sink_pages;
  const int32_t page = sink ? place : last_page - (place - lane.sink_pages);
  if (page < first_page || page > last_page || (!sink && page < lane.sink_pages)) {
    return;
  }
  const int64_t entries = lane.sink_pages + lane.ring_pages;
  const int64_t id = lane.table[chunk.slot * entries + StreamingRingSlot(lane, page)];
  const int64_t bytes = lane.layout.page_bytes();
  const int64_t index = int64_t{chunk.first_chunk_page} + page - first_page;
  const auto* from = reinterpret_cast<const uint4*>(lane.chunk_pages + index * bytes);
  auto* to = reinterpret_cast<uint4*>(lane.pages + id * bytes);
  for (int64_t i = threadIdx.x; i < bytes / static_cast<int64_t>(sizeof(uint4)); i += kThreads) {
    to[i] = from[i];
  }
}

}  // namespace

cudaError_t KernelsLoad() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, EmbedRowsKernel);
}

void EmbedRows(const EmbedRowsParams& params, cudaStream_t stream) {
  LaunchDependent("embed_rows", EmbedRowsKernel, static_cast<uint32_t>(params.batch.max_rows),
                  kThreads, 0, stream, params);
}

void AddRmsNorm(const AddRmsNormParams& params, cudaStream_t stream) {
  const auto rows = static_cast<uint32_t>(MaxRowsOf(params.batch, params.rows));
  if (rows == 0) {
    return;
  }
  if (params.hidden % kVector == 0 && params.hidden <= kMostHeld) {
    LaunchDependent("add_rms_norm", AddRmsNormHeldKernel, rows, kHeldThreads, 0, stream, params);
    return;
  }
  LaunchDependent("add_rms_norm", AddRmsNormKernel, rows, kThreads, 0, stream, params);
}

void RopeAngles(const RopeAnglesParams& params, cudaStream_t stream) {
  const int64_t angles = int64_t{params.batch.max_rows} * (params.head_dim / 2);
  LaunchDependent("rope_angles", RopeAnglesKernel, static_cast<uint32_t>(CeilDiv(angles, kThreads)),
                  kThreads, 0, stream, params);
}

void AppendStreaming(const AppendStreamingParams& params, cudaStream_t stream) {
  const StreamingLane& lane = params.streaming;
  if (lane.layout.heads == 0 || params.batch.max_chunks == 0) {
    return;
  }
  const dim3 grid(static_cast<uint32_t>(params.batch.max_chunks),
                  static_cast<uint32_t>(lane.sink_pages + lane.ring_pages));
  Launch("append_streaming", AppendStreamingKernel, grid, kThreads, 0, stream, params);
}

}  // namespace lserve::cuda
