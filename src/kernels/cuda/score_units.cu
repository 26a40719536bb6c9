// Scores of units: a persistent grid takes segments of pages of the due rows and heads, a warp a
// page (kSketch) or four (kMinMax) at a time.
//
// kMinMax: max(q k_max, q k_min) = q+ k_max + q- k_min, a product of bf16 matrices.
// kSketch: q k = q (lo + step / 2) + (q step) c. The weights q step are made once a page, rounded
// to 2^-15 of the query's largest as two signed bytes, and multiplied by the codes as they lie; the
// sum is exact in integers, so it has no order.
#include <cfloat>
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/work_plan.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kScoreThreads = 128;
constexpr int32_t kScoreWarps = kScoreThreads / kWarpLanes;
constexpr int32_t kScoreBlocks = 4;  // a multiprocessor
constexpr int32_t kSegmentPages = 32;
constexpr int32_t kStages = 3;
constexpr int32_t kQueries = 8;  // of a group, in one product

// A warp's scores of pages of one row and head, each the maximum over the group.
template <int32_t kDim, PageScore kScore>
class PageScorer {
 public:
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr bool kExact = kDim <= 128;  // smaller head sizes have an instance of their own
  // Shared memory of a warp: a ring of pages' boxes and codes.
  static constexpr int32_t kStageBytes = 20 * kDim;

  __device__ PageScorer(const SelectUnitsParams& params, const SelectionPair& pair,
                        std::byte* stages)
      : params_(params),
        pair_(pair),
        stages_(stages),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        head_dim_(params.retrieval.layout.head_dim),
        padded_(params.retrieval.layout.padded_head_dim),
        open_page_((pair.tokens - 1) / kPageTokens),
        scale_(1.0f / sqrtf(static_cast<float>(head_dim_))) {
    TakeQueries(0);
  }

  // Pages begin, begin + stride, .. below end: four at a time under kMinMax.
  __device__ void Run(int32_t begin, int32_t end, int32_t stride) {
    if constexpr (kScore == PageScore::kMinMax) {
      for (int32_t page = begin * 4; page < end; page += stride * 4) {
        ScoreMinMax(page, min(4, end - page));
      }
    } else {
      RunSketch(begin, end, stride);
    }
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

  // Two elements of query `first + r` of the group.
  __device__ uint32_t QueryPair(int32_t first, int32_t d) const {
    const int32_t query = first + lane_ / 4;
    return query < params_.group && d < head_dim_
               ? *reinterpret_cast<const uint32_t*>(pair_.Queries(params_) + query * head_dim_ + d)
               : 0u;
  }

  __device__ void TakeQueries(int32_t first) {
    first_query_ = first;
    ForTiles([&](int32_t t) {
      if constexpr (kScore == PageScore::kMinMax) {
        // Four chunks of eight: lane 4r + c has minima (c even) or maxima of dims 8 (c / 2) on.
        const bool maxima = lane_ % 2 != 0;
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const uint32_t pair = QueryPair(first, t * 16 + lane_ % 4 / 2 * 8 + i * 2);
          const uint32_t low = (pair & 0x8000u) != 0 ? 0u : 0xFFFFu;
          const uint32_t high = (pair & 0x80000000u) != 0 ? 0u : 0xFFFF0000u;
          q_[t][i] = pair & (maxima ? low | high : ~(low | high));
        }
      } else {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          q_[t][half] = QueryPair(first, t * 16 + half * 8 + lane_ % 4 * 2);
        }
      }
    });
  }

  // Calls visit() for the group's queries, eight at a time, with q_ holding them.
  template <typename Visit>
  __device__ void ForQueries(Visit visit) {
    for (int32_t first = 0; first < params_.group; first += kQueries) {
      if (first != first_query_) {
        TakeQueries(first);
      }
      visit(min(kQueries, params_.group - first));
    }
  }

  // The maximum over the queries that exist of C elements of one row; NaN counts as minus infinity.
  __device__ float OverQueries(float even, float odd, int32_t queries) const {
    const int32_t query = lane_ % 4 * 2;
    float best = -INFINITY;
    best = query < queries ? fmaxf(best, even) : best;
    best = query + 1 < queries ? fmaxf(best, odd) : best;
    return MaxOverLanes<kOverColumns>(best);
  }

  __device__ void StoreUnit(int32_t page, float score, int32_t unit, bool store) const {
    if (store) {
      UnitScores(params_,
                 pair_.row * params_.retrieval.layout.heads +
                     pair_.head)[page * (kPageTokens / params_.policy.unit_tokens) + unit] = score;
    }
  }

  // Row r of C is logical page r % 4 of page first + r / 4, row r + 8 of two pages on.
  __device__ void ScoreMinMax(int32_t first_page, int32_t pages) {
    const KvPageLayout& layout = params_.retrieval.layout;
    const uint4* rows[2];
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const int32_t in_run = lane_ / 16 + 2 * i;
      const int32_t page = first_page + in_run;
      rows[i] = nullptr;
      if (in_run < pages) {
        const std::byte* stats =
            page == open_page_
                ? OpenPage(params_.retrieval, pair_.slot) + layout.open().stats_offset(pair_.head)
                : ClosedPage(params_.retrieval, pair_.slot, page) + layout.stats_offset(pair_.head);
        rows[i] = reinterpret_cast<const uint4*>(stats) + lane_ % 16;  // 4 (row % 4) + chunk
      }
    }
    // A dim's two sides make 32 elements of 16 dims: tile t's slab.
    uint4 stats[kTiles][2];
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        stats[t][i] = rows[i] == nullptr ? uint4{0, 0, 0, 0} : rows[i][t * 16];
      }
    });
    float best[2] = {-INFINITY, -INFINITY};
    ForQueries([&](int32_t queries) {
      float c[4] = {};
      ForTiles([&](int32_t t) {
        MultiplyAdd(c, stats[t][0].x, stats[t][1].x, stats[t][0].y, stats[t][1].y, q_[t][0],
                    q_[t][1]);
        MultiplyAdd(c, stats[t][0].z, stats[t][1].z, stats[t][0].w, stats[t][1].w, q_[t][2],
                    q_[t][3]);
      });
      best[0] = fmaxf(best[0], OverQueries(c[0], c[1], queries));
      best[1] = fmaxf(best[1], OverQueries(c[2], c[3], queries));
    });
    const int32_t per_unit = params_.policy.unit_tokens / kUnitTokens;
    const int32_t logical = lane_ / 4 % 4;
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const int32_t in_run = lane_ / 16 + 2 * i;
      const int32_t page = first_page + in_run;
      // Logical pages without a token have no statistics.
      float score =
          page * kPageTokens + logical * kUnitTokens < pair_.tokens ? best[i] * scale_ : -INFINITY;
      if (per_unit >= 2) {
        score = MaxOverLanes<4>(score);
      }
      if (per_unit == 4) {
        score = MaxOverLanes<8>(score);
      }
      StoreUnit(page, score, logical / per_unit,
                in_run < pages && lane_ % 4 == 0 && logical % per_unit == 0);
    }
  }

  // ---- kSketch

  __device__ void RunSketch(int32_t begin, int32_t end, int32_t stride) {
    const int32_t closed_end = min(end, open_page_);
#pragma unroll
    for (int32_t i = 0; i < kStages - 1; ++i) {
      FetchSketch(begin + i * stride, closed_end, i);
    }
    int32_t stage = 0;
    for (int32_t page = begin; page < closed_end; page += stride) {
      WaitCopies<kStages - 2>();
      __syncwarp();
      FetchSketch(page + (kStages - 1) * stride, closed_end, stage == 0 ? kStages - 1 : stage - 1);
      ScoreSketch(page, stages_ + stage * kStageBytes);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitCopies<0>();
    __syncwarp();
    if (open_page_ < end && open_page_ >= begin && (open_page_ - begin) % stride == 0) {
      ScoreOpenKeys();
    }
  }

  __device__ void FetchSketch(int32_t page, int32_t end, int32_t stage) const {
    if (page < end) {
      const KvPageLayout& layout = params_.retrieval.layout;
      const std::byte* from =
          ClosedPage(params_.retrieval, pair_.slot, page) + layout.box_offset(pair_.head);
      std::byte* to = stages_ + stage * kStageBytes;
      for (int32_t i = lane_ * 16; i < 20 * padded_; i += kWarpLanes * 16) {
        CopyAsync16(to + i, from + i);
      }
    }
    CommitCopies();
  }

  // data: a page's box and codes.
  __device__ void ScoreSketch(int32_t page, const std::byte* data) {
    float best = -INFINITY;  // lane u: of unit u
    ForQueries([&](int32_t queries) {
      // q step, and its largest over the query's channels; the part of the score without codes.
      float weights[kTiles][4];
      float largest = 0.0f;
      float rest = 0.0f;
      ForTiles([&](int32_t t) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const int32_t d = t * 16 + half * 8 + lane_ % 4 * 2;
          const float2 lo = UnpackFloat16(*reinterpret_cast<const uint32_t*>(data + d * 2));
          const float2 hi =
              UnpackFloat16(*reinterpret_cast<const uint32_t*>(data + (padded_ + d) * 2));
          const float step0 = (hi.x - lo.x) * 0.25f;
          const float step1 = (hi.y - lo.y) * 0.25f;
          const float q0 = LowBf16(q_[t][half]);
          const float q1 = HighBf16(q_[t][half]);
          rest += q0 * (lo.x + 0.5f * step0);
          rest += q1 * (lo.y + 0.5f * step1);
          weights[t][2 * half] = q0 * step0;
          weights[t][2 * half + 1] = q1 * step1;
          largest =
              fmaxf(largest, fmaxf(fabsf(weights[t][2 * half]), fabsf(weights[t][2 * half + 1])));
        }
      });
      rest = SumOverLanes<kOverColumns>(rest);
      largest = fmaxf(MaxOverLanes<kOverColumns>(largest), FLT_MIN);
      // |weight| / grain <= 2^15 - 2^8, so that the upper byte stays below 128.
      const float grain = largest * (1.0f / 32512.0f);
      const float per_grain = 32512.0f / largest;
      uint32_t upper[kTiles][2];  // four weights as the lanes' bytes of a 16x32 tile lie
      uint32_t lower[kTiles][2];
      ForTiles([&](int32_t t) {
        if (t % 2 != 0) {
          return;
        }
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const int32_t whole[4] = {Whole(weights[t][2 * half] * per_grain),
                                    Whole(weights[t + 1][2 * half] * per_grain),
                                    Whole(weights[t][2 * half + 1] * per_grain),
                                    Whole(weights[t + 1][2 * half + 1] * per_grain)};
          uint32_t high = 0;
          uint32_t low = 0;
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            low |= (static_cast<uint32_t>(whole[i]) & 0xFFu) << (8 * i);
            high |= (static_cast<uint32_t>((whole[i] + 128) >> 8) & 0xFFu) << (8 * i);
          }
          upper[t / 2][half] = high;
          lower[t / 2][half] = low;
        }
      });
      // To the columns of C.
      float grains[2];
      float rests[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        grains[e] = __shfl_sync(kWholeWarp, grain, (lane_ % 4 * 2 + e) * 4);
        rests[e] = __shfl_sync(kWholeWarp, rest, (lane_ % 4 * 2 + e) * 4);
      }
#pragma unroll 1
      for (int32_t unit = 0; unit < kPageUnits; ++unit) {
        const std::byte* words = data + 4 * padded_ + unit * 4 * padded_ + lane_ * 4;
        int32_t c_upper[4] = {};
        int32_t c_lower[4] = {};
        ForTiles([&](int32_t t) {
          if (t % 2 != 0) {
            return;
          }
          const uint32_t word =
              *reinterpret_cast<const uint32_t*>(words + t / 2 * (kWarpLanes * 4));
          const uint32_t a[4] = {word & 0x03030303u, word >> 2 & 0x03030303u,
                                 word >> 4 & 0x03030303u, word >> 6 & 0x03030303u};
          MultiplyAddBytes(c_upper, a, upper[t / 2][0], upper[t / 2][1]);
          MultiplyAddBytes(c_lower, a, lower[t / 2][0], lower[t / 2][1]);
        });
        float score[4];
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          score[i] =
              rests[i % 2] + static_cast<float>(c_upper[i] * 256 + c_lower[i]) * grains[i % 2];
        }
        const float of_unit = MaxOverLanes<kOverRows>(fmaxf(
            OverQueries(score[0], score[1], queries), OverQueries(score[2], score[3], queries)));
        best = lane_ == unit ? fmaxf(best, of_unit) : best;
      }
    });
    StorePage(page, best);
  }

  static __device__ int32_t Whole(float x) { return __float2int_rn(x); }

  // The open page has no sketch yet: its keys as they are, from memory.
  __device__ void ScoreOpenKeys() {
    const KvPageLayout layout = params_.retrieval.layout.open();
    const auto* keys = reinterpret_cast<const uint16_t*>(OpenPage(params_.retrieval, pair_.slot) +
                                                         layout.key_offset(pair_.head));
    const int32_t tokens = pair_.tokens - open_page_ * kPageTokens;
    float best = -INFINITY;  // lane u: of unit u
    ForQueries([&](int32_t queries) {
#pragma unroll 1
      for (int32_t unit = 0; unit * kUnitTokens < tokens; ++unit) {
        float c[4] = {};
        const int32_t token = unit * kUnitTokens + lane_ / 4;
        ForTiles([&](int32_t t) {
          uint32_t a[4];
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            const int32_t d = t * 16 + i / 2 * 8 + lane_ % 4 * 2;
            a[i] = *reinterpret_cast<const uint32_t*>(keys +
                                                      ElementIndex(token + i % 2 * 8, d, padded_));
          }
          MultiplyAdd(c, a[0], a[1], a[2], a[3], q_[t][0], q_[t][1]);
        });
        const float low = OverQueries(c[0], c[1], queries);
        const float high = OverQueries(c[2], c[3], queries);
        const float of_unit = MaxOverLanes<kOverRows>(
            fmaxf(token < tokens ? low : -INFINITY, token + 8 < tokens ? high : -INFINITY));
        best = lane_ == unit ? fmaxf(best, of_unit) : best;
      }
    });
    StorePage(open_page_, best);
  }

  // best: lane u has that of the page's unit u.
  __device__ void StorePage(int32_t page, float best) const {
    const int32_t per_unit = params_.policy.unit_tokens / kUnitTokens;
    float score = best * scale_;
    if (per_unit >= 2) {
      score = MaxOverLanes<1>(score);
    }
    if (per_unit == 4) {
      score = MaxOverLanes<2>(score);
    }
    StoreUnit(page, score, lane_ / per_unit, lane_ < kPageUnits && lane_ % per_unit == 0);
  }

  const SelectUnitsParams& params_;
  const SelectionPair& pair_;
  std::byte* stages_;
  int32_t lane_;
  int32_t head_dim_;
  int32_t padded_;
  int32_t open_page_;
  float scale_;
  int32_t first_query_ = 0;
  uint32_t q_[kTiles][kScore == PageScore::kMinMax ? 4 : 2];
};

template <int32_t kDim, PageScore kScore>
constexpr int32_t kScoreSharedBytes =
    kScore == PageScore::kSketch ? kScoreWarps* kStages* PageScorer<kDim, kScore>::kStageBytes : 0;

template <int32_t kDim, PageScore kScore>
__global__ void __launch_bounds__(kScoreThreads)
    ScoreUnitsKernel(const __grid_constant__ SelectUnitsParams params) {
  BeginDependentKernel();
  __shared__ PlanShared plan;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
  std::byte* stages = SharedMemory() + warp * (kScoreSharedBytes<kDim, kScore> / kScoreWarps);
  const int32_t pairs = params.batch.counts[kDecodeRows] * params.retrieval.layout.heads;
  const auto pages_of = [](const SelectionPair& pair) {
    return DivideUp(pair.tokens, kPageTokens);
  };
  const auto items_of = [&](int32_t index) {
    const SelectionPair pair(params, index);
    return IsDue(params, pair, index) ? DivideUp(pages_of(pair), kSegmentPages) : 0;
  };
  ForPlannedItems<kScoreThreads>(pairs, plan, items_of, [&](int32_t index, int32_t item) {
    const SelectionPair pair(params, index);
    PageScorer<kDim, kScore> scorer(params, pair, stages);
    const int32_t first = item * kSegmentPages;
    const int32_t end = min(first + kSegmentPages, pages_of(pair));
    scorer.Run(kScore == PageScore::kMinMax ? first / 4 + warp : first + warp, end, kScoreWarps);
  });
}

template <int32_t kDim>
void LaunchScoreUnits(const SelectUnitsParams& params, cudaStream_t stream) {
  const int64_t items = int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads *
                        DivideUp(params.retrieval.max_pages, kSegmentPages);
  const dim3 grid(static_cast<unsigned>(PersistentBlocks(items, kScoreBlocks)));
  if (params.retrieval.layout.score == PageScore::kSketch) {
    LaunchDependent("select_units", ScoreUnitsKernel<kDim, PageScore::kSketch>, grid, kScoreThreads,
                    kScoreSharedBytes<kDim, PageScore::kSketch>, stream, params);
  } else {
    LaunchDependent("select_units", ScoreUnitsKernel<kDim, PageScore::kMinMax>, grid, kScoreThreads,
                    0, stream, params);
  }
}

}  // namespace

void ScoreUnits(const SelectUnitsParams& params, cudaStream_t stream) {
  const int32_t padded = params.retrieval.layout.padded_head_dim;
  if (padded == 32) {
    LaunchScoreUnits<32>(params, stream);
  } else if (padded == 64) {
    LaunchScoreUnits<64>(params, stream);
  } else if (padded == 96) {
    LaunchScoreUnits<96>(params, stream);
  } else if (padded == 128) {
    LaunchScoreUnits<128>(params, stream);
  } else {
    LaunchScoreUnits<256>(params, stream);
  }
}

}  // namespace lserve::cuda
