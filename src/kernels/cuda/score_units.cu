// Scores of units: a persistent grid takes segments of pages of the due rows and heads, a warp one
// or two pages (kSketch) or four (kMinMax) at a time.
//
// kMinMax: max(q k_max, q k_min) = q+ k_max + q- k_min, a product of bf16 matrices.
// kSketch: with w = q (hi - lo) / 2 = 2 q step, q k = q lo + w (c + 1/2) / 2, in products of
// float16 with float32 sums. A query is scaled by a power of two to below 1, which its float32
// factor gives back: a weight is then not above 65504, the highest number of a box, and what
// underflows is at most what a channel's box itself may be off by, 2^-25. Box numbers are float16,
// so q lo loses nothing; w is rounded, to 11 bits, once a page. A code c at bits 2 p of a half word
// is the subnormal float16 c 4^p / 2^24 as it lies, for p below 4: one logical operation a register
// of codes. A product takes p = 0 and 1 of two tiles (tokens r and r + 8), another p = 2 and 3,
// each with a sum of its own; the powers go at the end. The half of a cell is the weights' own sum.
// Two pages share the columns of a product where a group leaves room, so that no lane makes weights
// of queries that do not exist.
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
constexpr int32_t kMostSegmentPages = kScoreWarps * kWarpLanes;  // a warp's lanes know its pages
constexpr int32_t kQueries = 8;                                  // of a group, in one product

// A warp's scores of pages of one row and head, each the maximum over the group. kSets: pages whose
// weights share the eight columns of a product, kSketch alone; 2 for groups of at most 4.
template <int32_t kDim, PageScore kScore, int32_t kSets>
class PageScorer {
 public:
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr bool kExact = kDim <= 128;  // smaller head sizes have an instance of their own
  // Shared memory of a warp: a ring of kSets pages' boxes and codes.
  static constexpr int32_t kStages = kSets == 2 ? 2 : 3;
  static constexpr int32_t kPageBytes = 20 * kDim;
  static constexpr int32_t kStageBytes = kSets * kPageBytes;

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
        page_bytes_(static_cast<uint32_t>(params.retrieval.layout.page_bytes())) {}

  // Pages begin, begin + stride, .. below end: four at a time under kMinMax.
  __device__ void Run(int32_t begin, int32_t end, int32_t stride) {
    if constexpr (kScore == PageScore::kMinMax) {
      TakeQueries(0);
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

  // A word has the codes of two tiles: visit(the first).
  template <typename Visit>
  __device__ __forceinline__ void ForWords(Visit visit) const {
#pragma unroll
    for (int32_t t = 0; t < kTiles; t += 2) {
      if (kExact || t * 16 < padded_) {
        visit(t);
      }
    }
  }

  // The group's query `first + r`: of each tile kPairs pairs of elements, the i-th i * kStep from
  // `lane_dim` on.
  template <int32_t kStep, int32_t kPairs>
  __device__ void LoadQuery(int32_t first, int32_t lane_dim, uint32_t (&q)[kTiles][kPairs]) const {
    const int32_t query = first + lane_ / 4 % (kQueries / kSets);
    const uint16_t* from = pair_.Queries(params_) + (query * head_dim_ + lane_dim);
    const int32_t elements = query < params_.group ? head_dim_ - lane_dim : 0;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < kPairs; ++i) {
        const int32_t d = t * 16 + i * kStep;
        q[t][i] = d < elements ? *reinterpret_cast<const uint32_t*>(from + d) : 0u;
      }
    });
  }

  // As the columns of B lie.
  __device__ void LoadColumns(int32_t first, uint32_t (&q)[kTiles][2]) const {
    LoadQuery<8>(first, lane_ % 4 * 2, q);
  }

  __device__ void TakeQueries(int32_t first) {
    if constexpr (kScore == PageScore::kMinMax) {
      first_query_ = first;
      // Four chunks of eight: lane 4r + c has minima (c even) or maxima of dims 8 (c / 2) on.
      LoadQuery<2>(first, lane_ % 4 / 2 * 8, q_);
      const bool maxima = lane_ % 2 != 0;
      ForTiles([&](int32_t t) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const uint32_t pair = q_[t][i];
          const uint32_t low = (pair & 0x8000u) != 0 ? 0u : 0xFFFFu;
          const uint32_t high = (pair & 0x80000000u) != 0 ? 0u : 0xFFFF0000u;
          q_[t][i] = pair & (maxima ? low | high : ~(low | high));
        }
      });
    } else {
      LoadColumns(first, q_);
      ScaleColumns(first);
    }
  }

  // Makes float16 of the bf16 queries `first` on in q_.
  __device__ void ScaleColumns(int32_t first) {
    first_query_ = first;
    float most = 0.0f;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        most = fmaxf(most, fmaxf(fabsf(LowBf16(q_[t][half])), fabsf(HighBf16(q_[t][half]))));
      }
    });
    most = MaxOverLanes<kOverColumns>(most);
    // most < 2^(exponent - 126)
    const uint32_t exponent = min(__float_as_uint(most) >> 23, 252u);
    const float down = __uint_as_float((253u - exponent) << 23);
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        q_[t][half] = PackFloat16(LowBf16(q_[t][half]) * down, HighBf16(q_[t][half]) * down);
      }
    });
    const float up = __uint_as_float((exponent + 1) << 23);
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      factors_[e] = __shfl_sync(kWholeWarp, up, ColumnQuery(e) * 4);
    }
  }

  // The query, of those in a product, of the lane's columns of C.
  __device__ int32_t ColumnQuery(int32_t e) const {
    return (lane_ % 4 * 2 + e) % (kQueries / kSets);
  }

  // Calls visit() for the group's queries, eight at a time, with q_ holding them.
  template <typename Visit>
  __device__ void ForQueries(Visit visit) {
    if constexpr (kSets == 2) {
      visit(params_.group);
    } else {
      for (int32_t first = 0; first < params_.group; first += kQueries) {
        if (first != first_query_) {
          TakeQueries(first);
        }
        visit(min(kQueries, params_.group - first));
      }
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
    for (int32_t first = begin; first < closed_end; first += kWarpLanes * stride) {
      RunClosed(first, min(closed_end, first + kWarpLanes * stride), stride);
    }
    if (open_page_ < end && open_page_ >= begin && (open_page_ - begin) % stride == 0) {
      ScoreOpenKeys();
    }
  }

  // At most as many pages as a warp has lanes.
  __device__ void RunClosed(int32_t begin, int32_t end, int32_t stride) {
    // Lane i knows the place of the warp's i-th page.
    const int32_t own = begin + lane_ * stride;
    const uint32_t page_id = static_cast<uint32_t>(
        own < end ? params_.retrieval.table[int64_t{pair_.slot} * params_.retrieval.max_pages + own]
                  : 0);
    const int32_t pages = __popc(__ballot_sync(kWholeWarp, own < end));
    // The queries come while the first pages do.
    const bool fresh = first_query_ < 0;
    if (fresh) {
      LoadColumns(0, q_);
    }
#pragma unroll
    for (int32_t i = 0; i < kStages - 1; ++i) {
      FetchSketches(page_id, i * kSets, pages, i);
    }
    if (fresh) {
      ScaleColumns(0);
    }
    int32_t stage = 0;
    for (int32_t i = 0; i < pages; i += kSets) {
      WaitCopies<kStages - 2>();
      __syncwarp();
      FetchSketches(page_id, i + (kStages - 1) * kSets, pages,
                    stage == 0 ? kStages - 1 : stage - 1);
      ScoreSketches(begin + i * stride, stride, min(kSets, pages - i),
                    stages_ + stage * kStageBytes);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitCopies<0>();
    __syncwarp();
  }

  // Begins the copies of the warp's pages `first` on, of `pages`, and closes their group.
  __device__ void FetchSketches(uint32_t page_id, int32_t first, int32_t pages,
                                int32_t stage) const {
#pragma unroll
    for (int32_t set = 0; set < kSets; ++set) {
      if (first + set >= pages) {
        break;
      }
      const std::byte* from =
          sketches_ +
          static_cast<uint64_t>(__shfl_sync(kWholeWarp, page_id, first + set)) * page_bytes_;
      std::byte* to = stages_ + stage * kStageBytes + set * kPageBytes + lane_ * 16;
      const int32_t bytes = kExact ? kPageBytes : 20 * padded_;
#pragma unroll
      for (int32_t at = 0; at < kPageBytes; at += kWarpLanes * 16) {
        if (at + lane_ * 16 < bytes) {
          CopyAsync16(to + at, from + at);
        }
      }
    }
    CommitCopies();
  }

  // data: the boxes and codes of `pages` pages, first_page and the one `stride` on. Row r of B is
  // of query r % (8 / kSets) and page r / (8 / kSets).
  __device__ void ScoreSketches(int32_t first_page, int32_t stride, int32_t pages,
                                const std::byte* data) {
    constexpr uint32_t kOnes = 0x3C003C00u;  // float16
    constexpr int32_t kSetQueries = kQueries / kSets;
    const int32_t padded = kExact ? kDim : padded_;
    const std::byte* box = data + lane_ / 4 / kSetQueries * kPageBytes + lane_ % 4 * 4;
    const std::byte* words = data + 4 * padded + lane_ * 4;
    const int32_t own_set = lane_ % 4 * 2 / kSetQueries;  // of the lane's columns of C
    float best = -INFINITY;
    ForQueries([&](int32_t queries) {
      uint32_t weights[kTiles][2];  // of a half of tiles t and t + 1: at t + half
      // The queries as A, two tiles in rows r and r + 8: of each product one half is of use.
      float of_even[4] = {};
      float of_odd[4] = {};
      float sums[2][4] = {};
      ForWords([&](int32_t t) {
        uint32_t lo[2][2];
#pragma unroll
        for (int32_t i = 0; i < 2; ++i) {
#pragma unroll
          for (int32_t half = 0; half < 2; ++half) {
            const std::byte* place = box + (t + i) * 32 + half * 16;
            lo[i][half] = *reinterpret_cast<const uint32_t*>(place);
            const uint32_t hi = *reinterpret_cast<const uint32_t*>(place + 2 * padded);
            weights[t + half][i] = TimesHalfWidth(q_[t + i][half], lo[i][half], hi);
          }
        }
        MultiplyAddHalf(of_even, q_[t][0], q_[t + 1][0], q_[t][1], q_[t + 1][1], lo[0][0],
                        lo[0][1]);
        MultiplyAddHalf(of_odd, q_[t][0], q_[t + 1][0], q_[t][1], q_[t + 1][1], lo[1][0], lo[1][1]);
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          MultiplyAddHalf(sums[half], kOnes, kOnes, kOnes, kOnes, weights[t + half][0],
                          weights[t + half][1]);
        }
      });
      // From row r of the queries to their columns; minus infinity for those that do not exist.
      const float rest = of_even[0] + of_odd[2];
      float rests[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const float of_query =
            __shfl_sync(kWholeWarp, rest, ColumnQuery(e) * 4 + own_set * (kSetQueries / 2));
        rests[e] = ColumnQuery(e) < queries
                       ? (of_query + 0.25f * (sums[0][e] + sums[1][e])) * factors_[e]
                       : -INFINITY;
      }
      const float per_code[2] = {factors_[0] * 0x1p23f, factors_[1] * 0x1p23f};
      float scores[kPageUnits];
#pragma unroll
      for (int32_t unit = 0; unit < kPageUnits; ++unit) {
        float codes[2];  // the highest sums of weights and codes, over 2^24
#pragma unroll
        for (int32_t set = 0; set < kSets; ++set) {
          float low[4] = {};
          float high[4] = {};
          ForWords([&](int32_t t) {
            const uint32_t word = *reinterpret_cast<const uint32_t*>(
                words + set * kPageBytes + unit * 4 * padded + t / 2 * (kWarpLanes * 4));
            const uint32_t next = word >> 8;
            MultiplyAddHalf(low, word & 0x00030003u, word & 0x000C000Cu, next & 0x00030003u,
                            next & 0x000C000Cu, weights[t][0], weights[t][1]);
            MultiplyAddHalf(high, word & 0x00300030u, word & 0x00C000C0u, next & 0x00300030u,
                            next & 0x00C000C0u, weights[t + 1][0], weights[t + 1][1]);
          });
#pragma unroll
          for (int32_t e = 0; e < 2; ++e) {
            const float of_set =
                fmaxf(low[e] + high[e] * 0.0625f, (low[2 + e] + high[2 + e] * 0.0625f) * 0.25f);
            codes[e] = set == 0 || set == own_set ? of_set : codes[e];
          }
        }
        scores[unit] = fmaxf(rests[0] + codes[0] * per_code[0], rests[1] + codes[1] * per_code[1]);
      }
      best = fmaxf(best, OverUnits(scores));
    });
    StorePage(first_page + own_set * stride, best,
              lane_ % 8 * kSets == own_set * 4 && own_set < pages);
  }

  // q (hi - lo) / 2 of two numbers; lo and hi may lie further apart than float16 reaches.
  static __device__ __forceinline__ uint32_t TimesHalfWidth(uint32_t q, uint32_t lo, uint32_t hi) {
    const __half2 half = __float2half2_rn(0.5f);
    const __half2 width = __hfma2(AsHalf2(hi), half, __hmul2(AsHalf2(lo), __hneg2(half)));
    return FromHalf2(__hmul2(AsHalf2(q), width));
  }

  // The maximum of each unit over the lanes, of each set over its own: that of unit u for lanes 8 u
  // to 8 u + 7.
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
    return MaxOverLanes < kSets == 2 ? 1 | 4 : 1 | 2 | 4 > (fmaxf(odd ? two[1] : two[0], other));
  }

  // The open page has no sketch yet: its keys as they are, from memory.
  __device__ void ScoreOpenKeys() {
    const KvPageLayout layout = params_.retrieval.layout.open();
    const auto* keys = reinterpret_cast<const uint16_t*>(OpenPage(params_.retrieval, pair_.slot) +
                                                         layout.key_offset(pair_.head));
    const int32_t tokens = pair_.tokens - open_page_ * kPageTokens;
    float best = -INFINITY;  // of unit lane / 8
#pragma unroll 1
    for (int32_t first = 0; first < params_.group; first += kQueries / kSets) {
      const int32_t queries = min(kQueries / kSets, params_.group - first);
      uint32_t q[kTiles][2];
      LoadColumns(first, q);
#pragma unroll 1
      for (int32_t unit = 0; unit * kUnitTokens < tokens; ++unit) {
        float c[4] = {};
        const int32_t token = unit * kUnitTokens + lane_ / 4;
        const uint16_t* from = keys + ElementIndex(token, lane_ % 4 * 2, padded_);
        ForTiles([&](int32_t t) {
          uint32_t a[4];
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            a[i] = *reinterpret_cast<const uint32_t*>(
                from + ElementIndex(i % 2 * 8, t * 16 + i / 2 * 8, 0));
          }
          MultiplyAdd(c, a[0], a[1], a[2], a[3], q[t][0], q[t][1]);
        });
        const float low = OverQueries(c[0], c[1], queries);
        const float high = OverQueries(c[2], c[3], queries);
        const float of_unit = MaxOverLanes<kOverRows>(
            fmaxf(token < tokens ? low : -INFINITY, token + 8 < tokens ? high : -INFINITY));
        best = lane_ / 8 == unit ? fmaxf(best, of_unit) : best;
      }
    }
    StorePage(open_page_, best, lane_ % 8 == 0);
  }

  // best: of logical page lane / 8.
  __device__ void StorePage(int32_t page, float best, bool store) const {
    float score = best * scale_;
    if (unit_shift_ >= 1) {
      score = MaxOverLanes<8>(score);
    }
    if (unit_shift_ == 2) {
      score = MaxOverLanes<16>(score);
    }
    StoreUnit(page, lane_ / 8, score, store);
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
  uint32_t page_bytes_;
  int32_t first_query_ = -1;  // that q_ has
  float factors_[2] = {};     // kSketch: of the queries of the lane's columns of C
  uint32_t q_[kTiles][kScore == PageScore::kMinMax ? 4 : 2];
};

template <int32_t kDim, PageScore kScore, int32_t kSets>
constexpr int32_t kScoreSharedBytes =
    kScore == PageScore::kSketch ? kScoreWarps* PageScorer<kDim, kScore, kSets>::kStages*
                                       PageScorer<kDim, kScore, kSets>::kStageBytes
                                 : 0;

// Blocks of a multiprocessor, as registers allow.
template <int32_t kDim, PageScore kScore>
constexpr int32_t kScoreBlocks = kDim > 128                     ? 2
                                 : kScore == PageScore::kMinMax ? 3
                                                                : 4;

template <int32_t kDim, PageScore kScore, int32_t kSets>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks<kDim, kScore>)
    ScoreUnitsKernel(const __grid_constant__ SelectUnitsParams params) {
  constexpr int32_t kWarpPages = kScore == PageScore::kMinMax ? 4 : kSets;  // at a time
  __shared__ PlanShared plan;
  LetNextKernelStart();
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
  std::byte* stages =
      SharedMemory() + warp * (kScoreSharedBytes<kDim, kScore, kSets> / kScoreWarps);
  const int32_t heads = params.retrieval.layout.heads;
  const int32_t pairs = params.batch.counts[kDecodeRows] * heads;
  // What is due in every step follows from what the host wrote, so that the plan needs no wait.
  bool waited = params.policy.reuse_interval > 1 || params.policy.reuse_distance > 0.0f;
  if (waited) {
    WaitForEarlierKernels();
  }
  const auto pages_of = [](const SelectionPair& pair) {
    return DivideUp(pair.tokens, kPageTokens);
  };
  const auto grid = static_cast<int32_t>(gridDim.x);

  // The heads of one row are alike: as many blocks each, and no plan.
  const bool alike = pairs == heads && heads <= grid;
  // Else a pair's pages in as many segments as give every block one, within bounds.
  const int32_t pair_blocks = max(1, Quotient(grid, max(1, pairs)));
  const auto segment_of = [&](const SelectionPair& pair) {
    const int32_t pages = DivideUp(Quotient(pages_of(pair) + pair_blocks - 1, pair_blocks), 4) * 4;
    return min(max(pages, kScoreWarps * kWarpPages), kMostSegmentPages);
  };
  const auto items_of = [&](int32_t index) {
    const SelectionPair pair(params, index);
    const int32_t segment = segment_of(pair);
    return IsDue(params, pair, index) ? Quotient(pages_of(pair) + segment - 1, segment) : 0;
  };
  for (int32_t base = 0; base < pairs; base += kPlanPairs) {
    const int32_t count = min(kPlanPairs, pairs - base);
    const int32_t items =
        alike ? pair_blocks * heads : PlanItems<kScoreThreads>(base, count, plan, items_of);
    for (auto item = static_cast<int32_t>(blockIdx.x); item < items; item += grid) {
      const int32_t planned = alike ? 0 : PlannedPair(plan, count, item);
      const int32_t part = alike ? Quotient(item, heads) : item - plan.first_item[planned];
      const int32_t index = alike ? item - part * heads : base + planned;
      const SelectionPair pair(params, index);
      const int32_t pages = pages_of(pair);
      int32_t begin = 0;
      int32_t end = pages;
      int32_t blocks = 1;  // that share begin to end
      int32_t block = 0;
      if (alike) {
        blocks = min(pair_blocks, DivideUp(pages, kScoreWarps * kWarpPages));
        block = part;
      } else {
        begin = part * segment_of(pair);
        end = min(begin + segment_of(pair), pages);
      }
      if (!waited) {
        WaitForEarlierKernels();
        waited = true;
      }
      if (alike && (block >= blocks || !IsDue(params, pair, index))) {
        continue;
      }
      PageScorer<kDim, kScore, kSets> scorer(params, pair, stages);
      const int32_t first = kScore == PageScore::kMinMax ? begin / 4 : begin;
      scorer.Run(first + block * kScoreWarps + warp, end, blocks * kScoreWarps);
    }
  }
  if (!waited) {
    WaitForEarlierKernels();
  }
}

template <int32_t kDim>
void LaunchScoreUnits(const SelectUnitsParams& params, cudaStream_t stream) {
  const int64_t items = int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads *
                        DivideUp(params.retrieval.max_pages, kScoreWarps);
  const auto launch = [&]<PageScore kScore, int32_t kSets>() {
    const int32_t blocks = PersistentBlocks(items, kScoreBlocks<kDim, kScore>);
    LaunchDependent("select_units", ScoreUnitsKernel<kDim, kScore, kSets>,
                    dim3(static_cast<unsigned>(blocks)), kScoreThreads,
                    kScoreSharedBytes<kDim, kScore, kSets>, stream, params);
  };
  if (params.retrieval.layout.score != PageScore::kSketch) {
    launch.template operator()<PageScore::kMinMax, 1>();
  } else if (params.group > kQueries / 2) {
    launch.template operator()<PageScore::kSketch, 1>();
  } else {
    launch.template operator()<PageScore::kSketch, 2>();
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
