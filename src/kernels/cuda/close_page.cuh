// How a full page closes: the box and codes of its keys, the grids and codes of its values. Run by
// all threads of a block, for one KV head; device code only. The bits are those of every backend
// (boxed.h, sketch.h).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// What the threads of a block share while a page closes.
struct ClosePageShared {
  float lo[kMaxHeadDim];
  float step[kMaxHeadDim];
  ValueGrid grids[kPageTokens];
};

// The bits of eight 16-bit elements.
union EightElements {
  uint4 packed;
  uint16_t bits[8];
};

__device__ inline float Bf16(uint16_t bits) { return ToFloat(BFloat16{bits}); }

// 16-byte pieces, all threads of the block; the ranges do not overlap. Several loads are under way
// before the first store, as the compiler, which cannot know that, would not have it.
__device__ inline void CopyBytes(const std::byte* from, std::byte* to, int64_t bytes) {
  constexpr int32_t kAtATime = 8;
  const auto* source = reinterpret_cast<const uint4*>(from);
  auto* destination = reinterpret_cast<uint4*>(to);
  const int64_t pieces = bytes / 16;
  for (int64_t first = threadIdx.x; first < pieces; first += kAtATime * int64_t{blockDim.x}) {
    uint4 some[kAtATime];
#pragma unroll
    for (int32_t i = 0; i < kAtATime; ++i) {
      const int64_t piece = first + i * int64_t{blockDim.x};
      some[i] = piece < pieces ? source[piece] : uint4{};
    }
#pragma unroll
    for (int32_t i = 0; i < kAtATime; ++i) {
      const int64_t piece = first + i * int64_t{blockDim.x};
      if (piece < pieces) {
        destination[piece] = some[i];
      }
    }
  }
}

// One head of a page in full: keys, values, minima and maxima. The page at `to` may have a sketch
// behind, which stays what it is.
__device__ inline void CopyHead(const std::byte* from, std::byte* to, const KvPageLayout& layout,
                                int32_t head) {
  CopyBytes(from + layout.key_offset(head), to + layout.key_offset(head), layout.plane_bytes());
  CopyBytes(from + layout.value_offset(head), to + layout.value_offset(head), layout.plane_bytes());
  CopyBytes(from + layout.stats_offset(head), to + layout.stats_offset(head),
            layout.min_max_bytes());
}

// keys: 64 tokens in full. Ends with the threads apart.
__device__ inline void WriteKeyCodes(const KvPageLayout& layout, int32_t head, const uint16_t* keys,
                                     std::byte* closed, ClosePageShared& shared) {
  const int32_t padded = layout.padded_head_dim;
  const int32_t bits = layout.key_bits();
  auto* box = reinterpret_cast<Float16*>(closed + layout.box_offset(head));
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < padded;
       d += static_cast<int32_t>(blockDim.x)) {
    float lowest = Bf16(keys[ElementIndex(0, d, padded)]);
    float highest = lowest;
#pragma unroll 21
    for (int32_t token = 1; token < kPageTokens; ++token) {
      const float key = Bf16(keys[ElementIndex(token, d, padded)]);
      lowest = key < lowest ? key : lowest;
      highest = key > highest ? key : highest;
    }
    const Float16 lo = RoundDownToFloat16(lowest);
    const Float16 hi = RoundUpToFloat16(highest);
    box[d] = lo;
    box[padded + d] = hi;
    shared.lo[d] = ToFloat(lo);
    shared.step[d] = KeyStep(ToFloat(lo), ToFloat(hi), bits);
  }
  __syncthreads();
  // A word of every plane a turn: 16 codes each.
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < kPageUnits * padded;
       word += static_cast<int32_t>(blockDim.x)) {
    const int32_t lane = word % kWarpLanes;
    const int32_t first_token = word / padded * kUnitTokens + lane / 4;
    const int32_t first_dim = word % padded / kWarpLanes * kWarpLanes + lane % 4 * 2;
    uint32_t planes[4] = {};
#pragma unroll
    for (int32_t reg = 0; reg < 8; ++reg) {
      const int32_t token = first_token + reg % 2 * 8;
      const int32_t dim = first_dim + reg / 2 % 2 * 8 + reg / 4 * 16;
      const uint32_t pair =
          *reinterpret_cast<const uint32_t*>(keys + ElementIndex(token, dim, padded));
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const float key = e == 0 ? LowBf16(pair) : HighBf16(pair);
        const auto code =
            static_cast<uint32_t>(KeyCode(key, shared.lo[dim + e], shared.step[dim + e], bits));
#pragma unroll
        for (int32_t plane = 0; plane < 4; ++plane) {
          if (2 * (plane + 1) <= bits) {
            planes[plane] |= (code >> (bits - 2 * (plane + 1)) & 3u) << (2 * reg + 16 * e);
          }
        }
      }
    }
#pragma unroll
    for (int32_t plane = 0; plane < 4; ++plane) {
      if (2 * (plane + 1) <= bits) {
        reinterpret_cast<uint32_t*>(closed + layout.codes_offset(head, plane))[word] =
            planes[plane];
      }
    }
  }
}

// values: 64 tokens in full; the padding is coded, but does not widen a grid. Ends with the threads
// apart.
__device__ inline void WriteValueCodes(const KvPageLayout& layout, int32_t head,
                                       const uint16_t* values, std::byte* closed,
                                       ClosePageShared& shared) {
  const int32_t padded = layout.padded_head_dim;
  const int32_t bits = layout.value_bits();
  auto* grids = reinterpret_cast<ValueGrid*>(closed + layout.value_offset(head));
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < kPageTokens;
       token += static_cast<int32_t>(blockDim.x)) {
    float lowest = Bf16(values[ElementIndex(token, 0, padded)]);
    float highest = lowest;
    for (int32_t first = 0; first < layout.head_dim; first += 8) {
      EightElements eight;
      eight.packed = *reinterpret_cast<const uint4*>(values + ElementIndex(token, first, padded));
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) {
        const float value = Bf16(eight.bits[i]);
        const bool real = first + i < layout.head_dim;
        lowest = real && value < lowest ? value : lowest;
        highest = real && value > highest ? value : highest;
      }
    }
    const ValueGrid grid = GridOf(lowest, highest, bits);
    grids[token] = grid;
    shared.grids[token] = grid;
  }
  __syncthreads();
  auto* codes = reinterpret_cast<uint32_t*>(closed + layout.value_codes_offset(head));
  const int32_t unit_words = padded / 16 * kWarpLanes;  // of four bits
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < kPageUnits * unit_words;
       word += static_cast<int32_t>(blockDim.x)) {
    const int32_t lane = word % kWarpLanes;
    const int32_t first_dim = word % unit_words / kWarpLanes * 16 + lane / 4;
    const int32_t first_token = word / unit_words * kUnitTokens + lane % 4 * 2;
    uint32_t lower = 0;
    uint32_t upper = 0;
#pragma unroll
    for (int32_t reg = 0; reg < 4; ++reg) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t token = first_token + reg / 2 * 8 + e;
        const int32_t dim = first_dim + reg % 2 * 8;
        const float value = Bf16(values[ElementIndex(token, dim, padded)]);
        const auto code = static_cast<uint32_t>(ValueCode(value, shared.grids[token], bits));
        lower |= (code & 15u) << (4 * reg + 16 * e);
        upper |= (code >> 4) << (4 * reg + 16 * e);
      }
    }
    if (bits == 8) {
      codes[2 * word] = lower;
      codes[2 * word + 1] = upper;
    } else {
      codes[word] = lower;
    }
  }
}

// Makes one head of a page of the pool from its 64 tokens in full, which may stand in that very
// page if its format is not boxed. Begins and ends with a barrier.
__device__ inline void ClosePage(const KvPageLayout& layout, int32_t head, const std::byte* full,
                                 std::byte* closed, ClosePageShared& shared) {
  __syncthreads();
  const KvPageLayout open = layout.open();
  const auto* keys = reinterpret_cast<const uint16_t*>(full + open.key_offset(head));
  if (layout.boxed()) {
    const auto* values = reinterpret_cast<const uint16_t*>(full + open.value_offset(head));
    WriteValueCodes(layout, head, values, closed, shared);
    CopyBytes(full + open.stats_offset(head), closed + layout.stats_offset(head),
              layout.min_max_bytes());
  } else if (full != closed) {
    CopyHead(full, closed, open, head);
  }
  if (layout.sketch_bytes() > 0) {
    WriteKeyCodes(layout, head, keys, closed, shared);
  }
  __syncthreads();
}

}  // namespace lserve::cuda
