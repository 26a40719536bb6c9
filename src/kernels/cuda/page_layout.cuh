// The order of elements inside a page of the CUDA backend (bf16 activations only). Free functions;
// for host and device code.
//
// Everything is made of what a warp's matrix instruction takes. A 16-token unit of keys or values
// in full is a row of 8x8 matrices, each 8 tokens of 16 bytes:
//   [padded head dim / 8][16 tokens][8 dims]
// so that 512 consecutive bytes are one 16x16 tile of m16n8k16, read by ldmatrix without bank
// conflicts (transposed for values), a token's share of a matrix is one 16-byte store, and a unit
// or page is copied to shared memory as it lies. A matrix is also a core matrix of wgmma.
//
// Minima and maxima take 8 dims in turn, four such chunks of a page's 4 logical pages together:
//   chunk j = 2 (dim / 8) + (0: minimum, 1: maximum)
//   [2 padded head dim / 32][4 logical pages][4 chunks][8 dims]
// so that lane 4r + c of a warp reads row r (of 4 pages) and chunk c of a product in 16 bytes.
//
// A plane of 2-bit key codes puts what one lane holds of a 16x32 tile in a word:
//   [unit][padded head dim / 32][32 lanes]
// Lane 4r + c holds tokens r and r + 8 and dims 2c, 2c + 1, 8 + 2c and 9 + 2c of either half of the
// 32. The registers of the tile's two 16x16 fragments are p = 0 to 7; the element in the lower half
// of register p lies at bit 2p, the upper one at bit 16 + 2p. A shift by 2i and a mask give the
// four bytes of register i of the 8-bit fragment (m16n8k32) of the same tile, dims in an order of
// their own.
//
// Codes of boxed values are what one lane holds of the transposed 16x16 tile (dims by tokens), four
// bits an element, register p at bits 4p and 16 + 4p:
//   [unit][padded head dim / 16][32 lanes][int8: lower, upper four bits]
// The box and the grids lie as kv_layout.h has them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/boxed.h"
#include "kernels/kv_layout.h"
#include "kernels/ops.h"

namespace lserve::cuda {

inline constexpr int32_t kUnitTokens = kLogicalPageTokens;
inline constexpr int32_t kPageUnits = kPageTokens / kUnitTokens;
inline constexpr int32_t kMaxHeadDim = 256;

// Index of (token, dim) in the keys or values of one head of a page.
__host__ __device__ constexpr int32_t ElementIndex(int32_t token, int32_t dim, int32_t padded) {
  return token / kUnitTokens * kUnitTokens * padded + dim / 8 * (8 * kUnitTokens) +
         token % kUnitTokens * 8 + dim % 8;
}

// Index of the minimum (side 0) or maximum (side 1) of `dim` in the statistics of one head.
__host__ __device__ constexpr int32_t StatsIndex(int32_t logical_page, int32_t dim, int32_t side) {
  const int32_t chunk = dim / 8 * 2 + side;
  return (chunk / 4 * kPageUnits + logical_page) * 32 + chunk % 4 * 8 + dim % 8;
}

// Where a code lies: a word of its plane, and the lowest bit there.
struct CodePlace {
  int32_t word;
  int32_t shift;
};

__host__ __device__ constexpr CodePlace KeyCodePlace(int32_t token, int32_t dim, int32_t padded) {
  const int32_t lane = token % 8 * 4 + dim % 8 / 2;
  const int32_t reg = token % 16 / 8 + dim % 16 / 8 * 2 + dim % 32 / 16 * 4;
  return {token / kUnitTokens * padded + dim / 32 * 32 + lane, 2 * reg + dim % 2 * 16};
}

// Of the lower four bits of an int8 code; the upper four lie in the word behind it.
__host__ __device__ constexpr CodePlace ValueCodePlace(int32_t token, int32_t dim, int32_t padded,
                                                       int32_t bits) {
  const int32_t lane = dim % 8 * 4 + token % 8 / 2;
  const int32_t reg = dim % 16 / 8 + token % 16 / 8 * 2;
  const int32_t tile = token / kUnitTokens * (padded / 16) + dim / 16;
  return {(tile * 32 + lane) * (bits / 4), 4 * reg + token % 2 * 16};
}

// ---- Where pages lie

__host__ __device__ inline std::byte* OpenPage(const RetrievalLane& lane, int32_t slot) {
  return lane.open + slot * lane.layout.open().page_bytes();
}

__device__ inline std::byte* ClosedPage(const RetrievalLane& lane, int32_t slot, int32_t page) {
  const int64_t id = lane.table[int64_t{slot} * lane.max_pages + page];
  return lane.pages + id * lane.layout.page_bytes();
}

__device__ inline std::byte* RingPage(const StreamingLane& lane, int32_t slot, int32_t page) {
  const int64_t entry =
      int64_t{slot} * (lane.sink_pages + lane.ring_pages) + StreamingRingSlot(lane, page);
  return lane.pages + lane.table[entry] * lane.layout.page_bytes();
}

// Page `page` (absolute in its sequence) of a chunk among the chunk pages of a lane.
__device__ inline std::byte* ChunkPage(std::byte* chunk_pages, int64_t page_bytes,
                                       const PrefillChunk& chunk, int32_t page) {
  const int64_t index = int64_t{chunk.first_chunk_page} + page - chunk.first_position / kPageTokens;
  return chunk_pages + index * page_bytes;
}

}  // namespace lserve::cuda
