// One warp of decode attention (attend_decode.cuh): its ring of asynchronous copies and its online
// softmax over 16-token units of one KV head, for up to 8 queries. Device code.
//
// Scores are K q^T, 16 tokens by up to 8 queries a product, so that a key is read once for its
// group; outputs are V^T P^T, 16 dims by 8 queries, for which P is transposed in registers. Floor:
// bytes of the units read over memory bandwidth; the products are a seventh of that time for bf16.
//
// Codes of boxed pages are multiplied as they are.
// Keys: with w = q (hi - lo) / 2, q k = q lo + 2^(1 - bits) sum w (c + 1/2), in products of float16
// with float32 sums. As for sketch scores (score_units.cu), a query is scaled by a power of two to
// below 1, a weight is then not above 65504, and four bits c at bits 0 or 4 of a half word are the
// subnormal float16 c / 2^24 or 16 c / 2^24 as they lie: one logical operation a register, and a
// sum of its own for either place.
// Values: sum_t p_t v_t = sum_t (p_t scale_t) c_t + sum_t p_t zero_t. Four bits c become the bf16
// number 128 + c by a shift and a logical operation; what the 128 adds is subtracted from the sum.
// Eight bits are two such products, of keys as of values.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/decode_walk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// How the shared memory of a block lies: a ring of stages a warp; records of the warps take their
// place when all units are done. With boxed codes (kBits) the queries follow.
template <int32_t kDim, int32_t kBits>
struct DecodeStages {
  // Of a multiprocessor. Codes are bound by instructions, so that a third block is worth a stage.
  static constexpr int32_t kBlocks = kBits > 0 && kDim <= 128 ? 3 : 2;
  static constexpr int32_t kUnitBytes = kUnitTokens * kDim * 2;
  static constexpr int32_t kStageBytes = 2 * kUnitBytes;  // keys, values; a boxed unit takes less
  static constexpr int32_t kStages = kDim > 128 || (kDim > 96 && kBlocks > 2) ? 2 : 3;
  static constexpr int32_t kWarpBytes = kStages * kStageBytes;
  // [warp][query](maximum, sum), [warp][query][kDim + 4]
  static constexpr int32_t kOutputStride = kDim + 4;
  static constexpr int32_t kMergeBytes =
      kDecodeWarps * kDecodeQueries * (2 + kOutputStride) * static_cast<int32_t>(sizeof(float));
  static constexpr int32_t kRingBytes =
      kDecodeWarps * kWarpBytes > kMergeBytes ? kDecodeWarps* kWarpBytes : kMergeBytes;
  static constexpr int32_t kQueryBytes = kBits > 0 ? kDim / 16 * kWarpLanes * 8 : 0;
  static constexpr int32_t kBytes = kRingBytes + kQueryBytes;
};

// One warp's attention over its units of a segment. kBits: of boxed codes, 0 without them. A padded
// head size below kDim leaves tiles out.
template <int32_t kDim, int32_t kBits>
class DecodeWarp {
 public:
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr bool kExact = kDim <= 128;  // smaller head sizes have an instance of their own
  using Stages = DecodeStages<kDim, kBits>;

  // head: in its lane. Reads nothing but its parameters. shared: the block's.
  __device__ DecodeWarp(const AttendDecodeParams& params, const DecodeShape& shape, bool streams,
                        int32_t head, int32_t position, std::byte* shared)
      : stages_(shared + static_cast<int32_t>(threadIdx.x) / kWarpLanes * Stages::kWarpBytes),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        padded_(shape.padded_head_dim),
        position_(position) {
    const KvPageLayout& layout = streams ? params.streaming.layout : params.retrieval.layout;
    const KvPageLayout full = layout.open();
    full_keys_ = static_cast<int32_t>(full.key_offset(head));
    full_values_ = static_cast<int32_t>(full.value_offset(head));
    if constexpr (kBits > 0) {
      box_ = static_cast<int32_t>(layout.box_offset(head));
      lower_planes_ = static_cast<int32_t>(layout.key_offset(head));
      grids_ = static_cast<int32_t>(layout.value_offset(head));
    }
    sink_ = streams ? params.streaming.sink_tokens : 0;
    local_ = streams ? params.streaming.local_tokens : kUnbounded;
    scale_[0] = scale_[1] = 1.4426950408889634f / sqrtf(static_cast<float>(shape.head_dim));
  }

  // q: [queries, head_dim]. Before the first unit; fetches may have begun. All threads of the
  // block, whose warps share the queries of boxed pages.
  __device__ void TakeQueries(const uint16_t* q, int32_t queries, int32_t head_dim) {
    uint32_t taken[kTiles][2];
    const int32_t query = lane_ / 4;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t d = t * 16 + half * 8 + lane_ % 4 * 2;
        taken[t][half] = query < queries && d < head_dim
                             ? *reinterpret_cast<const uint32_t*>(q + query * head_dim + d)
                             : 0u;
      }
    });
    if constexpr (kBits > 0) {
      ScaleQueries(taken);
      if (threadIdx.x < kWarpLanes) {  // every warp has the same
        ForTiles([&](int32_t t) { *SharedQuery(t) = uint2{taken[t][0], taken[t][1]}; });
      }
      __syncthreads();
    } else {
      ForTiles([&](int32_t t) {
        q_[t][0] = taken[t][0];
        q_[t][1] = taken[t][1];
      });
    }
  }

  // Begins the copies of a unit into stage `stage`, and closes their group; `box`: with that of its
  // page, which the unit before did not bring.
  __device__ void Fetch(UnitPlace place, int32_t stage, bool box) const {
    std::byte* stage_data = stages_ + stage * Stages::kStageBytes;
    ForParts(place, box, [&](const std::byte* from, int32_t to, int32_t bytes) {
#pragma unroll
      for (int32_t first = 0; first < bytes; first += kWarpLanes * 16) {
        const int32_t i = first + lane_ * 16;
        if (i < bytes) {
          CopyAsync16(stage_data + to + i, from + i);
        }
      }
    });
    CommitCopies();
  }

  // Asks for a unit in the second-level cache; of one thread. Compute capability 9.0 and later.
  __device__ void Prefetch(const UnitPlace& place) const {
    ForParts(place, true, [](const std::byte* from, int32_t /*to*/, int32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(from), "r"(bytes));
#endif
    });
  }

  // Takes the unit in `stage` into the softmax.
  __device__ void Attend(UnitPlace place, int32_t stage) {
    std::byte* data = stages_ + stage * Stages::kStageBytes;
    if (kBits == 0 || place.boxed == 0) {
      AttendFull(place.unit * kUnitTokens, data);
    } else {
      AttendBoxed(place, data);
    }
  }

  // The warp's record to shared memory; `warp` counts the block's warps.
  __device__ void Write(int32_t warp, float* merge) {
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      sum_[e] = SumOverLanes<kOverRows>(sum_[e]);
      if constexpr (kBits > 0) {
        shared_part_[e] = SumOverLanes<kOverRows>(shared_part_[e]);
      }
    }
    const int32_t query = lane_ % 4 * 2;
    if (lane_ < 4) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        float* state = merge + (warp * kDecodeQueries + query + e) * 2;
        state[0] = max_[e];
        state[1] = sum_[e];
      }
    }
    float* outputs =
        merge + kDecodeWarps * kDecodeQueries * 2 + warp * kDecodeQueries * Stages::kOutputStride;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t d = t * 16 + lane_ / 4 + i / 2 * 8;
        outputs[(query + i % 2) * Stages::kOutputStride + d] = output_[t][i] + shared_part_[i % 2];
      }
    });
  }

 private:
  __device__ __forceinline__ int32_t padded() const { return kExact ? kDim : padded_; }

  template <typename Visit>
  __device__ __forceinline__ void ForTiles(Visit visit) const {
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      if (kExact || t * 16 < padded()) {
        visit(t);
      }
    }
  }

  // visit(from, to, bytes) for the parts of a unit; to: in its stage.
  template <typename Visit>
  __device__ __forceinline__ void ForParts(UnitPlace place, bool box, Visit visit) const {
    const int32_t in_page = place.unit & (kPageUnits - 1);
    if (kBits == 0 || place.boxed == 0) {
      const int32_t bytes = kUnitTokens * padded() * 2;
      visit(place.page + full_keys_ + in_page * bytes, 0, bytes);
      visit(place.page + full_values_ + in_page * bytes, Stages::kUnitBytes, bytes);
      return;
    }
    const int32_t plane = padded() * 4;  // bytes of a unit's 2-bit codes
    if (box) {
      visit(place.page + box_, 0, plane);
    }
    visit(place.page + box_ + plane + in_page * plane, plane, plane);
#pragma unroll
    for (int32_t p = 1; p < kBits / 2; ++p) {
      visit(place.page + lower_planes_ + ((p - 1) * kPageUnits + in_page) * plane, (1 + p) * plane,
            plane);
    }
    const int32_t codes = kUnitTokens * padded() * kBits / 8;
    const int32_t values = (1 + kBits / 2) * plane;
    visit(place.page + grids_ + kPageTokens * 4 + in_page * codes, values, codes);
    visit(place.page + grids_ + in_page * kUnitTokens * 4, values + codes, kUnitTokens * 4);
  }

  // Whether the row sees the token.
  __device__ bool Sees(int32_t token) const {
    return token <= position_ && (token < sink_ || position_ - token < local_);
  }

  // Makes float16 below 1 of the bf16 queries; scale_ makes up for it.
  __device__ void ScaleQueries(uint32_t (&q)[kTiles][2]) {
    const float up = ScaleToFloat16(q, [this](auto visit) { ForTiles(visit); });
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      scale_[e] *= __shfl_sync(kWholeWarp, up, (lane_ % 4 * 2 + e) * 4);
    }
  }

  // Where the lane's queries of a tile lie, float16, each query scaled to below 1.
  __device__ __forceinline__ uint2* SharedQuery(int32_t t) const {
    return reinterpret_cast<uint2*>(SharedMemory() + Stages::kRingBytes) + t * kWarpLanes + lane_;
  }

  // The queries of a tile in bf16.
  __device__ __forceinline__ uint2 Query(int32_t t) const {
    if constexpr (kBits == 0) {
      return {q_[t][0], q_[t][1]};
    } else {
      const uint2 q = *SharedQuery(t);
      const float2 low = UnpackFloat16(q.x);
      const float2 high = UnpackFloat16(q.y);
      return {PackBf16(low.x, low.y), PackBf16(high.x, high.y)};
    }
  }

  // Scores in powers of two become probabilities relative to the new maximum: p[i] for tokens r, r,
  // r + 8, r + 8 of the unit and queries 2c, 2c + 1. Earlier sums are scaled to it.
  __device__ void Softmax(int32_t first_token, float (&p)[4]) {
    if (first_token + kUnitTokens - 1 > position_ ||
        (first_token + kUnitTokens > sink_ && position_ - first_token >= local_)) {
      const int32_t token = first_token + lane_ / 4;
      if (!Sees(token)) {
        p[0] = p[1] = -INFINITY;
      }
      if (!Sees(token + 8)) {
        p[2] = p[3] = -INFINITY;
      }
    }
    float next[2];
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      next[e] = fmaxf(max_[e], MaxOverLanes<kOverRows>(fmaxf(p[e], p[2 + e])));
    }
    if (__any_sync(kWholeWarp, next[0] > max_[0] || next[1] > max_[1])) {  // else they stand
      float factor[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        factor[e] = Exp2(max_[e] - Finite(next[e]));
        max_[e] = next[e];
        sum_[e] *= factor[e];
        shared_part_[e] *= factor[e];
      }
      ForTiles([&](int32_t t) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          output_[t][i] *= factor[i % 2];
        }
      });
    }
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      const float base = Finite(max_[e]);
      p[e] = Exp2(p[e] - base);
      p[2 + e] = Exp2(p[2 + e] - base);
      sum_[e] += p[e] + p[2 + e];
    }
  }

  // A maximum that may be minus infinity, to subtract from what is not above it.
  static __device__ __forceinline__ float Finite(float highest) {
    return highest == -INFINITY ? 0.0f : highest;
  }

  __device__ void AttendFull(int32_t first_token, std::byte* data) {
    float parts[2][4] = {};  // of even and odd tiles: no product waits for the one before
    ForTiles([&](int32_t t) {
      uint32_t a[4];
      LoadMatrices(a, data + t * 512 + lane_ * 16);
      const uint2 q = Query(t);
      MultiplyAdd(parts[t % 2], a[0], a[1], a[2], a[3], q.x, q.y);
    });
    float p[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      p[i] = (parts[0][i] + parts[1][i]) * scale_[i % 2];
    }
    std::byte* values = data + Stages::kUnitBytes;
    if (first_token + kUnitTokens - 1 > position_) {
      // Memory behind the newest token may hold anything, and 0 x NaN is NaN.
      const int32_t tokens = position_ + 1 - first_token;
      for (int32_t i = lane_; i < padded() * 2; i += kWarpLanes) {  // a token's 8 dims
        if (i % kUnitTokens >= tokens) {
          *reinterpret_cast<uint4*>(values + i * 16) = uint4{0, 0, 0, 0};
        }
      }
      __syncwarp();
    }
    Softmax(first_token, p);
    const uint32_t b0 = Transposed(PackBf16(p[0], p[1]));
    const uint32_t b1 = Transposed(PackBf16(p[2], p[3]));
    ForTiles([&](int32_t t) {
      uint32_t a[4];
      LoadTransposed(a, values + t * 512 + lane_ * 16);
      MultiplyAdd(output_[t], a[0], a[2], a[1], a[3], b0, b1);
    });
  }

  // Four bits at bits 4i and 16 + 4i, as the bf16 numbers 128 + c.
  template <int32_t kPlace>
  static __device__ __forceinline__ uint32_t Plus128(uint32_t codes) {
    return (codes >> 4 * kPlace & 0x000F000Fu) | 0x43004300u;
  }

  // Codes are counted from the middle of their range, so that what bf16 cuts off a weight is cut
  // off as little as it can be; their four bits come 128 too high.
  static constexpr float kMiddle = 0.5f * static_cast<float>((1 << kBits) - 1);
  static constexpr float kExcess = kMiddle + (kBits == 8 ? 16.0f * 128.0f + 128.0f : 128.0f);

  // A code's part of a score, per 2^-24 of a sum and half width: 2^24 2^(1 - bits).
  static constexpr float kCode = 33554432.0f / static_cast<float>(1 << kBits);

  // The weights of the page's channels, and what a score has besides the codes' part. A row of
  // ranges is the same in all rows of A, so that every row of C has the queries' sums.
  __device__ void TakeBox(const std::byte* box) {
    constexpr uint32_t kOnes = 0x3C003C00u;  // float16
    constexpr float kHalfStep = 1.0f / static_cast<float>(1 << kBits);
    float of_lo[4] = {};
    float of_weights[4] = {};
    const __half2 half_of = __float2half2_rn(0.5f);
    ForTiles([&](int32_t t) {
      const uint2 queries = *SharedQuery(t);
      const uint32_t q[2] = {queries.x, queries.y};
      uint32_t lo[2];
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const std::byte* place = box + t * 32 + half * 16 + lane_ % 4 * 4;
        lo[half] = *reinterpret_cast<const uint32_t*>(place);
        const uint32_t hi = *reinterpret_cast<const uint32_t*>(place + 2 * padded());
        // lo and hi may lie further apart than float16 reaches.
        const __half2 width =
            __hfma2(AsHalf2(hi), half_of, __hmul2(AsHalf2(lo[half]), __hneg2(half_of)));
        weights_[t][half] = FromHalf2(__hmul2(AsHalf2(q[half]), width));
      }
      MultiplyAddHalf(of_lo, lo[0], lo[0], lo[1], lo[1], q[0], q[1]);
      MultiplyAddHalf(of_weights, kOnes, kOnes, kOnes, kOnes, weights_[t][0], weights_[t][1]);
    });
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      rest_[e] = (of_lo[e] + of_weights[e] * kHalfStep) * scale_[e];
    }
  }

  __device__ void AttendBoxed(UnitPlace place, const std::byte* data) {
    const int32_t plane = padded() * 4;
    if (place.page != box_page_) {
      TakeBox(data);
      box_page_ = place.page;
    }
    // The upper and lower four bits of a key's code are two planes each.
    constexpr int32_t kParts = kBits == 8 ? 2 : 1;
    float scores[kParts][2][4] = {};
    ForTiles([&](int32_t t) {
      if (t % 2 != 0) {
        return;  // a word has the codes of two tiles
      }
      const std::byte* words = data + plane + t / 2 * (kWarpLanes * 4) + lane_ * 4;
#pragma unroll
      for (int32_t part = 0; part < kParts; ++part) {
        ScoreCodes(scores[part], t, *reinterpret_cast<const uint32_t*>(words + 2 * part * plane),
                   *reinterpret_cast<const uint32_t*>(words + (2 * part + 1) * plane));
      }
    });
    const float per_code[2] = {scale_[0] * kCode, scale_[1] * kCode};
    float p[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      float codes = scores[0][0][i] + 0.0625f * scores[0][1][i];
      if constexpr (kBits == 8) {
        codes = 16.0f * codes + (scores[1][0][i] + 0.0625f * scores[1][1][i]);
      }
      p[i] = codes * per_code[i % 2] + rest_[i % 2];
    }
    Softmax(place.unit * kUnitTokens, p);

    const std::byte* codes = data + (1 + kBits / 2) * plane;
    const std::byte* grids = codes + kUnitTokens * padded() * kBits / 8;
    const float2 grid0 = UnpackFloat16(*reinterpret_cast<const uint32_t*>(grids + lane_ / 4 * 4));
    const float2 grid1 =
        UnpackFloat16(*reinterpret_cast<const uint32_t*>(grids + (lane_ / 4 + 8) * 4));
    const uint32_t scaled0 = PackBf16(p[0] * grid0.y, p[1] * grid0.y);
    const uint32_t scaled1 = PackBf16(p[2] * grid1.y, p[3] * grid1.y);
    const float middle0 = grid0.x + kMiddle * grid0.y;
    const float middle1 = grid1.x + kMiddle * grid1.y;
    shared_part_[0] += p[0] * middle0 + p[2] * middle1;
    shared_part_[1] += p[1] * middle0 + p[3] * middle1;
    shared_part_[0] -= kExcess * (LowBf16(scaled0) + LowBf16(scaled1));
    shared_part_[1] -= kExcess * (HighBf16(scaled0) + HighBf16(scaled1));
    const uint32_t b0 = Transposed(scaled0);
    const uint32_t b1 = Transposed(scaled1);
    const uint32_t upper_b0 = PackBf16(16.0f * LowBf16(b0), 16.0f * HighBf16(b0));
    const uint32_t upper_b1 = PackBf16(16.0f * LowBf16(b1), 16.0f * HighBf16(b1));
    ForTiles([&](int32_t t) {
      if constexpr (kBits == 8) {
        const uint2 word = *reinterpret_cast<const uint2*>(codes + (t * kWarpLanes + lane_) * 8);
        AddCodes(t, word.x, b0, b1);
        AddCodes(t, word.y, upper_b0, upper_b1);
      } else {
        AddCodes(t, *reinterpret_cast<const uint32_t*>(codes + (t * kWarpLanes + lane_) * 4), b0,
                 b1);
      }
    });
  }

  // Adds four bits of tiles t and t + 1, two planes' words with the upper bits first: those that
  // come as c / 2^24 to scores[0], those that come as 16 c / 2^24 to scores[1].
  __device__ __forceinline__ void ScoreCodes(float (&scores)[2][4], int32_t t, uint32_t upper,
                                             uint32_t lower) const {
    constexpr uint32_t kUpper = 0xCCCCCCCCu;
    const uint32_t even = (upper << 2 & kUpper) | (lower & ~kUpper);  // registers 0, 2, ..
    const uint32_t odd = (upper & kUpper) | (lower >> 2 & ~kUpper);   // 1, 3, ..
    const uint32_t next_even = even >> 8;
    const uint32_t next_odd = odd >> 8;
    MultiplyAddHalf(scores[0], even & 0x000F000Fu, odd & 0x000F000Fu, next_even & 0x000F000Fu,
                    next_odd & 0x000F000Fu, weights_[t][0], weights_[t + 1][0]);
    MultiplyAddHalf(scores[1], even & 0x00F000F0u, odd & 0x00F000F0u, next_even & 0x00F000F0u,
                    next_odd & 0x00F000F0u, weights_[t][1], weights_[t + 1][1]);
  }

  __device__ __forceinline__ void AddCodes(int32_t t, uint32_t word, uint32_t b0, uint32_t b1) {
    MultiplyAdd(output_[t], Plus128<0>(word), Plus128<1>(word), Plus128<2>(word), Plus128<3>(word),
                b0, b1);
  }

  std::byte* stages_;
  int32_t lane_;
  int32_t padded_;
  int32_t position_;
  int32_t full_keys_;  // offsets in a page
  int32_t full_values_;
  int32_t box_ = 0;
  int32_t lower_planes_ = 0;
  int32_t grids_ = 0;
  int32_t sink_;
  int32_t local_;
  float scale_[2];         // of scores of queries 2c, 2c + 1, in powers of two
  uint32_t q_[kTiles][2];  // without boxed codes
  // Of the page whose box was taken last.
  const std::byte* box_page_ = nullptr;
  uint32_t weights_[kTiles][2];
  float rest_[2];
  // The softmax so far; queries 2c, 2c + 1.
  float max_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};          // of this lane's tokens
  float shared_part_[2] = {};  // of the output, the same for all dims; of this lane's tokens
  float output_[kTiles][4] = {};
};

}  // namespace lserve::cuda
