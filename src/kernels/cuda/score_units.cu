// Scores of units, and where lists are short the lists: the blocks of a grid share the pages of the
// due rows and heads, a warp takes those of a step at a time (page_scorer.cuh), and the last blocks
// of the grid make the lists (group_lists.cuh). These wait for a count of each row's and head's
// steps: all blocks have room at once, or those that score come first and end.
//
// Blocks plan before they wait: nothing that a step writes before this kernel says which lists are
// due, unless queries are judged by their distance. So whoever selects twice from the same lists,
// some of which have no count yet, must let the first one end before: otherwise blocks plan
// differently, counts of steps are left over, and lists hold anything.
#include "kernels/cuda/group_lists.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_scorer.cuh"
#include "kernels/cuda/select_units.cuh"
#include "kernels/cuda/work_plan.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kShortShare = 8;  // turns of a block, at most, that has a short share
constexpr int32_t kMakers = 32;     // of lists, at most

template <int32_t kDim, PageScore kScore, int32_t kSets>
constexpr int32_t kRingBytes = kScore == PageScore::kSketch ? SketchRing<kDim, kSets>::kBytes : 0;

// The warps' rings; a list is made in their place.
template <int32_t kDim, PageScore kScore, int32_t kSets>
constexpr int32_t kScoreSharedBytes =
    std::max<int32_t>(kScoreWarps* kRingBytes<kDim, kScore, kSets>, sizeof(GroupListShared));

// tickets: zeros, one for each row and head and one for the grid; zeros again when the kernel ends.
// makers: of the grid's last blocks, those that make lists; 0: another kernel does.
template <int32_t kDim, PageScore kScore, int32_t kSets>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks<kDim, kScore>)
    ScoreUnitsKernel(const __grid_constant__ SelectUnitsParams params, int32_t* tickets,
                     int32_t makers) {
  using Scorer = PageScorer<kDim, kScore, kSets>;
  __shared__ PlanShared plan;
  __shared__ float open_scores[kPageUnits];
  LetNextKernelStart();
  const int32_t pairs = params.batch.counts[kDecodeRows] * params.retrieval.layout.heads;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const auto grid = static_cast<int32_t>(gridDim.x) - makers;
  int32_t* grid_ticket = tickets + MaxPairs(params);
  const bool due = AnyIsDue(params, pairs);
  if (!due && blockIdx.x != gridDim.x - 1) {
    return;  // the last block waits for all
  }
  const bool last_counts = makers > 0 && due && CountsComeLast(params);
  if (block >= grid) {
    MakeLists<Scorer>(params, pairs, block - grid, makers, last_counts, tickets,
                      *reinterpret_cast<GroupListShared*>(SharedMemory()));
    CountLists(params, pairs, last_counts, grid_ticket);
    return;
  }
  std::byte* stages = SharedMemory() + static_cast<int32_t>(threadIdx.x) / kWarpLanes *
                                           kRingBytes<kDim, kScore, kSets>;
  bool waited = params.policy.reuse_distance > 0.0f;
  if (waited) {
    WaitForEarlierKernels();
  }
  for (int32_t base = 0; base < pairs; base += kPlanPairs) {
    const int32_t count = min(kPlanPairs, pairs - base);
    const int32_t steps = PlanItems<kScoreThreads>(base, count, plan, [&](int32_t index) {
      const SelectionPair pair(params, index);
      return IsDue(params, pair, index) ? Scorer::StepsOf(params, pair) : 0;
    });
    if (steps == 0) {
      continue;
    }
    // All blocks as much, in turns. A block that goes from one pair to the next begins anew; where
    // shares are short, what it has of a second pair goes to a block of its own.
    const int32_t turns = DivideUp(steps, Scorer::kTurn);
    const bool apart = count <= grid / 8 && turns <= grid * kShortShare;
    const int32_t sharing = apart ? grid - count : grid;
    const auto cut = [&](int32_t place) {
      const auto turn = static_cast<uint32_t>(place) * static_cast<uint32_t>(turns) /
                        static_cast<uint32_t>(sharing);
      return min(static_cast<int32_t>(turn) * Scorer::kTurn, steps);
    };
    int32_t begin = 0;
    int32_t end = 0;
    if (block < sharing) {
      begin = cut(block);
      end = cut(block + 1);
    } else if (const int32_t second = block - sharing + 1; second < count) {
      begin = plan.first_item[second];
      const auto turn = static_cast<uint32_t>(DivideUp(begin, Scorer::kTurn));
      const auto next_cut =
          (turn * static_cast<uint32_t>(sharing) + static_cast<uint32_t>(turns) - 1) /
          static_cast<uint32_t>(turns);
      end = min(cut(static_cast<int32_t>(next_cut)), plan.first_item[second + 1]);
    }
    while (begin < end) {
      const int32_t planned = PlannedPair(plan, count, begin);
      const int32_t first = plan.first_item[planned];
      const int32_t pair_end = min(end, plan.first_item[planned + 1]);
      const int32_t index = base + planned;
      const SelectionPair pair(params, index);
      float* maxima = makers > 0 ? GroupMaxima(params, index) : nullptr;
      Scorer(params, pair, stages, open_scores, maxima, waited)
          .Run(begin - first, pair_end - first);
      if (makers > 0) {
        __syncthreads();
        if (threadIdx.x == 0) {
          Announce(tickets + index, pair_end - begin);
        }
      }
      begin = apart ? end : pair_end;
    }
  }
  if (!waited) {
    WaitForEarlierKernels();
  }
  if (makers > 0) {
    CountLists(params, pairs, last_counts, grid_ticket);
  }
}

template <int32_t kDim>
void LaunchScoreUnits(const SelectUnitsParams& params, int32_t* tickets, cudaStream_t stream) {
  const int64_t items = MaxPairs(params) * DivideUp(params.retrieval.max_pages, kScoreWarps);
  const auto launch = [&]<PageScore kScore, int32_t kSets>() {
    const int32_t makers = ListsByGroups(params)
                               ? static_cast<int32_t>(std::min<int64_t>(MaxPairs(params), kMakers))
                               : 0;
    const int32_t blocks = PersistentBlocks(items + makers, kScoreBlocks<kDim, kScore>);
    LaunchDependent("select_units", ScoreUnitsKernel<kDim, kScore, kSets>,
                    dim3(static_cast<unsigned>(blocks)), kScoreThreads,
                    kScoreSharedBytes<kDim, kScore, kSets>, stream, params, tickets, makers);
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

bool ListsByGroups(const SelectUnitsParams& params) {
  return params.policy.token_budget / params.policy.unit_tokens <= kMaxGroupPlaces;
}

void ScoreUnits(const SelectUnitsParams& params, int32_t* tickets, cudaStream_t stream) {
  const int32_t padded = params.retrieval.layout.padded_head_dim;
  if (padded == 32) {
    LaunchScoreUnits<32>(params, tickets, stream);
  } else if (padded == 64) {
    LaunchScoreUnits<64>(params, tickets, stream);
  } else if (padded == 96) {
    LaunchScoreUnits<96>(params, tickets, stream);
  } else if (padded == 128) {
    LaunchScoreUnits<128>(params, tickets, stream);
  } else {
    LaunchScoreUnits<256>(params, tickets, stream);
  }
}

}  // namespace lserve::cuda
