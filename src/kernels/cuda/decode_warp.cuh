// One warp of decode attention (attend_decode.cuh): its ring of asynchronous copies and its online
// softmax over 16-token units of one KV head, for up to 8 queries. Device code.
//
// Scores are K q^T, 16 tokens by up to 8 queries a product, so that a key is read once for its
// group; outputs are V^T P^T, 16 dims by 8 queries, for which P is transposed in registers. Floor:
// bytes of the units read over memory bandwidth; the products are a seventh of that time for bf16.
//
// Codes of boxed pages are multiplied as they lie: a small number in the low bits of a half word is
// a subnormal float16 c / 2^24 up to 2^11, or bf16 c / 2^133 up to 2^8 (the first normal numbers go
// on in the same steps), and tensor cores take subnormals as they are.
// Keys: with w = q (hi - lo) / 2, q k = q lo + 2^(1 - bits) sum w (c + 1/2), in products of float16
// with float32 sums. As for sketch scores (score_units.cu), a query is scaled by a power of two to
// below 1, a weight is then not above 65504. Four bits are taken from bits 0 or 4 of a half word,
// with a sum of its own for either place; eight bits are put together from the planes first.
// Values: sum_t p_t v_t = sum_t (p_t scale_t) c_t + sum_t p_t zero_t. Weights p_t scale_t are bf16
// times 2^100, below 2^124, so that products with codes are float32 numbers far from either end of
// its range. Of a half word's low byte with four bits of each of two dims the sum of the whole byte
// and that of its upper half are kept, and FinishCodes takes them apart: the sum of the whole is at
// most 17 times the larger of its parts, and float32 has bits enough.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

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
  static constexpr int32_t kStageBytes = 2 * kUnitBytes;  // keys, values
  static constexpr int32_t kStages = kDim > 128 || (kDim > 96 && kBlocks > 2) ? 2 : 3;
  static constexpr int32_t kWarpBytes = kStages * kStageBytes;
  // The same room takes more units of codes: a box, codes of keys and of values, grids. Units in
  // full follow those; the last stage is free for the first of them while kBesideFull remain.
  static constexpr int32_t kBoxedBytes =
      (kDim * (4 + 4 * kBits) + kUnitTokens * 4 + 127) / 128 * 128;
  static constexpr int32_t kBoxedStages =
      kWarpBytes / kBoxedBytes < 6 ? kWarpBytes / kBoxedBytes : 6;
  static constexpr int32_t kBesideFull = (kWarpBytes - kStageBytes) / kBoxedBytes < kBoxedStages - 1
                                             ? (kWarpBytes - kStageBytes) / kBoxedBytes
                                             : kBoxedStages - 1;
  static_assert(kBits == 0 || kBesideFull > 0);
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
      : stages_(SharedAddress(shared) + threadIdx.x / kWarpLanes * Stages::kWarpBytes),
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

  // Begins the copies of a unit in full into its stage `stage`, and closes their group.
  __device__ void FetchFull(const UnitPlace& place, int32_t stage) const {
    Fetch<false>(place, false, stages_ + stage * Stages::kStageBytes);
  }

  // The same for a unit of codes; `box`: with that of its page, which the unit before did not
  // bring.
  __device__ void FetchBoxed(const UnitPlace& place, int32_t stage, bool box) const {
    Fetch<true>(place, box, stages_ + stage * Stages::kBoxedBytes);
  }

  // Takes the unit in full in `stage` into the softmax; after all units of codes and FinishCodes.
  __device__ void AttendFull(int32_t unit, int32_t stage) {
    AttendFull(unit * kUnitTokens, At(stages_ + stage * Stages::kStageBytes));
  }

  // The same for the unit of codes in `stage`, which has the box of its page if the unit before was
  // of another. Closed pages are seen whole.
  __device__ void AttendBoxed(int32_t stage, bool box) {
    using Word = std::conditional_t<kBits == 8, uint2, uint32_t>;  // a lane's codes of a value tile
    const std::byte* data = At(stages_ + stage * Stages::kBoxedBytes);
    const int32_t plane = padded() * 4;
    if (box) {
      TakeBox(data);
    }
    float scores[2][4] = {};
    ForTiles([&](int32_t t) {
      if (t % 2 != 0) {
        return;  // a word has the codes of two tiles
      }
      uint32_t planes[kBits / 2];
#pragma unroll
      for (int32_t i = 0; i < kBits / 2; ++i) {
        planes[i] = *reinterpret_cast<const uint32_t*>(data + (1 + i) * plane +
                                                       (t / 2 * kWarpLanes + lane_) * 4);
      }
      if constexpr (kBits == 8) {
        ScoreCodes(scores, t, planes);
      } else {
        ScoreCodes(scores, t, planes[0], planes[1]);
      }
    });
    constexpr float kOfSecond = kBits == 8 ? 1.0f : 0.0625f;
    float p[4];
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      p[i] = (scores[0][i] + kOfSecond * scores[1][i]) * (scale_[i % 2] * kCode) + rest_[i % 2];
    }
    Softmax(p);

    const std::byte* codes = data + (1 + kBits / 2) * plane;
    const std::byte* grids = codes + kUnitTokens * padded() * kBits / 8;
    uint32_t b[2];
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const float2 grid =
          UnpackFloat16(*reinterpret_cast<const uint32_t*>(grids + (lane_ / 4 + 8 * i) * 4));
      const float scale = grid.y * kWeightUp;
      const float middle = grid.x + kMiddle * grid.y;
      shared_part_[0] += p[2 * i] * middle;
      shared_part_[1] += p[2 * i + 1] * middle;
      b[i] = Transposed(PackBf16(p[2 * i] * scale, p[2 * i + 1] * scale));
    }
    constexpr uint32_t kOne = 0x00010001u;  // twice the code 1
    MultiplyAdd(ones_, kOne, kOne, kOne, kOne, b[0], b[1]);
    ForTiles([&](int32_t t) {
      AddCodes(output_[t], reinterpret_cast<const Word*>(codes)[t * kWarpLanes + lane_], b[0],
               b[1]);
    });
  }

  // Sums over codes become outputs, once, behind the last unit of codes.
  __device__ void FinishCodes() {
    if (kBits == 0 || finished_) {
      return;
    }
    finished_ = true;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const float middle = kMiddle * ones_[e];
        float& low = output_[t][e];
        float& high = output_[t][2 + e];
        if constexpr (kBits == 4) {
          low -= high;
          high *= 0.0625f;
        }
        low = (low - middle) * kSumUp;
        high = (high - middle) * kSumUp;
      }
    });
  }
  // The warp's record to shared memory; `warp` counts the block's warps.
  __device__ void Write(int32_t warp, float* merge) {
    FinishCodes();
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
        state[0] = base_[e];
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

  static __device__ __forceinline__ std::byte* At(uint32_t shared_address) {
    return static_cast<std::byte*>(__cvta_shared_to_generic(shared_address));
  }

  // CopyAsync16 if `valid`, without a branch.
  static __device__ __forceinline__ void CopyIf(bool valid, uint32_t shared, const void* global) {
    asm volatile(
        "{\n"
        ".reg .pred valid;\n"
        "setp.ne.b32 valid, %2, 0;\n"
        "@valid cp.async.cg.shared.global [%0], [%1], 16;\n"
        "}\n" ::"r"(shared),
        "l"(global), "r"(valid ? 1 : 0)
        : "memory");
  }

  template <bool kBoxed>
  __device__ __forceinline__ void Fetch(const UnitPlace& place, bool box, uint32_t stage) const {
    const int32_t skip = lane_ * 16;
    ForParts<kBoxed>(
        place, box, skip, [&](bool all, const std::byte* from, int32_t to, int32_t bytes) {
#pragma unroll
          for (int32_t first = 0; first < bytes; first += kWarpLanes * 16) {
            CopyIf(all && first + skip < bytes, stage + skip + to + first, from + first);
          }
        });
    CommitCopies();
  }

  // visit(wanted, from, to, bytes) for the parts of a unit; from: `skip` bytes into the part, to:
  // where it begins in its stage.
  template <bool kBoxed, typename Visit>
  __device__ __forceinline__ void ForParts(const UnitPlace& place, bool box, int32_t skip,
                                           Visit visit) const {
    const int32_t in_page = place.unit & (kPageUnits - 1);
    // Offsets in a page have 32 bits, which one addition to its address takes.
    const auto at = [&](int32_t offset) { return place.page + static_cast<uint32_t>(offset); };
    if constexpr (!kBoxed) {
      const int32_t bytes = kUnitTokens * padded() * 2;
      visit(true, at(full_keys_ + skip + in_page * bytes), 0, bytes);
      visit(true, at(full_values_ + skip + in_page * bytes), Stages::kUnitBytes, bytes);
    } else {
      const int32_t plane = padded() * 4;  // bytes of a unit's 2-bit codes
      const int32_t in_plane = skip + in_page * plane;
      visit(box, at(box_ + skip), 0, plane);
      visit(true, at(box_ + in_plane) + plane, plane, plane);
#pragma unroll
      for (int32_t p = 1; p < kBits / 2; ++p) {
        visit(true, at(lower_planes_ + in_plane) + (p - 1) * kPageUnits * plane, (1 + p) * plane,
              plane);
      }
      const int32_t codes = kUnitTokens * padded() * kBits / 8;
      const int32_t values = (1 + kBits / 2) * plane;
      visit(true, at(grids_ + skip + in_page * codes) + kPageTokens * 4, values, codes);
      visit(true, at(grids_ + skip + in_page * (kUnitTokens * 4)), values + codes, kUnitTokens * 4);
    }
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

  // Scores of tokens that the row does not see become minus infinity: p[i] is of tokens r, r, r +
  // 8, r + 8 of the unit and queries 2c, 2c + 1.
  __device__ void Mask(int32_t first_token, float (&p)[4]) const {
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
  }

  // Scores in powers of two become weights relative to base_, the highest so far: the heaviest key
  // has a weight of one, which rounding leaves alone. Only where a higher one comes is the maximum
  // over lanes taken, which costs as much as all else here.
  __device__ void Softmax(float (&p)[4]) {
    float weights[4];
    const auto weigh = [&] {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        weights[i] = Exp2(p[i] - base_[i % 2]);
      }
    };
    weigh();
    const float heaviest = fmaxf(fmaxf(weights[0], weights[1]), fmaxf(weights[2], weights[3]));
    if (__any_sync(kWholeWarp, heaviest > 1.0f)) {
      float factor[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const float next = fmaxf(base_[e], MaxOverLanes<kOverRows>(fmaxf(p[e], p[2 + e])));
        factor[e] = Exp2(base_[e] - next);
        base_[e] = next;
        sum_[e] *= factor[e];
        shared_part_[e] *= factor[e];
      }
      const auto rescale = [&](float(&sums)[4]) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          sums[i] *= factor[i % 2];
        }
      };
      ForTiles([&](int32_t t) { rescale(output_[t]); });
      rescale(ones_);
      weigh();
    }
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      p[i] = weights[i];
    }
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      sum_[e] += p[e] + p[2 + e];
    }
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
      if (lane_ % kUnitTokens >= tokens) {
        for (int32_t i = lane_; i < padded() * 2; i += kWarpLanes) {  // the token's 8 dims
          *reinterpret_cast<uint4*>(values + i * 16) = uint4{0, 0, 0, 0};
        }
      }
      __syncwarp();
    }
    Mask(first_token, p);
    Softmax(p);
    const uint32_t b0 = Transposed(PackBf16(p[0], p[1]));
    const uint32_t b1 = Transposed(PackBf16(p[2], p[3]));
    ForTiles([&](int32_t t) {
      uint32_t a[4];
      LoadTransposed(a, values + t * 512 + lane_ * 16);
      MultiplyAdd(output_[t], a[0], a[2], a[1], a[3], b0, b1);
    });
  }

  // Codes of values are counted from the middle of their range, so that what bf16 cuts off a weight
  // is cut off as little as it can be.
  static constexpr float kMiddle = 0.5f * static_cast<float>((1 << kBits) - 1);

  // Weights of codes of values are times 2^100, codes times 2^-133.
  static constexpr float kWeightUp = 0x1p100f;
  static constexpr float kSumUp = 0x1p33f;

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
      if (t > 0 && t % 4 == 0) {
        __syncwarp();  // else all loads come first, and registers run out
      }
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
        Weight(t, half) = FromHalf2(__hmul2(AsHalf2(q[half]), width));
      }
      MultiplyAddHalf(of_lo, lo[0], lo[0], lo[1], lo[1], q[0], q[1]);
      if (t % 2 != 0) {
#pragma unroll
        for (int32_t i = t - 1; i <= t; ++i) {
          MultiplyAddHalf(of_weights, kOnes, kOnes, kOnes, kOnes, weights_[i][0], weights_[i][1]);
        }
      }
    });
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      rest_[e] = (of_lo[e] + of_weights[e] * kHalfStep) * scale_[e];
    }
  }

  // The weights of dims 0 to 7 (half 0) or 8 to 15 of tile t. They lie in pairs as the products
  // take them: of both halves of a tile for eight bits, of one half of two tiles for four.
  __device__ __forceinline__ uint32_t& Weight(int32_t t, int32_t half) {
    return kBits == 8 ? weights_[t][half] : weights_[t / 2 * 2 + half][t % 2];
  }

  // Bits of kMask from a, the others from b: one instruction, which the compiler does not find.
  template <uint32_t kMask>
  static __device__ __forceinline__ uint32_t Select(uint32_t a, uint32_t b) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xE4;\n" : "=r"(result) : "r"(a), "r"(b), "n"(kMask));
    return result;
  }

  // Bytes 0 and 2, or 1 and 3, as half words.
  static __device__ __forceinline__ uint32_t EvenBytes(uint32_t x) { return x & 0x00FF00FFu; }
  static __device__ __forceinline__ uint32_t OddBytes(uint32_t x) {
    return __byte_perm(x, 0, 0x4341);
  }

  // Adds tiles t and t + 1 of int4 keys, two planes' words: what comes as c / 2^24 to scores[0],
  // what comes as 16 c / 2^24 to scores[1].
  __device__ __forceinline__ void ScoreCodes(float (&scores)[2][4], int32_t t, uint32_t upper,
                                             uint32_t lower) const {
    constexpr uint32_t kFirst = 0x000F000Fu;
    constexpr uint32_t kSecond = 0x00F000F0u;
    const uint32_t even = Select<0xCCCCCCCCu>(upper << 2, lower);  // registers 0, 2, ..
    const uint32_t odd = Select<0xCCCCCCCCu>(upper, lower >> 2);   // 1, 3, ..
    const uint32_t next_even = even >> 8;
    const uint32_t next_odd = odd >> 8;
    MultiplyAddHalf(scores[0], even & kFirst, odd & kFirst, next_even & kFirst, next_odd & kFirst,
                    weights_[t][0], weights_[t][1]);
    MultiplyAddHalf(scores[1], even & kSecond, odd & kSecond, next_even & kSecond,
                    next_odd & kSecond, weights_[t + 1][0], weights_[t + 1][1]);
  }

  // Adds tiles t and t + 1 of int8 keys, four planes' words, to scores[0] and scores[1].
  __device__ __forceinline__ void ScoreCodes(float (&scores)[2][4], int32_t t,
                                             const uint32_t (&planes)[4]) const {
    uint32_t fours[2][2];  // [upper, lower four bits][registers 0, 2, .. or 1, 3, ..]
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      fours[i][0] = Select<0xCCCCCCCCu>(planes[2 * i] << 2, planes[2 * i + 1]);
      fours[i][1] = Select<0xCCCCCCCCu>(planes[2 * i], planes[2 * i + 1] >> 2);
    }
    uint32_t codes[4];  // of registers i and 4 + i
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      codes[i] = Select<0xF0F0F0F0u>(fours[0][i] << 4, fours[1][i]);
      codes[2 + i] = Select<0xF0F0F0F0u>(fours[0][i], fours[1][i] >> 4);
    }
    MultiplyAddHalf(scores[0], EvenBytes(codes[0]), EvenBytes(codes[1]), EvenBytes(codes[2]),
                    EvenBytes(codes[3]), weights_[t][0], weights_[t][1]);
    MultiplyAddHalf(scores[1], OddBytes(codes[0]), OddBytes(codes[1]), OddBytes(codes[2]),
                    OddBytes(codes[3]), weights_[t + 1][0], weights_[t + 1][1]);
  }

  // Adds a tile of int4 values: to rows r, whose dims have the lower half of a byte, the whole
  // byte.
  __device__ __forceinline__ void AddCodes(float (&sums)[4], uint32_t word, uint32_t b0,
                                           uint32_t b1) const {
    constexpr uint32_t kUpper = 0x00F000F0u;
    const uint32_t behind = OddBytes(word);
    MultiplyAdd(sums, EvenBytes(word), word & kUpper, behind, behind & kUpper, b0, b1);
  }

  // Adds a tile of int8 values, lower and upper four bits.
  __device__ __forceinline__ void AddCodes(float (&sums)[4], uint2 word, uint32_t b0,
                                           uint32_t b1) const {
    const uint32_t even = Select<0xF0F0F0F0u>(word.y << 4, word.x);  // registers 0, 2
    const uint32_t odd = Select<0xF0F0F0F0u>(word.y, word.x >> 4);   // 1, 3
    MultiplyAdd(sums, EvenBytes(even), EvenBytes(odd), OddBytes(even), OddBytes(odd), b0, b1);
  }

  uint32_t stages_;  // in shared memory
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
  uint32_t weights_[kTiles][2];
  float rest_[2];
  // The softmax so far; queries 2c, 2c + 1. Below base_ there is no score but minus infinity at
  // first, from which it may be subtracted.
  float base_[2] = {-FLT_MAX, -FLT_MAX};
  float sum_[2] = {};          // of this lane's tokens
  float shared_part_[2] = {};  // of the output, the same for all dims; of this lane's tokens
  float output_[kTiles][4] = {};
  // With boxed codes, until FinishCodes: the sum that the code 1 in place of all others would give,
  // the same in all rows.
  float ones_[4] = {};
  bool finished_ = false;
};

}  // namespace lserve::cuda
