// Unit selection: which rows and heads are due, their unit scores, and the exact best of them. The
// arithmetic of a page score is a kernel's (select_units_kernel.h).
//
// Scores go to the workspace by segments of a fixed number of pages, shared among the threads;
// after a barrier each row and head finds its budget's cut-off score and writes its list.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/select_units_kernel.h"
#include "kernels/cpu/variant.h"
#include "kernels/query_distance.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kSegmentPages = 32;  // 2048 tokens
constexpr int32_t kPageUnits = kPageTokens / kLogicalPageTokens;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

int64_t MaxUnits(const SelectUnitsParams& params) {
  return int64_t{params.retrieval.max_pages} * (kPageTokens / params.policy.unit_tokens);
}

// A thread's scratch.
struct SelectScratch {
  const std::byte** stats;  // [kSegmentPages]
  uint16_t* q_pairs;        // [group, padded head dim, 2], for kMinMax
  float* queries;           // [group, padded head dim], for kSketch
  float* page_scores;       // [kSegmentPages, 4]
  uint32_t* keys;           // [max units], for the cut-off
  uint8_t* due;             // [max_decode_rows, retrieval heads]
};

// Carves the parts off `memory`; with null it only counts the bytes.
int64_t LayOut(const SelectUnitsParams& params, std::byte* memory, SelectScratch* scratch) {
  int64_t offset = 0;
  const auto take = [&](auto*& part, int64_t count) {
    using T = std::remove_reference_t<decltype(*part)>;
    if (memory != nullptr) {
      part = reinterpret_cast<T*>(memory + offset);
    }
    offset += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  };
  const KvPageLayout& layout = params.retrieval.layout;
  take(scratch->stats, kSegmentPages);
  take(scratch->q_pairs, int64_t{params.group} * layout.padded_head_dim * 2);
  take(scratch->queries, int64_t{params.group} * layout.padded_head_dim);
  take(scratch->page_scores, kSegmentPages * kPageUnits);
  take(scratch->keys, MaxUnits(params));
  take(scratch->due, int64_t{params.batch.max_decode_rows} * layout.heads);
  return offset;
}

// Orders as the floats do; -0 counts as 0.
uint32_t OrderedBits(float x) {
  const auto bits = std::bit_cast<uint32_t>(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The `places`-th largest key, 1 <= places <= keys.size(); reorders keys. A histogram of the
// leading bits of the keys' range finds the few that compete for the last place.
uint32_t CutOff(std::span<uint32_t> keys, int32_t places) {
  constexpr int kBits = 8;
  uint32_t base = ~0u;
  uint32_t highest = 0;
  for (const uint32_t key : keys) {
    base = std::min(base, key);
    highest = std::max(highest, key);
  }
  const int shift = std::max(0, static_cast<int>(std::bit_width(highest - base)) - kBits);
  std::array<int32_t, 1 << kBits> histogram{};
  for (const uint32_t key : keys) {
    ++histogram[(key - base) >> shift];
  }
  auto bucket = static_cast<uint32_t>(histogram.size()) - 1;
  while (histogram[bucket] < places) {
    places -= histogram[bucket--];
  }
  const auto rivals = std::partition(keys.begin(), keys.end(),
                                     [=](uint32_t key) { return (key - base) >> shift == bucket; });
  std::nth_element(keys.begin(), keys.begin() + places - 1, rivals, std::greater<>());
  return keys[static_cast<size_t>(places) - 1];
}

class UnitSelector {
 public:
  UnitSelector(const SelectUnitsParams& params, const SelectVariant& variant, Team& team)
      : params_(params),
        variant_(variant),
        team_(team),
        heads_(params.retrieval.layout.heads),
        pairs_(int64_t{params.batch.counts[kDecodeRows]} * heads_) {
    LayOut(params, team.Scratch(LayOut(params, nullptr, &scratch_)), &scratch_);
  }

  void Run() {
    // Asked once, before the barrier: the lists that answer it are written after.
    bool any_due = false;
    for (int64_t pair = 0; pair < pairs_; ++pair) {
      scratch_.due[pair] = Due(pair) ? 1 : 0;
      any_due = any_due || scratch_.due[pair] != 0;
    }
    if (any_due) {  // the same on every thread
      ScoreDuePairs();
      team_.Barrier();
    }
    for (int64_t pair = team_.thread(); pair < pairs_; pair += team_.threads()) {
      if (scratch_.due[pair] != 0) {
        WriteList(pair);
      } else if (ReadsAll(params_.policy, Tokens(pair))) {
        params_.lists.counts[List(pair)] = -1;
      }
    }
  }

 private:
  void ScoreDuePairs() {
    // Tasks are numbered through all due pairs of row and head; the shared counter only moves
    // forward, so a thread keeps its place.
    int64_t task = team_.Next();
    int64_t base = 0;
    for (int64_t pair = 0; pair < pairs_; ++pair) {
      if (scratch_.due[pair] == 0) {
        continue;
      }
      const int32_t segments = DivideUp(Pages(pair), kSegmentPages);
      for (bool fresh = true; task < base + segments; task = team_.Next(), fresh = false) {
        if (fresh) {
          PrepareQueries(pair);
        }
        ScoreSegment(pair, static_cast<int32_t>(task - base) * kSegmentPages);
      }
      base += segments;
    }
  }

  int64_t Row(int64_t pair) const { return pair / heads_; }
  int64_t Head(int64_t pair) const { return pair % heads_; }
  int32_t Slot(int64_t pair) const { return params_.batch.row_slot[Row(pair)]; }
  int32_t Tokens(int64_t pair) const { return params_.batch.row_position[Row(pair)] + 1; }
  int32_t Pages(int64_t pair) const { return DivideUp(Tokens(pair), kPageTokens); }
  int64_t List(int64_t pair) const {
    return int64_t{Slot(pair)} * params_.lists.slot_lists + params_.lists.first_list + Head(pair);
  }
  float* UnitScores(int64_t pair) const {
    float* scores =
        params_.scores != nullptr ? params_.scores : static_cast<float*>(params_.workspace);
    return scores + pair * MaxUnits(params_);
  }

  // [group, head_dim] each.
  const BFloat16* Queries(int64_t pair) const {
    return static_cast<const BFloat16*>(params_.q) +
           (Row(pair) * params_.q_heads + Head(pair) * params_.group) *
               params_.retrieval.layout.head_dim;
  }
  BFloat16* ListQueries(int64_t pair) const {
    return static_cast<BFloat16*>(params_.lists.queries) +
           List(pair) * params_.group * params_.retrieval.layout.head_dim;
  }

  bool Due(int64_t pair) const {
    const SelectionPolicy& policy = params_.policy;
    if (ReadsAll(policy, Tokens(pair))) {
      return false;
    }
    const int32_t generated = Tokens(pair) - 1 - params_.prompt_tokens[Slot(pair)];
    if (generated % policy.reuse_interval == 0 || params_.lists.counts[List(pair)] < 0) {
      return true;
    }
    return policy.reuse_distance > 0.0f &&
           QueryMoved(Queries(pair), ListQueries(pair), params_.group,
                      params_.retrieval.layout.head_dim, policy.reuse_distance);
  }

  // The group's queries, widened, and split into their negative and positive parts.
  void PrepareQueries(int64_t pair) {
    const KvPageLayout& layout = params_.retrieval.layout;
    const BFloat16* q = Queries(pair);
    for (int32_t g = 0; g < params_.group; ++g) {
      uint16_t* to = scratch_.q_pairs + int64_t{g} * layout.padded_head_dim * 2;
      for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
        const uint16_t x = d < layout.head_dim ? q[g * layout.head_dim + d].bits : uint16_t{0};
        const bool negative = (x & 0x8000u) != 0;
        to[2 * d] = negative ? x : uint16_t{0};
        to[2 * d + 1] = negative ? uint16_t{0} : x;
        scratch_.queries[int64_t{g} * layout.padded_head_dim + d] = ToFloat(BFloat16{x});
      }
    }
  }

  void ScoreSegment(int64_t pair, int32_t first_page) {
    const RetrievalLane& lane = params_.retrieval;
    const KvPageLayout& layout = lane.layout;
    const int64_t slot = Slot(pair);
    const int32_t open_page = Pages(pair) - 1;
    const auto head = static_cast<int32_t>(Head(pair));
    const KvPageLayout open_layout = layout.open();
    const std::byte* open = lane.open + slot * open_layout.page_bytes();
    const int32_t pages = std::min(kSegmentPages, Pages(pair) - first_page);
    const bool sketch = layout.score == PageScore::kSketch;
    PageScoreRun run;
    for (int32_t i = 0; i < pages; ++i) {
      const int32_t page = first_page + i;
      scratch_.stats[i] = page == open_page
                              ? open + open_layout.stats_offset(head)
                              : lane.pages +
                                    lane.table[slot * lane.max_pages + page] * layout.page_bytes() +
                                    layout.stats_offset(head);
    }
    run.pages = sketch && first_page + pages > open_page ? pages - 1 : pages;
    run.q_pairs = scratch_.q_pairs;
    run.queries = scratch_.queries;
    run.stats = scratch_.stats;
    run.group = params_.group;
    run.padded_head_dim = layout.padded_head_dim;
    run.scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim));
    run.scores = scratch_.page_scores;
    (sketch ? variant_.sketch : variant_.min_max)(run);
    if (run.pages < pages) {  // the open page has no sketch yet
      ScoreOpenKeys({run.queries,
                     reinterpret_cast<const uint16_t*>(open + open_layout.key_offset(head)),
                     Tokens(pair) - open_page * kPageTokens, run.group, run.padded_head_dim,
                     run.scale, run.scores + run.pages * kPageUnits});
    }
    // Logical pages without a token have no statistics.
    const int32_t logical_pages =
        DivideUp(Tokens(pair), kLogicalPageTokens) - first_page * kPageUnits;
    std::fill(run.scores + std::min(logical_pages, pages * kPageUnits),
              run.scores + pages * kPageUnits, kMinusInf);
    const int32_t unit_pages = params_.policy.unit_tokens / kLogicalPageTokens;
    float* units = UnitScores(pair) + int64_t{first_page} * kPageUnits / unit_pages;
    for (int32_t u = 0; u < pages * kPageUnits / unit_pages; ++u) {
      units[u] = *std::max_element(run.scores + u * unit_pages, run.scores + (u + 1) * unit_pages);
    }
  }

  void WriteList(int64_t pair) {
    const int32_t unit_tokens = params_.policy.unit_tokens;
    const int32_t kept = params_.policy.token_budget / unit_tokens;
    const int32_t units = DivideUp(Tokens(pair), unit_tokens);
    const int32_t newest = FirstForcedNewestUnit(Tokens(pair), unit_tokens);
    const int32_t candidates = newest - 1;  // units 1 to newest - 1 compete
    const int32_t places = kept - 1 - (units - newest);
    DCHECK(places >= 0 && places <= candidates);
    float* scores = UnitScores(pair);

    // The score of the last place, and how many units above it.
    const std::span<uint32_t> keys(scratch_.keys, static_cast<size_t>(candidates));
    std::transform(scores + 1, scores + newest, keys.begin(), OrderedBits);
    uint32_t cut = ~0u;
    int32_t ties = 0;  // places left for units with the cut-off score, lower first
    if (places > 0) {
      cut = CutOff(keys, places);
      ties = places - static_cast<int32_t>(std::count_if(keys.begin(), keys.end(),
                                                         [=](uint32_t key) { return key > cut; }));
    }

    int32_t* list = params_.lists.units + List(pair) * params_.lists.capacity;
    int32_t count = 0;
    list[count++] = 0;
    for (int32_t u = 1; u < newest && count <= places; ++u) {
      const uint32_t key = OrderedBits(scores[u]);
      if (key > cut || (key == cut && ties-- > 0)) {
        list[count++] = u;
      }
    }
    for (int32_t u = newest; u < units; ++u) {
      list[count++] = u;
    }
    params_.lists.counts[List(pair)] = count;
    if (params_.lists.made != nullptr) {
      ++params_.lists.made[List(pair)];
    }
    if (params_.lists.queries != nullptr) {
      std::copy_n(Queries(pair), int64_t{params_.group} * params_.retrieval.layout.head_dim,
                  ListQueries(pair));
    }
    if (params_.scores != nullptr) {
      std::fill(scores + units, scores + MaxUnits(params_), kMinusInf);
    }
  }

  const SelectUnitsParams& params_;
  const SelectVariant& variant_;
  Team& team_;
  const int32_t heads_;
  const int64_t pairs_;
  SelectScratch scratch_{};
};

}  // namespace

std::span<const SelectVariant> SelectVariants() {
  static const std::array<SelectVariant, 2> kVariants = {Avx512SelectVariant(),
                                                         HighwaySelectVariant()};
  return kVariants;
}

void RunSelectUnits(const SelectUnitsParams& params, const SelectVariant& variant, Team& team) {
  DCHECK(params.dtype == DType::kBFloat16);
  if (params.batch.counts[kDecodeRows] == 0 || params.retrieval.layout.heads == 0) {
    return;
  }
  UnitSelector(params, variant, team).Run();
}

int64_t SelectUnitsWorkspace(const SelectUnitsParams& params) {
  return int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads * MaxUnits(params) *
         static_cast<int64_t>(sizeof(float));
}

void RunSelectUnits(const SelectUnitsParams& params, Team& team) {
  RunSelectUnits(params, FirstSupported(SelectVariants()), team);
}

const char* SelectUnitsVariant(const SelectUnitsParams& /*params*/) {
  return FirstSupported(SelectVariants()).name;
}

}  // namespace lserve::cpu
