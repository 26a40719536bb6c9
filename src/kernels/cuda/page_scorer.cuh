// PageScorer: a warp's scores of the pages of a row and head, as matrix products. A step of a warp
// takes one or two pages (kSketch) or four (kMinMax), a turn is a step of each of a block's warps.
// Device code.
//
// kMinMax: max(q k_max, q k_min) = q+ k_max + q- k_min, a product of bf16 matrices.
// kSketch: with w = q (hi - lo) / 2 = 2 q step, q k = (7 q lo + q hi) / 8 + w c / 2, in products of
// float16 with float32 sums. A query is scaled by a power of two to below 1, which its float32
// factor gives back: a weight is then not above 65504, the highest number of a box, and what
// underflows is at most what a channel's box itself may be off by, 2^-25. Box numbers are float16,
// so q lo and q hi lose nothing; w is rounded, to 11 bits, once a page. A code c at bits 2 p of a
// half word is the subnormal float16 c 4^p / 2^24 as it lies, for p below 4: one logical operation
// a register of codes. A product takes p = 0 and 1 of two tiles (tokens r and r + 8), another p = 2
// and 3, each with a sum of its own; the powers go at the end. Two pages share the columns of a
// product where a group leaves room, so that no lane makes weights of queries that do not exist.
//
// What a block reads of closed pages it fetches before it waits for earlier kernels: RopeAppend
// alone writes to a layer's pages in a step, and of closed ones only the page before one that
// begins.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/sketch_ring.cuh"
#include "kernels/cuda/warp.cuh"

namespace lserve::cuda {

inline constexpr int32_t kScoreThreads = 128;
inline constexpr int32_t kScoreWarps = kScoreThreads / kWarpLanes;
inline constexpr int32_t kQueries = 8;  // of a group, in one product
// Blocks of a multiprocessor, as registers allow.
template <int32_t kDim, PageScore kScore>
inline constexpr int32_t kScoreBlocks = kDim > 128                     ? 2
                                        : kScore == PageScore::kMinMax ? 3
                                                                       : 4;

// A warp's scores of pages of one row and head, each the maximum over the group. kSets: pages whose
// weights share the eight columns of a product, kSketch alone; 2 for groups of at most 4.
template <int32_t kDim, PageScore kScore, int32_t kSets>
class PageScorer {
 public:
  static constexpr int32_t kTiles = kDim / 16;
  static constexpr bool kExact = kDim <= 128;  // smaller head sizes have an instance of their own
  using Ring = SketchRing<kDim, kSets>;
  // What the plan counts is a warp's step: a group of pages, whose units have a maximum together.
  // Of kSketch there are whole turns of all warps, and where the open page is scored one more, in
  // which the warps share its units.
  static constexpr int32_t kGroupPages = kScore == PageScore::kMinMax ? 4 : kSets;
  static constexpr int32_t kTurn = kScoreWarps;
  static __device__ int32_t StepsOf(const SelectUnitsParams& params, const SelectionPair& pair) {
    const int32_t pages = PagesOf(params, pair);
    if (kScore == PageScore::kMinMax) {
      return DivideUp(pages, kGroupPages);
    }
    const int32_t closed = min(pages, (pair.tokens - 1) / kPageTokens);
    return (DivideUp(closed, kGroupPages * kTurn) + (pages > closed ? 1 : 0)) * kTurn;
  }
  // Where the caller does not ask for the scores, only units that compete have some.
  static __device__ int32_t PagesOf(const SelectUnitsParams& params, const SelectionPair& pair) {
    return params.scores != nullptr
               ? DivideUp(pair.tokens, kPageTokens)
               : DivideUp(ListParts(params.policy, pair.tokens).newest << UnitBits(params.policy),
                          kPageTokens);
  }

  // waited: whether the thread has waited for earlier kernels. Without, it does when it must.
  // maxima: of the pair's groups, or null.
  __device__ PageScorer(const SelectUnitsParams& params, const SelectionPair& pair,
                        std::byte* stages, float (&open_scores)[kPageUnits], float* maxima,
                        bool& waited)
      : params_(params),
        pair_(pair),
        stages_(stages),
        open_scores_(open_scores),
        maxima_(Uniform(maxima)),
        waited_(waited),
        queries_(Uniform(pair.Queries(params))),
        lane_(static_cast<int32_t>(threadIdx.x) % kWarpLanes),
        head_dim_(params.retrieval.layout.head_dim),
        padded_(params.retrieval.layout.padded_head_dim),
        open_page_((pair.tokens - 1) / kPageTokens),
        pages_(PagesOf(params, pair)),
        newest_unit_(Uniform(ListParts(params.policy, pair.tokens).newest)),
        settled_pages_((pair.tokens - 1) % kPageTokens == 0 ? open_page_ - 1 : open_page_),
        scale_(1.0f / sqrtf(static_cast<float>(head_dim_))),
        scores_(Uniform(UnitScores(params, pair.row * params.retrieval.layout.heads + pair.head))),
        unit_shift_(Uniform(UnitBits(params.policy) - 4)),
        sketches_(
            Uniform(params.retrieval.pages + params.retrieval.layout.stats_offset(pair.head))),
        page_bytes_(static_cast<uint32_t>(params.retrieval.layout.page_bytes())) {
    const int32_t set = OwnSet();
    const bool stores = lane_ % 8 * kSets == set * 4 && IsFirstOfUnit(lane_ / 8);
    lane_unit_ = Kept((set * kPageUnits + lane_ / 8) >> unit_shift_ | (stores ? kStores : 0));
    const int32_t row = lane_ % 8;
    const int32_t matrix = lane_ / 8;
    const int32_t padded = kExact ? kDim : padded_;
    lane_box_ = Kept(row / (kQueries / kSets) * Ring::kPageStride + matrix * 16);
    lane_ends_ = Kept((kSets == 2 ? row / 4 * Ring::kPageStride : 0) + row / 2 % 2 * 2 * padded +
                      (matrix / 2 * 2 + row % 2) * 32 + matrix % 2 * 16);
  }

  // Steps [begin, end) of the pair; all threads of the block.
  __device__ void Run(int32_t begin, int32_t end) {
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
    if constexpr (kScore == PageScore::kMinMax) {
      const int32_t end_page = min(kGroupPages * end, pages_);
      for (int32_t page = kGroupPages * (begin + warp); page < end_page;
           page += kGroupPages * kScoreWarps) {
        ScoreMinMax(page, end_page);
      }
    } else {
      const int32_t first = kGroupPages * (begin + warp);
      const int32_t end_page = min(kGroupPages * end, min(pages_, open_page_));
      if (first < end_page) {
        ScoreClosed(first, end_page);
      }
      if (pages_ > open_page_ && end == StepsOf(params_, pair_)) {
        ScoreOpenKeys(warp);
      }
    }
  }

 private:
  __device__ __forceinline__ void Wait() {
    if (!waited_) {
      WaitForEarlierKernels();
      waited_ = true;
    }
  }

  // Whether the warp goes through the code once before it waits, so that instructions, which the
  // weights since the layer before have driven out of the caches, are back then. One warp of a
  // multiprocessor's first block does.
  __device__ __forceinline__ bool Rehearses() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return !waited_ && threadIdx.x < kWarpLanes &&
           blockIdx.x < gridDim.x / kScoreBlocks<kDim, kScore> && params_.group <= kQueries;
#else
    return false;
#endif
  }

  // visit(t) for each tile; with a step of 2 for each word, which has the codes of two.
  template <int32_t kStep = 1, typename Visit>
  __device__ __forceinline__ void ForTiles(Visit visit) const {
#pragma unroll
    for (int32_t t = 0; t < kTiles; t += kStep) {
      if (kExact || t * 16 < padded_) {
        visit(t);
      }
    }
  }

  // The group's query `first + r`, or the last one in place of one that does not exist; zeros if
  // `first` does not: of each tile kPairs pairs of elements, the i-th i * kStep from
  // `lane_dim` on.
  template <int32_t kStep, int32_t kPairs>
  __device__ void LoadQuery(int32_t first, int32_t lane_dim, uint32_t (&q)[kTiles][kPairs]) const {
    const int32_t query = min(first + lane_ / 4 % (kQueries / kSets), params_.group - 1);
    const uint16_t* from = Kept(queries_ + (query * head_dim_ + lane_dim));
    const int32_t elements = first < params_.group ? head_dim_ - lane_dim : 0;
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < kPairs; ++i) {
        const int32_t d = t * 16 + i * kStep;
        q[t][i] = d < elements ? *reinterpret_cast<const uint32_t*>(from + d) : 0u;
      }
    });
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
      LoadQuery<8>(first, lane_ % 4 * 2, q_);  // as the columns of B lie
      ScaleColumns(first);
    }
  }

  // Makes float16 of the bf16 queries `first` on in q_.
  __device__ void ScaleColumns(int32_t first) {
    first_query_ = first;
    const float up = ScaleToFloat16(q_, [this](auto visit) { ForTiles(visit); });
#pragma unroll
    for (int32_t e = 0; e < 2; ++e) {
      factors_[e] = __shfl_sync(kWholeWarp, up, ColumnQuery(e) * 4) * scale_;
    }
  }

  // The page, of those of a step, of the lane's columns of C.
  __device__ int32_t OwnSet() const { return lane_ % 4 * 2 / (kQueries / kSets); }

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

  __device__ bool IsFirstOfUnit(int32_t logical) const {
    return (logical & ((1 << unit_shift_) - 1)) == 0;
  }

  // score: of the logical page `logical` and, in larger units, of the others of its unit.
  __device__ void StoreUnit(int32_t page, int32_t logical, float score, bool store) const {
    if (store && IsFirstOfUnit(logical)) {
      scores_[(page * kPageUnits + logical) >> unit_shift_] = score;
    }
  }

  // The score of the logical page, or of its unit, for the maximum of its group.
  __device__ float IfCompeting(int32_t page, int32_t logical, float score) const {
    const int32_t unit = (page * kPageUnits + logical) >> unit_shift_;
    return unit >= 1 && unit < newest_unit_ ? score : -INFINITY;
  }

  // highest: of what competes in a group, of those over the lanes of kMask.
  template <uint32_t kMask>
  __device__ void StoreGroup(uint32_t group, float highest) const {
    if (maxima_ != nullptr) {
      highest = MaxOverLanes<kMask>(highest);
      if (lane_ == 0) {
        maxima_[group] = highest;
      }
    }
  }

  // Row r of C is logical page r % 4 of page first + r / 4, row r + 8 of two pages on.
  __device__ void ScoreMinMax(int32_t first_page, int32_t end_page) {
    const KvPageLayout& layout = params_.retrieval.layout;
    const int32_t pages = min(4, end_page - first_page);
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
    if (first_page + pages > settled_pages_) {
      Wait();
    }
    // A dim's two sides make 32 elements of 16 dims: tile t's slab.
    uint4 stats[kTiles][2];
    ForTiles([&](int32_t t) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        stats[t][i] = rows[i] == nullptr ? uint4{0, 0, 0, 0} : rows[i][t * 16];
      }
    });
    Wait();
    if (first_query_ < 0) {
      TakeQueries(0);
    }
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
    float highest = -INFINITY;
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
      highest = fmaxf(highest, in_run < pages ? IfCompeting(page, logical, score) : -INFINITY);
    }
    StoreGroup<kOverRows>(static_cast<uint32_t>(first_page) / kGroupPages, highest);
  }

  // ---- kSketch

  // Closed pages, a step's from `first` on, and as many a turn later, below `end`, which `first`
  // is.
  __device__ void ScoreClosed(int32_t first, int32_t end) {
    constexpr int32_t kStages = Ring::kStages;
    constexpr int32_t kTurnPages = kScoreWarps * kSets;
    const int32_t* table =
        Uniform(params_.retrieval.table + int64_t{pair_.slot} * params_.retrieval.max_pages);
    // Where there are fewer pages left than a step has, the last one takes their place.
    const auto find_pages = [&](int32_t page, uint32_t(&ids)[kSets]) {
#pragma unroll
      for (int32_t i = 0; i < kSets; ++i) {
        ids[i] = page < end ? static_cast<uint32_t>(table[min(page + i, end - 1)]) : 0u;
      }
    };
    Ring ring(stages_, kExact ? Ring::kPageBytes : 20 * padded_);
    const auto fill = [&](int32_t stage, int32_t page, const uint32_t(&ids)[kSets]) {
      ring.Fill(stage, page >= end, [&](int32_t i) {
        return sketches_ + static_cast<uint64_t>(Uniform(ids[i])) * page_bytes_;
      });
    };
    uint32_t first_ids[kStages][kSets];
#pragma unroll
    for (int32_t i = 0; i < kStages; ++i) {
      find_pages(first + i * kTurnPages, first_ids[i]);
    }
#pragma unroll
    for (int32_t i = 0; i < kStages; ++i) {
      const int32_t page = first + i * kTurnPages;
      if (page < end && min(page + kSets, end) > settled_pages_) {
        Wait();
      }
      fill(i, page, first_ids[i]);
    }
    for (bool rehearses = Rehearses();; rehearses = false) {
      if (!rehearses) {
        Wait();
      }
      TakeQueries(rehearses ? params_.group : 0);  // the former does not exist: nothing is read
      first_query_ = 0;
      for (int32_t page = Uniform(first); page < end; page += kTurnPages) {
        if (!rehearses) {
          ring.Wait();
        }
        const int32_t upcoming = page + kStages * kTurnPages;
        uint32_t ids[kSets];
        find_pages(upcoming, ids);
        ScoreSketches(page, rehearses ? 0 : min(kSets, end - page), ring.address());
        if (rehearses) {
          break;
        }
        __syncwarp();
        fill(ring.stage(), upcoming, ids);
        ring.Advance();
      }
      if (!rehearses) {
        break;
      }
    }
    ring.End();
  }

  // data: shared address of the boxes and codes of the step's pages, of which there are `pages`.
  // Row r of B is of query r % (8 / kSets) and page r / (8 / kSets).
  __device__ void ScoreSketches(int32_t first_page, int32_t pages, uint32_t data) {
    constexpr int32_t kPageStride = Ring::kPageStride;
    const int32_t padded = kExact ? kDim : padded_;
    const uint32_t box = data + lane_box_;
    const uint32_t ends = data + lane_ends_;
    const uint32_t codes = data + 4 * padded + lane_ * 16;
    const int32_t own_set = OwnSet();
    float best = -INFINITY;
    ForQueries([&](int32_t /*queries*/) {
      uint32_t weights[kTiles][2];  // of a half of tiles t and t + 1: at t + half
      // The queries as A, two tiles in rows r and r + 8: of each column one half is of use.
      float of_ends[4] = {};
      uint32_t end_pairs[4];
      ForTiles<2>([&](int32_t t) {
        uint32_t lo[4];
        uint32_t hi[4];
        LoadMatrices(lo, box + t * 32);
        LoadMatrices(hi, box + t * 32 + 2 * padded);
#pragma unroll
        for (int32_t i = 0; i < 2; ++i) {
#pragma unroll
          for (int32_t half = 0; half < 2; ++half) {
            weights[t + half][i] =
                TimesHalfWidth(q_[t + i][half], lo[2 * i + half], hi[2 * i + half]);
          }
        }
        if (t % 4 == 0) {  // of this word and the next
          LoadMatrices(end_pairs, ends + t * 32);
        }
        MultiplyAddHalf(of_ends, q_[t][0], q_[t + 1][0], q_[t][1], q_[t + 1][1], end_pairs[t % 4],
                        end_pairs[t % 4 + 1]);
      });
      // Lane 4r + c has q lo (c even) or q hi of query r and page c / 2: the middle of cells 0.
      float middle = (of_ends[0] + of_ends[3]) * (lane_ % 2 == 0 ? 0.875f : 0.125f);
      middle += __shfl_xor_sync(kWholeWarp, middle, 1);
      // From row r to the columns.
      float rests[2];
#pragma unroll
      for (int32_t e = 0; e < 2; ++e) {
        const float of_query =
            __shfl_sync(kWholeWarp, middle, ColumnQuery(e) * 4 + (kSets == 2 ? own_set * 2 : 0));
        rests[e] = of_query * factors_[e];
      }
      uint32_t words[kSets][4];
      float scores[kPageUnits] = {};
      // Rolled where units do not share words: what a warp goes through is then half as long, and
      // instructions come slower than they are executed.
      constexpr int32_t kUnrolled = kExact && kTiles % 8 != 0 ? kPageUnits : 2;
#pragma unroll kUnrolled
      for (int32_t unit = 0; unit < kPageUnits; ++unit) {
        float sums[4];  // of weights and codes, over 2^24; of tokens r + 8 four times that
#pragma unroll
        for (int32_t set = 0; set < kSets; ++set) {
          float low[4] = {};
          float high[4] = {};
          ForTiles<2>([&](int32_t t) {
            // Four words of a lane at once, also across units where their number is known.
            const int32_t n = (kExact ? unit * kTiles / 2 : 0) + t / 2;
            if (n % 4 == 0) {
              LoadMatrices(words[set], codes + set * kPageStride + unit * 4 * padded + t / 2 * 128);
            }
            const uint32_t word = words[set][n % 4];
            const uint32_t next = word >> 8;
            MultiplyAddHalf(low, word & 0x00030003u, word & 0x000C000Cu, next & 0x00030003u,
                            next & 0x000C000Cu, weights[t][0], weights[t][1]);
            MultiplyAddHalf(high, word & 0x00300030u, word & 0x00C000C0u, next & 0x00300030u,
                            next & 0x00C000C0u, weights[t + 1][0], weights[t + 1][1]);
          });
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            const float sum = low[i] + high[i] * 0.0625f;
            sums[i] = set == 0 || set == own_set ? sum : sums[i];
          }
        }
        float best_of[2];
#pragma unroll
        for (int32_t e = 0; e < 2; ++e) {
          const float per_code = factors_[e] * 0x1p23f;
          best_of[e] =
              fmaxf(rests[e] + sums[e] * per_code, rests[e] + sums[2 + e] * (per_code * 0.25f));
        }
#pragma unroll
        for (int32_t i = 0; i + 1 < kPageUnits; ++i) {
          scores[i] = scores[i + 1];
        }
        scores[kPageUnits - 1] = fmaxf(best_of[0], best_of[1]);
      }
      best = fmaxf(best, OverUnits(scores));
    });
    // A step begins with a unit. One lane of each unit stores; they and no others are asked for the
    // maximum of all.
    const int32_t unit = (first_page * kPageUnits >> unit_shift_) + (lane_unit_ & ~kStores);
    const float score = OfUnit(best);
    const bool exists = kSets == 1 ? pages > 0 : own_set < pages;
    if (exists && (lane_unit_ & kStores) != 0) {
      scores_[unit] = score;
    }
    if (pages > 0) {
      const bool competes = exists && unit >= 1 && unit < newest_unit_;
      constexpr uint32_t kOver = kSets == 2 ? 2 | 8 | 16 : 8 | 16;
      StoreGroup<kOver>(static_cast<uint32_t>(first_page) / kSets, competes ? score : -INFINITY);
    }
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

  const __device__ uint16_t* OpenKeys(int32_t unit) const {
    return reinterpret_cast<const uint16_t*>(
               OpenPage(params_.retrieval, pair_.slot) +
               params_.retrieval.layout.open().key_offset(pair_.head)) +
           unit * kUnitTokens * padded_;
  }

  // The open page has no sketch yet: its keys as they are, from memory, a unit a warp. All threads
  // of the block.
  __device__ void ScoreOpenKeys(int32_t unit) {
    static_assert(kScoreWarps == kPageUnits);
    Wait();
    __syncthreads();  // earlier readers of open_scores_ are done
    const int32_t tokens = pair_.tokens - open_page_ * kPageTokens;
    const int32_t token = unit * kUnitTokens + lane_ / 4;
    float best = -INFINITY;
    if (unit * kUnitTokens < tokens) {
      uint32_t a[kTiles][4];
      const uint16_t* from = OpenKeys(unit) + lane_ * 2;
      ForTiles([&](int32_t t) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          a[t][i] = *reinterpret_cast<const uint32_t*>(
              from + ElementIndex(i % 2 * 8, t * 16 + i / 2 * 8, 0));
        }
      });
#pragma unroll 1
      for (int32_t first = 0; first < params_.group; first += kQueries / kSets) {
        const int32_t queries = min(kQueries / kSets, params_.group - first);
        uint32_t q[kTiles][2];
        LoadQuery<8>(first, lane_ % 4 * 2, q);
        float c[4] = {};
        ForTiles([&](int32_t t) {
          MultiplyAdd(c, a[t][0], a[t][1], a[t][2], a[t][3], q[t][0], q[t][1]);
        });
        const float low = OverQueries(c[0], c[1], queries);
        const float high = OverQueries(c[2], c[3], queries);
        best = fmaxf(
            best, fmaxf(token < tokens ? low : -INFINITY, token + 8 < tokens ? high : -INFINITY));
      }
      best = MaxOverLanes<kOverRows>(best);
    }
    if (lane_ == 0) {
      open_scores_[unit] = best;
    }
    __syncthreads();
    if (unit == 0) {
      StoreUnit(open_page_, lane_ / 8, OfUnit(open_scores_[lane_ / 8] * scale_), lane_ % 8 == 0);
    }
  }

  // score: of logical page lane / 8. That of its unit.
  __device__ float OfUnit(float score) const {
    if (unit_shift_ >= 1) {
      score = MaxOverLanes<8>(score);
      if (unit_shift_ == 2) {
        score = MaxOverLanes<16>(score);
      }
    }
    return score;
  }

  const SelectUnitsParams& params_;
  const SelectionPair& pair_;
  std::byte* stages_;
  float (&open_scores_)[kPageUnits];
  float* maxima_;
  bool& waited_;
  const uint16_t* queries_;
  int32_t lane_;
  int32_t head_dim_;
  int32_t padded_;
  int32_t open_page_;
  int32_t pages_;  // that are scored
  int32_t newest_unit_;
  int32_t settled_pages_;  // closed before this step
  float scale_;
  float* scores_;
  int32_t unit_shift_;  // log2 of logical pages in a unit
  // kSketch: of the lane's logical page in a step, and kStores if the lane stores the unit's score.
  int32_t lane_unit_;
  static constexpr int32_t kStores = 1 << 8;
  // kSketch: where in a stage the rows of matrices lie that the lane names: of boxes, 8 dims each;
  // of their ends row by row two tiles of lo, two of hi, and those of the second page.
  int32_t lane_box_;
  int32_t lane_ends_;
  const std::byte* sketches_;  // of the head, in page 0 of the pool
  uint32_t page_bytes_;
  int32_t first_query_ = -1;  // that q_ has
  float factors_[2] = {};     // kSketch: of scores with the queries of the lane's columns of C
  uint32_t q_[kTiles][kScore == PageScore::kMinMax ? 4 : 2];
};

}  // namespace lserve::cuda
