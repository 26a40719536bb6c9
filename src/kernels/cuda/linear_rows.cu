// output[r, :] = epilogue(weight * input[r, :]) for few rows: every weight is read once for each 32
// rows, and nothing else matters. A block computes 16 packed rows of the weight; its warps take
// turns along the depth, 32 elements at a time, and add up in shared memory in the order of the
// warps. The weight goes from memory to the registers of the tensor cores as it lies: a lane reads
// 16 bytes of the two rows g and g + 8, and as the order of the depth within a product does not
// matter, its 8 elements serve as its parts of two products of depth 16; the input is read in the
// same order. The first steps of the weight are asked for before the kernels that make the input
// have ended.
//
// Bytes: the weight. Target: the bandwidth of memory.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_common.cuh"
#include "kernels/cuda/loads.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kWarps = 8;
constexpr int32_t kThreads = kWarps * kWarpThreads;
constexpr int32_t kBlockOutputs = 16;  // packed rows of the weight a block computes
constexpr int32_t kTileRows = 8;       // rows of the batch in a tensor core product
constexpr int32_t kStep = 32;          // elements of the depth a warp takes at a time

// kTiles: tiles of batch rows a block computes.
template <int32_t kTiles, bool kAligned, typename Output>
__global__ void __launch_bounds__(kThreads)
    LinearRowsKernel(const __grid_constant__ LinearArguments arguments) {
  // Steps whose loads are under way together.
  constexpr int32_t kUnroll = kTiles < 4 ? 4 : 2;
  __shared__ float partial[kWarps][kTiles][4][kWarpThreads];
  LetNextKernelStart();

  const int32_t rows =
      arguments.counts[arguments.rows == RowSet::kLogits ? kLogitRows : kDecodeRows];
  const auto row_blocks =
      static_cast<uint32_t>((arguments.max_rows + kTiles * kTileRows - 1) / (kTiles * kTileRows));
  const auto first_row = static_cast<int32_t>(blockIdx.x % row_blocks) * kTiles * kTileRows;
  const auto first_output = static_cast<int32_t>(blockIdx.x / row_blocks) * kBlockOutputs;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpThreads;
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
  const int32_t g = lane / 4;
  const int32_t t = lane % 4;

  const __nv_bfloat16* weight =
      arguments.weight + int64_t{first_output + g} * arguments.padded_depth + 8 * t;
  const int64_t eight_rows = int64_t{8} * arguments.padded_depth;
  const int32_t steps = arguments.padded_depth / kStep;
  uint4 low[kUnroll], high[kUnroll];
  const auto load = [&](int32_t first) {
#pragma unroll
    for (int32_t u = 0; u < kUnroll; ++u) {
      const int32_t step = first + u * kWarps;
      if (step < steps) {
        low[u] = LoadOnce(weight + step * kStep);
        high[u] = LoadOnce(weight + eight_rows + step * kStep);
      }
    }
  };
  if (first_row < rows) {
    load(warp);
  }
  WaitForEarlierKernels();
  if (first_row >= rows) {
    return;
  }
  float sums[kTiles][4] = {};
  for (int32_t first = warp; first < steps; first += kWarps * kUnroll) {
    if (first != warp) {
      load(first);
    }
#pragma unroll
    for (int32_t u = 0; u < kUnroll; ++u) {
      const int32_t step = first + u * kWarps;
      if (step >= steps) {
        break;
      }
#pragma unroll
      for (int32_t tile = 0; tile < kTiles; ++tile) {
        const int32_t row = first_row + tile * kTileRows + g;
        uint4 x{};
        if (row < rows) {
          x = LoadInput<kAligned>(arguments.input + int64_t{row} * arguments.depth,
                                  step * kStep + 8 * t, arguments.depth);
        }
        MultiplyAdd(sums[tile], low[u].x, high[u].x, low[u].y, high[u].y, x.x, x.y);
        MultiplyAdd(sums[tile], low[u].z, high[u].z, low[u].w, high[u].w, x.z, x.w);
      }
    }
  }

#pragma unroll
  for (int32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      partial[warp][tile][i][lane] = sums[tile][i];
    }
  }
  __syncthreads();
  // A thread finishes outputs g and g + 8 of one row: under SiLU, gate and up.
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < kTiles * 2 * kWarpThreads;
       item += kThreads) {
    const int32_t tile = item / (2 * kWarpThreads);
    const int32_t i = item / kWarpThreads % 2;
    const int32_t row = first_row + tile * kTileRows + 2 * t + i;
    if (row >= rows) {
      continue;
    }
    float upper = 0.0f;
    float lower = 0.0f;
#pragma unroll
    for (int32_t w = 0; w < kWarps; ++w) {
      upper += partial[w][tile][i][lane];
      lower += partial[w][tile][i + 2][lane];
    }
    if (arguments.epilogue == Epilogue::kSiluMul) {
      const int32_t column = first_output / 2 + g;
      if (column < arguments.columns) {
        FinishOutput<Output>(arguments, row, column, Silu(upper) * lower);
      }
      continue;
    }
    if (first_output + g < arguments.columns) {
      FinishOutput<Output>(arguments, row, first_output + g, upper);
    }
    if (first_output + g + 8 < arguments.columns) {
      FinishOutput<Output>(arguments, row, first_output + g + 8, lower);
    }
  }
}

template <int32_t kTiles, typename Output>
void Run(const LinearArguments& arguments, cudaStream_t stream) {
  const int64_t blocks =
      CeilDiv(arguments.max_rows, kTiles * kTileRows) * (arguments.packed_rows / kBlockOutputs);
  const auto kernel = arguments.depth % 8 == 0 ? LinearRowsKernel<kTiles, true, Output>
                                               : LinearRowsKernel<kTiles, false, Output>;
  LaunchDependent("linear, rows", kernel, static_cast<uint32_t>(blocks), kThreads, 0, stream,
                  arguments);
}

}  // namespace

void LinearRows(const LinearArguments& arguments, DType output_dtype, cudaStream_t stream) {
  WithOutput(output_dtype, [&]<typename Output>() {
    if (arguments.max_rows <= kTileRows) {
      Run<1, Output>(arguments, stream);
    } else if (arguments.max_rows <= 2 * kTileRows) {
      Run<2, Output>(arguments, stream);
    } else {
      Run<4, Output>(arguments, stream);
    }
  });
}

}  // namespace lserve::cuda
