// Scores of units: a persistent grid takes segments of pages of the due rows and heads, a warp a
// page (kSketch) or four (kMinMax) at a time.
//
// kMinMax: max(q k_max, q k_min) = q+ k_max + q- k_min, a product of bf16 matrices.
// kSketch: with w = q (hi - lo) = 4 q step, q k = q lo + w (c + 1/2) / 4. The weights w are made
// once a page and rounded to bf16. Of a word of codes a shift and a logical operation make the bf16
// numbers 128 + 4 c of a token r and 128 + 16 c of the token r + 8; what the 128 adds, and the half
// of a cell, go into the sums before the products, by the weights' own sum.
//
// At 16 tokens a unit the instructions of a page count as much as its bytes.
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
constexpr int32_t kLeastSegmentPages = 16;
constexpr int32_t kMostSegmentPages = kScoreWarps * kWarpLanes;  // a warp's lanes know its pages
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
        scale_(1.0f / sqrtf(static_cast<float>(head_dim_))),
        scores_(UnitScores(params, pair.row * params.retrieval.layout.heads + pair.head)),
        unit_shift_(params.policy.unit_tokens == 64   ? 2
                    : params.policy.unit_tokens == 32 ? 1
                                                      : 0),
        sketches_(params.retrieval.pages + params.retrieval.layout.stats_offset(pair.head) +
                  lane_ * 16),
        page_bytes_(params.retrieval.layout.page_bytes()) {
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

  // score: of the logical page `logical` and, in larger units, of the others of its unit.
  __device__ void StoreUnit(int32_t page, int32_t logical, float score, bool store) const {
    if (store && (logical & ((1 << unit_shift_) - 1)) == 0) {
      scores_[(page * kPageUnits + logical) >> unit_shift_] = score;
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
    const int32_t logical = lane_ / 4 % 4;
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const int32_t in_run = lane_ / 16 + 2 * i;
      const int32_t page = first_page + in_run;
      // Logical pages without a token have no statistics.
      float score =
          page * kPageTokens + logical * kUnitTokens < pair_.tokens ? best[i] * scale_ : -INFINITY;
      if (unit_shift_ >= 1) {
        score = MaxOverLanes<4>(score);
      }
      if (unit_shift_ == 2) {
        score = MaxOverLanes<8>(score);
      }
      StoreUnit(page, logical, score, in_run < pages && lane_ % 4 == 0);
    }
  }

  // ---- kSketch

  __device__ void RunSketch(int32_t begin, int32_t end, int32_t stride) {
    const int32_t closed_end = min(end, open_page_);
    // Lane i knows the place of the warp's i-th page.
    const int32_t own = begin + lane_ * stride;
    const int32_t page_id =
        own < closed_end
            ? params_.retrieval.table[int64_t{pair_.slot} * params_.retrieval.max_pages + own]
            : 0;
    const int32_t pages = max(0, DivideUp(closed_end - begin, stride));
#pragma unroll
    for (int32_t i = 0; i < kStages - 1; ++i) {
      FetchSketch(page_id, i, pages, i);
    }
    int32_t stage = 0;
    for (int32_t i = 0; i < pages; ++i) {
      WaitCopies<kStages - 2>();
      __syncwarp();
      FetchSketch(page_id, i + kStages - 1, pages, stage == 0 ? kStages - 1 : stage - 1);
      ScoreSketch(begin + i * stride, stages_ + stage * kStageBytes);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitCopies<0>();
    __syncwarp();
    if (open_page_ < end && open_page_ >= begin && (open_page_ - begin) % stride == 0) {
      ScoreOpenKeys();
    }
  }

  // Begins the copies of the warp's page `i` of `pages`, if there is one, and closes their group.
  __device__ void FetchSketch(int32_t page_id, int32_t i, int32_t pages, int32_t stage) const {
    if (i < pages) {
      const std::byte* from = sketches_ + __shfl_sync(kWholeWarp, page_id, i) * page_bytes_;
      std::byte* to = stages_ + stage * kStageBytes + lane_ * 16;
      const int32_t bytes = kExact ? kStageBytes : 20 * padded_;
#pragma unroll
      for (int32_t at = 0; at < kStageBytes; at += kWarpLanes * 16) {
        if (at + lane_ * 16 < bytes) {
          CopyAsync16(to + at, from + at);
        }
      }
    }
    CommitCopies();
  }

  // data: a page's box and codes.
  __device__ void ScoreSketch(int32_t page, const std::byte* data) {
    constexpr uint32_t kOnes = 0x3F803F80u;  // bf16
    const int32_t padded = kExact ? kDim : padded_;
    const std::byte* box = data + lane_ % 4 * 4;
    const std::byte* words = data + 4 * padded + lane_ * 4;
    float best = -INFINITY;
    ForQueries([&](int32_t queries) {
      uint32_t weights[kTiles][2];
      float rest = 0.0f;
      ForTiles([&](int32_t t) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const std::byte* place = box + t * 32 + half * 16;
          const float2 lo = UnpackFloat16(*reinterpret_cast<const uint32_t*>(place));
          const float2 hi = UnpackFloat16(*reinterpret_cast<const uint32_t*>(place + 2 * padded));
          const float q0 = LowBf16(q_[t][half]);
          const float q1 = HighBf16(q_[t][half]);
          rest += q0 * lo.x;
          rest += q1 * lo.y;
          weights[t][half] = PackBf16(q0 * (hi.x - lo.x), q1 * (hi.y - lo.y));
        }
      });
      float sums[4] = {};
      ForTiles([&](int32_t t) {
        MultiplyAdd(sums, kOnes, kOnes, kOnes, kOnes, weights[t][0], weights[t][1]);
      });
      // To the columns of C; minus infinity for queries that do not exist.
      rest = SumOverLanes<kOverColumns>(rest);
      float rests[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t query = lane_ % 4 * 2 + e;
        const float of_query = __shfl_sync(kWholeWarp, rest, query * 4);
        rests[e] = query < queries ? of_query : -INFINITY;
      }
      float scores[kPageUnits];
#pragma unroll
      for (int32_t unit = 0; unit < kPageUnits; ++unit) {
        float c[4] = {-126.0f * sums[0], -126.0f * sums[1], -120.0f * sums[0], -120.0f * sums[1]};
        ForTiles([&](int32_t t) {
          if (t % 2 != 0) {
            return;  // a word has the codes of two tiles
          }
          const uint32_t word = *reinterpret_cast<const uint32_t*>(words + unit * 4 * padded +
                                                                   t / 2 * (kWarpLanes * 4));
          MultiplyAdd(c, Low(word << 2), High(word << 2), Low(word >> 2), High(word >> 2),
                      weights[t][0], weights[t][1]);
          MultiplyAdd(c, Low(word >> 6), High(word >> 6), Low(word >> 10), High(word >> 10),
                      weights[t + 1][0], weights[t + 1][1]);
        });
        scores[unit] = fmaxf(fmaxf(rests[0] + c[0] * 0.0625f, rests[1] + c[1] * 0.0625f),
                             fmaxf(rests[0] + c[2] * 0.015625f, rests[1] + c[3] * 0.015625f));
      }
      best = fmaxf(best, OverUnits(scores));
    });
    StorePage(page, best);
  }

  // Two bits at bits 2 and 18 as the bf16 numbers 128 + 4 c, those at bits 4 and 20 as 128 + 16 c.
  __device__ __forceinline__ uint32_t Low(uint32_t codes) const {
    return (codes & 0x000C000Cu) | base_;
  }
  __device__ __forceinline__ uint32_t High(uint32_t codes) const {
    return (codes & 0x00300030u) | base_;
  }
  // 128 twice. An instruction takes one constant: this one has to be in a register, so the compiler
  // must not know it (the grid has one dimension).
  static __device__ __forceinline__ uint32_t Base() { return 0x43004300u + (gridDim.y - 1); }

  // The maximum of each unit over the lanes: that of unit u for lanes 8 u to 8 u + 7.
  __device__ float OverUnits(const float (&x)[kPageUnits]) const {
    static_assert(kPageUnits == 4);
    const bool upper = (lane_ & 16) != 0;
    const bool odd = (lane_ & 8) != 0;
    float two[2];
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
      const float other = __shfl_xor_sync(kWholeWarp, upper ? x[i] : x[2 + i], 16);
      two[i] = fmaxf(upper ? x[2 + i] : x[i], other);
    }
    const float other = __shfl_xor_sync(kWholeWarp, odd ? two[0] : two[1], 8);
    return MaxOverLanes<1 | 2 | 4>(fmaxf(odd ? two[1] : two[0], other));
  }

  // The open page has no sketch yet: its keys as they are, from memory.
  __device__ void ScoreOpenKeys() {
    const KvPageLayout layout = params_.retrieval.layout.open();
    const auto* keys = reinterpret_cast<const uint16_t*>(OpenPage(params_.retrieval, pair_.slot) +
                                                         layout.key_offset(pair_.head));
    const int32_t tokens = pair_.tokens - open_page_ * kPageTokens;
    float best = -INFINITY;  // of unit lane / 8
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
        best = lane_ / 8 == unit ? fmaxf(best, of_unit) : best;
      }
    });
    StorePage(open_page_, best);
  }

  // best: of logical page lane / 8.
  __device__ void StorePage(int32_t page, float best) const {
    float score = best * scale_;
    if (unit_shift_ >= 1) {
      score = MaxOverLanes<8>(score);
    }
    if (unit_shift_ == 2) {
      score = MaxOverLanes<16>(score);
    }
    StoreUnit(page, lane_ / 8, score, lane_ % 8 == 0);
  }

  const SelectUnitsParams& params_;
  const SelectionPair& pair_;
  std::byte* stages_;
  int32_t lane_;
  int32_t head_dim_;
  int32_t padded_;
  int32_t open_page_;
  float scale_;
  float* scores_;
  int32_t unit_shift_;         // log2 of logical pages in a unit
  const std::byte* sketches_;  // the lane's first bytes of the head's, in page 0 of the pool
  int64_t page_bytes_;
  uint32_t base_ = Base();
  int32_t first_query_ = 0;
  uint32_t q_[kTiles][kScore == PageScore::kMinMax ? 4 : 2];
};

template <int32_t kDim, PageScore kScore>
constexpr int32_t kScoreSharedBytes =
    kScore == PageScore::kSketch ? kScoreWarps* kStages* PageScorer<kDim, kScore>::kStageBytes : 0;

// Blocks of a multiprocessor, as registers allow.
template <int32_t kDim, PageScore kScore>
constexpr int32_t kScoreBlocks = kDim > 128                     ? 2
                                 : kScore == PageScore::kMinMax ? 3
                                                                : 4;

template <int32_t kDim, PageScore kScore>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks<kDim, kScore>)
    ScoreUnitsKernel(const __grid_constant__ SelectUnitsParams params) {
  __shared__ PlanShared plan;
  LetNextKernelStart();
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
  std::byte* stages = SharedMemory() + warp * (kScoreSharedBytes<kDim, kScore> / kScoreWarps);
  const int32_t pairs = params.batch.counts[kDecodeRows] * params.retrieval.layout.heads;
  // What is due in every step follows from what the host wrote, so that the plan needs no wait.
  bool waited = params.policy.reuse_interval > 1 || params.policy.reuse_distance > 0.0f;
  if (waited) {
    WaitForEarlierKernels();
  }

  // A pair's pages in as many segments as give every block one, within bounds.
  const int32_t pair_blocks = max(1, static_cast<int32_t>(gridDim.x) / max(1, pairs));
  const auto pages_of = [](const SelectionPair& pair) {
    return DivideUp(pair.tokens, kPageTokens);
  };
  const auto segment_of = [&](const SelectionPair& pair) {
    const int32_t pages = DivideUp(DivideUp(pages_of(pair), pair_blocks), 4) * 4;
    return min(max(pages, kLeastSegmentPages), kMostSegmentPages);
  };
  const auto items_of = [&](int32_t index) {
    const SelectionPair pair(params, index);
    return IsDue(params, pair, index) ? DivideUp(pages_of(pair), segment_of(pair)) : 0;
  };
  ForPlannedItems<kScoreThreads>(pairs, plan, items_of, [&](int32_t index, int32_t item) {
    if (!waited) {
      WaitForEarlierKernels();
      waited = true;
    }
    const SelectionPair pair(params, index);
    PageScorer<kDim, kScore> scorer(params, pair, stages);
    const int32_t first = item * segment_of(pair);
    const int32_t end = min(first + segment_of(pair), pages_of(pair));
    scorer.Run(kScore == PageScore::kMinMax ? first / 4 + warp : first + warp, end, kScoreWarps);
  });
  if (!waited) {
    WaitForEarlierKernels();
  }
}

template <int32_t kDim>
void LaunchScoreUnits(const SelectUnitsParams& params, cudaStream_t stream) {
  const int64_t items = int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads *
                        DivideUp(params.retrieval.max_pages, kLeastSegmentPages);
  const auto launch = [&]<PageScore kScore>() {
    const int32_t blocks = PersistentBlocks(items, kScoreBlocks<kDim, kScore>);
    LaunchDependent("select_units", ScoreUnitsKernel<kDim, kScore>,
                    dim3(static_cast<unsigned>(blocks)), kScoreThreads,
                    kScoreSharedBytes<kDim, kScore>, stream, params);
  };
  if (params.retrieval.layout.score == PageScore::kSketch) {
    launch.template operator()<PageScore::kSketch>();
  } else {
    launch.template operator()<PageScore::kMinMax>();
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
