// One warp of decode attention (attend_decode.cuh): its ring of asynchronous copies and its online
// softmax over 16-token units of one KV head, for up to 8 queries. Device code.
//
// Scores are K q^T, 16 tokens by up to 8 queries a product, so that a key is read once for its
// group; outputs are V^T P^T, 16 dims by 8 queries, for which P is transposed in registers. Floor:
// bytes of the units read over memory bandwidth; the products are a seventh of that time for bf16.
//
// Codes of boxed pages are multiplied as they are: q k = q (lo + step / 2) + (q step) c, and
// sum_t p_t v_t = sum_t (p_t scale_t) c_t + sum_t p_t zero_t. Four bits c become the bf16 number
// 16 + c by a shift and a logical operation; what the 16 adds is subtracted from the sum. Eight
// bits are two such products.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/decode_walk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

// How the shared memory of a block lies: a ring of stages a warp; records of the warps take their
// place when all units are done.
template <int32_t kDim>
struct DecodeStages {
  static constexpr int32_t kUnitBytes = kUnitTokens * kDim * 2;
  static constexpr int32_t kStageBytes = 2 * kUnitBytes;  // keys, values; a boxed unit takes less
  static constexpr int32_t kStages = kDim > 128 ? 2 : 3;
  static constexpr int32_t kWarpBytes = kStages * kStageBytes;
  // [warp][query](maximum, sum), [warp][query][kDim + 4]
  static constexpr int32_t kOutputStride = kDim + 4;
  static constexpr int32_t kMergeBytes =
      kDecodeWarps * kDecodeQueries * (2 + kOutputStride) * static_cast<int32_t>(sizeof(float));
  static constexpr int32_t kBytes =
      kDecodeWarps * kWarpBytes > kMergeBytes ? kDecodeWarps* kWarpBytes : kMergeBytes;
};

// One warp's attention over its units of a segment. kBits: of boxed codes, 0 without them. A padded
// head size below kDim leaves tiles out.
template <int32_t kDim, int32_t kBits>
class DecodeWarp {
 public:
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr bool kExact = kDim <= 128;  // smaller head sizes have an instance of their own
  using Stages = DecodeStages<kDim>;

  // head: in its lane. Reads nothing but its parameters.
  __device__ DecodeWarp(const AttendDecodeParams& params, const DecodeShape& shape, bool streams,
                        int32_t head, int32_t position, std::byte* stages)
      : stages_(stages),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        padded_(kExact ? kDim : shape.padded_head_dim),
        position_(position) {
    const KvPageLayout& layout = streams ? params.streaming.layout : params.retrieval.layout;
    const KvPageLayout full = layout.open();
    full_keys_ = full.key_offset(head);
    full_values_ = full.value_offset(head);
    if constexpr (kBits > 0) {
      box_ = layout.box_offset(head);
      lower_planes_ = layout.key_offset(head);
      grids_ = layout.value_offset(head);
    }
    sink_ = streams ? params.streaming.sink_tokens : 0;
    local_ = streams ? params.streaming.local_tokens : kUnbounded;
    scale_ = 1.4426950408889634f / sqrtf(static_cast<float>(shape.head_dim));
  }

  // q: [queries, head_dim]. Before the first unit; fetches may have begun.
  __device__ void TakeQueries(const uint16_t* q, int32_t queries, int32_t head_dim) {
    const int32_t query = lane_ / 4;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t d = t * 16 + half * 8 + lane_ % 4 * 2;
        q_[t][half] = query < queries && d < head_dim
                          ? *reinterpret_cast<const uint32_t*>(q + query * head_dim + d)
                          : 0u;
      }
    });
  }

  // Begins the copies of a unit into stage `stage`, and closes their group; `box`: with that of its
  // page, which the unit before did not bring.
  __device__ void Fetch(const UnitPlace& place, int32_t stage, bool box) const {
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
  __device__ void Attend(const UnitPlace& place, int32_t stage) {
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
  template <typename Visit>
  __device__ __forceinline__ void ForTiles(Visit visit) const {
#pragma unroll
    for (int32_t t = 0; t < kTiles; ++t) {
      if (kExact || t * 16 < padded_) {
        visit(t);
      }
    }
  }

  // visit(from, to, bytes) for the parts of a unit; to: in its stage.
  template <typename Visit>
  __device__ __forceinline__ void ForParts(const UnitPlace& place, bool box, Visit visit) const {
    const int32_t in_page = place.unit % kPageUnits;
    if (kBits == 0 || place.boxed == 0) {
      const int32_t bytes = kUnitTokens * padded_ * 2;
      visit(place.page + full_keys_ + in_page * bytes, 0, bytes);
      visit(place.page + full_values_ + in_page * bytes, Stages::kUnitBytes, bytes);
      return;
    }
    const int32_t plane = padded_ * 4;  // bytes of a unit's 2-bit codes
    if (box) {
      visit(place.page + box_, 0, plane);
    }
    visit(place.page + box_ + plane + in_page * plane, plane, plane);
#pragma unroll
    for (int32_t p = 1; p < kBits / 2; ++p) {
      visit(place.page + lower_planes_ + ((p - 1) * kPageUnits + in_page) * plane, (1 + p) * plane,
            plane);
    }
    const int32_t codes = kUnitTokens * padded_ * kBits / 8;
    const int32_t values = (1 + kBits / 2) * plane;
    visit(place.page + grids_ + kPageTokens * 4 + in_page * codes, values, codes);
    visit(place.page + grids_ + in_page * kUnitTokens * 4, values + codes, kUnitTokens * 4);
  }

  // Whether the row sees the token.
  __device__ bool Sees(int32_t token) const {
    return token <= position_ && (token < sink_ || position_ - token < local_);
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
    float factor[2];
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      const float highest = MaxOverLanes<kOverRows>(fmaxf(p[e], p[2 + e]));
      const float next = fmaxf(max_[e], highest);
      const float base = next == -INFINITY ? 0.0f : next;
      factor[e] = Exp2(max_[e] - base);
      max_[e] = next;
      p[e] = Exp2(p[e] - base);
      p[2 + e] = Exp2(p[2 + e] - base);
      sum_[e] = sum_[e] * factor[e] + (p[e] + p[2 + e]);
      shared_part_[e] *= factor[e];
    }
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        output_[t][i] *= factor[i % 2];
      }
    });
  }

  __device__ void AttendFull(int32_t first_token, std::byte* data) {
    float p[4] = {};
    ForTiles([&](int32_t t) {
      uint32_t a[4];
      LoadMatrices(a, data + t * 512 + lane_ * 16);
      MultiplyAdd(p, a[0], a[1], a[2], a[3], q_[t][0], q_[t][1]);
    });
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      p[i] *= scale_;
    }
    std::byte* values = data + Stages::kUnitBytes;
    if (first_token + kUnitTokens - 1 > position_) {
      // Memory behind the newest token may hold anything, and 0 x NaN is NaN.
      const int32_t tokens = position_ + 1 - first_token;
      for (int32_t i = lane_; i < padded_ * 2; i += kWarpLanes) {  // a token's 8 dims
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

  // Four bits at bits 4i and 16 + 4i, as the bf16 numbers 16 + c.
  template <int32_t kPlace>
  static __device__ __forceinline__ uint32_t SixteenPlus(uint32_t codes) {
    constexpr int32_t kShift = 4 * kPlace - 3;
    const uint32_t placed =
        kShift < 0 ? codes << (kShift < 0 ? -kShift : 0) : codes >> (kShift < 0 ? 0 : kShift);
    return (placed & 0x00780078u) | 0x41804180u;
  }

  // Codes are counted from the middle of their range, so that what bf16 cuts off a weight is cut
  // off as little as it can be; their four bits come 16 too high.
  static constexpr float kMiddle = 0.5f * static_cast<float>((1 << kBits) - 1);
  static constexpr float kExcess = kMiddle + (kBits == 8 ? 16.0f * 16.0f + 16.0f : 16.0f);

  // q step in bf16 for the page's channels, and what a score has besides the codes' part.
  __device__ void TakeBox(const std::byte* box) {
    float rest = 0.0f;
    float weights = 0.0f;
    const float cells = 1.0f / static_cast<float>(1 << kBits);
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t d = t * 16 + half * 8 + lane_ % 4 * 2;
        const float2 lo = UnpackFloat16(*reinterpret_cast<const uint32_t*>(box + d * 2));
        const float2 hi =
            UnpackFloat16(*reinterpret_cast<const uint32_t*>(box + (padded_ + d) * 2));
        const float step0 = (hi.x - lo.x) * cells;
        const float step1 = (hi.y - lo.y) * cells;
        const float q0 = LowBf16(q_[t][half]);
        const float q1 = HighBf16(q_[t][half]);
        rest += q0 * (0.5f * (lo.x + hi.x)) + q1 * (0.5f * (lo.y + hi.y));
        const uint32_t pair = PackBf16(q0 * step0, q1 * step1);
        weights += LowBf16(pair) + HighBf16(pair);
        weights_[t][half] = pair;
      }
    });
    rest = SumOverLanes<kOverColumns>(rest - kExcess * weights);
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      rest_[e] = __shfl_sync(kWholeWarp, rest, (lane_ % 4 * 2 + e) * 4);
    }
  }

  __device__ void AttendBoxed(const UnitPlace& place, const std::byte* data) {
    const int32_t plane = padded_ * 4;
    if (place.page != box_page_) {
      TakeBox(data);
      box_page_ = place.page;
    }
    // The upper and lower four bits of a key's code are two planes each.
    float lower[4] = {};
    float upper[4] = {};
    ForTiles([&](int32_t t) {
      if (t % 2 != 0) {
        return;  // a word has the codes of two tiles
      }
      const std::byte* words = data + plane + t / 2 * (kWarpLanes * 4) + lane_ * 4;
      const auto word = [&](int32_t p) {
        return *reinterpret_cast<const uint32_t*>(words + p * plane);
      };
      if constexpr (kBits == 8) {
        ScoreCodes(upper, t, word(0), word(1));
        ScoreCodes(lower, t, word(2), word(3));
      } else {
        ScoreCodes(lower, t, word(0), word(1));
      }
    });
    float p[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      p[i] = (16.0f * upper[i] + lower[i] + rest_[i % 2]) * scale_;
    }
    Softmax(place.unit * kUnitTokens, p);

    const std::byte* codes = data + (1 + kBits / 2) * plane;
    const std::byte* grids = codes + kUnitTokens * padded_ * kBits / 8;
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

  // Scores of four bits of tiles t and t + 1: two planes' words, the upper bits first.
  __device__ __forceinline__ void ScoreCodes(float (&scores)[4], int32_t t, uint32_t upper,
                                             uint32_t lower) const {
    const uint32_t even = (upper & 0x33333333u) << 2 | (lower & 0x33333333u);  // registers 0, 2, ..
    const uint32_t odd = (upper & 0xCCCCCCCCu) | (lower >> 2 & 0x33333333u);   // 1, 3, ..
    MultiplyAdd(scores, SixteenPlus<0>(even), SixteenPlus<0>(odd), SixteenPlus<1>(even),
                SixteenPlus<1>(odd), weights_[t][0], weights_[t][1]);
    MultiplyAdd(scores, SixteenPlus<2>(even), SixteenPlus<2>(odd), SixteenPlus<3>(even),
                SixteenPlus<3>(odd), weights_[t + 1][0], weights_[t + 1][1]);
  }

  __device__ __forceinline__ void AddCodes(int32_t t, uint32_t word, uint32_t b0, uint32_t b1) {
    MultiplyAdd(output_[t], SixteenPlus<0>(word), SixteenPlus<1>(word), SixteenPlus<2>(word),
                SixteenPlus<3>(word), b0, b1);
  }

  std::byte* stages_;
  int32_t lane_;
  int32_t padded_;
  int32_t position_;
  int64_t full_keys_;
  int64_t full_values_;
  int64_t box_ = 0;
  int64_t lower_planes_ = 0;
  int64_t grids_ = 0;
  int32_t sink_;
  int32_t local_;
  float scale_;
  uint32_t q_[kTiles][2];
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
