// output[r, :] = epilogue(weight * input[r, :]) for many rows: a matrix product of the input [rows,
// depth] with the packed weight [columns, depth], both with the depth contiguous. A block computes
// 128 rows by 128 columns, its 8 warps 64 by 32 each, 64 elements of the depth at a time, which two
// asynchronous copies ahead bring to shared memory. Which rows there are is read on the device;
// blocks beyond them leave at once.
//
// Operations: 2 rows columns depth. This is the total variant, for every shape.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_common.cuh"
#include "kernels/cuda/loads.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kTileRows = 128;
constexpr int32_t kTileColumns = 128;
constexpr int32_t kTileDepth = 64;
constexpr int32_t kVectors = kTileDepth / 8;  // 16-byte vectors of a row in a tile
constexpr int32_t kStages = 3;
constexpr int32_t kWarpRows = 64;
constexpr int32_t kWarpColumns = 32;
constexpr int32_t kColumnWarps = kTileColumns / kWarpColumns;
constexpr int32_t kRowTiles = kWarpRows / 16;
constexpr int32_t kColumnTiles = kWarpColumns / 8;
constexpr int32_t kGroupTiles = 16;  // tiles of rows that share a weight tile while it is in L2
static_assert(kThreads / kWarpThreads == kTileRows / kWarpRows * kColumnWarps);

// Vector v of a row lies at v ^ (row % 8), so that the eight rows of a tensor core tile lie in
// different banks.
struct Tile {
  uint4 rows[kTileRows][kVectors];
  __device__ uint4* At(int32_t row, int32_t vector) { return &rows[row][vector ^ (row % 8)]; }
};
static_assert(kTileRows == kTileColumns);

struct Stage {
  Tile input;
  Tile weight;
};
constexpr int32_t kSharedBytes = kStages * static_cast<int32_t>(sizeof(Stage));
static_assert(kSharedBytes == 96 * 1024);

// What one block computes.
struct Block {
  int64_t first_row;     // of the batch
  int32_t rows;          // that exist, at most kTileRows
  int32_t first_column;  // packed
};

// Block `index` of the grid: rows first within a group of row tiles, then columns, then groups.
__device__ bool BlockOf(const LinearArguments& arguments, int32_t index, Block& block) {
  const int32_t row_tiles = (arguments.max_rows + kTileRows - 1) / kTileRows;
  const int32_t column_tiles = (arguments.packed_rows + kTileColumns - 1) / kTileColumns;
  const int32_t group = index / (kGroupTiles * column_tiles);
  const int32_t within = index % (kGroupTiles * column_tiles);
  const int32_t group_tiles = min(kGroupTiles, row_tiles - group * kGroupTiles);
  const int32_t row = (group * kGroupTiles + within % group_tiles) * kTileRows;
  const int32_t rows = arguments.counts[kPrefillRows];
  block.first_row = int64_t{arguments.counts[kDecodeRows]} + row;
  block.rows = min(kTileRows, rows - row);
  block.first_column = within / group_tiles * kTileColumns;
  return row < rows;
}

// Elements [k, k + kTileDepth) of the block's rows and columns; zeros beyond what there is.
template <bool kAligned>
__device__ void Load(const LinearArguments& arguments, const Block& block, int32_t k,
                     Stage& stage) {
#pragma unroll
  for (int32_t item = 0; item < kTileRows * kVectors; item += kThreads) {
    const int32_t row = (item + static_cast<int32_t>(threadIdx.x)) / kVectors;
    const int32_t vector = (item + static_cast<int32_t>(threadIdx.x)) % kVectors;
    const int32_t at = k + 8 * vector;
    const __nv_bfloat16* input = arguments.input + (block.first_row + row) * arguments.depth;
    const bool exists = row < block.rows;
    if constexpr (kAligned) {
      const bool valid = exists && at < arguments.depth;
      CopyAsync16OrZero(stage.input.At(row, vector), valid ? input + at : arguments.input, valid);
    } else {
      *stage.input.At(row, vector) =
          exists ? LoadInput<false>(input, at, arguments.depth) : uint4{};
    }
    const int32_t column = block.first_column + row;
    const bool valid = column < arguments.packed_rows && at < arguments.padded_depth;
    const __nv_bfloat16* weight =
        arguments.weight + (valid ? int64_t{column} * arguments.padded_depth + at : 0);
    CopyAsync16OrZero(stage.weight.At(row, vector), weight, valid);
  }
}

using Sums = float[kRowTiles][kColumnTiles][4];

// Adds the product of the stage's tiles to the warp's sums.
__device__ void Multiply(Stage& stage, int32_t warp_row, int32_t warp_column, Sums& sums) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
#pragma unroll
  for (int32_t k = 0; k < kTileDepth / 16; ++k) {
    uint32_t a[kRowTiles][4];
    uint32_t b[kColumnTiles / 2][4];
#pragma unroll
    for (int32_t i = 0; i < kRowTiles; ++i) {
      LoadMatrices(a[i], stage.input.At(warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
    }
#pragma unroll
    for (int32_t j = 0; j < kColumnTiles / 2; ++j) {
      LoadMatrices(b[j], stage.weight.At(warp_column + 16 * j + lane / 16 * 8 + lane % 8,
                                         2 * k + lane / 8 % 2));
    }
#pragma unroll
    for (int32_t i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int32_t j = 0; j < kColumnTiles; ++j) {
        MultiplyAdd(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
                    b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

template <typename Output>
__device__ void Finish(const LinearArguments& arguments, const Block& block, int32_t warp_row,
                       int32_t warp_column, const Sums& sums) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
  const int32_t g = lane / 4;
  const int32_t t = lane % 4;
#pragma unroll
  for (int32_t i = 0; i < 2 * kRowTiles; ++i) {
    const int32_t row = warp_row + 8 * i + g;
    if (row >= block.rows) {
      continue;
    }
    const float(&row_sums)[kColumnTiles][4] = sums[i / 2];
    const int32_t half = i % 2 * 2;
#pragma unroll
    for (int32_t j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t packed = block.first_column + warp_column + 8 * j;
        if (arguments.epilogue != Epilogue::kSiluMul) {
          const int32_t column = packed + 2 * t + e;
          if (column < arguments.columns) {
            FinishOutput<Output>(arguments, block.first_row + row, column, row_sums[j][half + e]);
          }
        } else if (j % 2 == 0) {  // the gate; up is in the next tile
          const int32_t column = packed / 2 + 2 * t + e;
          if (column < arguments.columns) {
            FinishOutput<Output>(arguments, block.first_row + row, column,
                                 Silu(row_sums[j][half + e]) * row_sums[j + 1][half + e]);
          }
        }
      }
    }
  }
}

template <bool kAligned, typename Output>
__global__ void __launch_bounds__(kThreads, 2)
    LinearTilesKernel(const __grid_constant__ LinearArguments arguments) {
  Stage* stages = reinterpret_cast<Stage*>(SharedMemory());
  Block block;
  if (!BlockOf(arguments, static_cast<int32_t>(blockIdx.x), block)) {
    return;
  }
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpThreads;
  const int32_t warp_row = warp / kColumnWarps * kWarpRows;
  const int32_t warp_column = warp % kColumnWarps * kWarpColumns;
  const int32_t depth_tiles = (arguments.padded_depth + kTileDepth - 1) / kTileDepth;

  Sums sums = {};
#pragma unroll
  for (int32_t stage = 0; stage < kStages - 1; ++stage) {
    if (stage < depth_tiles) {
      Load<kAligned>(arguments, block, stage * kTileDepth, stages[stage]);
    }
    CommitCopies();
  }
  for (int32_t tile = 0; tile < depth_tiles; ++tile) {
    // Stage `tile` has come, and every warp is done with the stage that is loaded next.
    WaitCopies<kStages - 2>();
    __syncthreads();
    const int32_t next = tile + kStages - 1;
    if (next < depth_tiles) {
      Load<kAligned>(arguments, block, next * kTileDepth, stages[next % kStages]);
    }
    CommitCopies();
    Multiply(stages[tile % kStages], warp_row, warp_column, sums);
  }
  Finish<Output>(arguments, block, warp_row, warp_column, sums);
}

}  // namespace

void LinearTiles(const LinearArguments& arguments, DType output_dtype, cudaStream_t stream) {
  const int64_t blocks =
      CeilDiv(arguments.max_rows, kTileRows) * CeilDiv(arguments.packed_rows, kTileColumns);
  WithOutput(output_dtype, [&]<typename Output>() {
    const auto kernel = arguments.depth % 8 == 0 ? LinearTilesKernel<true, Output>
                                                 : LinearTilesKernel<false, Output>;
    Launch("linear, tiles", kernel, static_cast<uint32_t>(blocks), kThreads, kSharedBytes, stream,
           arguments);
  });
}

}  // namespace lserve::cuda
