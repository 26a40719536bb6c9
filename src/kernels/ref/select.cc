// Page selection of decode rows.
#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/query_distance.h"
#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"
#include "kernels/ref/scalar.h"
#include "kernels/sketch.h"

namespace lserve::ref {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// One query head's score of logical page `logical` of its page, from minima and maxima.
template <typename T>
double MinMaxScore(const T* q, const Page<T>& page, int32_t head, int32_t logical,
                   int32_t head_dim) {
  return PageScoreOf(q, page.Minimum(head, logical), page.Maximum(head, logical), head_dim);
}

// The best of the keys [first, end) of a page: read back from the sketch, or in the open page the
// keys themselves.
template <typename T>
double BestKeyScore(const T* q, const Page<T>& page, int32_t head, int32_t first, int32_t end,
                    bool open) {
  double best = -std::numeric_limits<double>::infinity();
  for (int32_t token = first; token < end; ++token) {
    const double score = KeyScoreOf(
        q,
        [&](int32_t d) {
          if (open) {
            return ToFloat(page.Key(head, token)[d]);
          }
          const float lo = page.Lo(head, d);
          return SketchValue(page.SketchCode(head, token, d), lo, SketchStep(lo, page.Hi(head, d)));
        },
        page.layout().head_dim);
    best = std::max(best, score);  // false for a NaN score
  }
  return best;
}

// The queries of a row's group, [group, head_dim].
template <typename T>
const T* GroupQueries(const SelectUnitsParams& params, int32_t row, int32_t head) {
  return static_cast<const T*>(params.q) +
         (int64_t{row} * params.q_heads + int64_t{head} * params.group) *
             params.retrieval.layout.head_dim;
}

// Group score of every unit of the row's tokens; logical pages without tokens score nothing. A NaN
// score counts as minus infinity.
template <typename T>
std::vector<float> ScoreUnits(const SelectUnitsParams& params, int32_t row, int32_t head) {
  const RetrievalLane& lane = params.retrieval;
  const int32_t slot = params.batch.row_slot[row];
  const int32_t position = params.batch.row_position[row];
  const int32_t head_dim = lane.layout.head_dim;
  const int32_t units = position / params.policy.unit_tokens + 1;
  std::vector<float> scores(static_cast<size_t>(units), kNever);
  for (int32_t token = 0; token <= position; token += kLogicalPageTokens) {
    const Page<T> page = RetrievalPage<T>(lane, slot, token / kPageTokens, position);
    const bool open = token / kPageTokens == position / kPageTokens;
    const int32_t first = token % kPageTokens;
    const int32_t end = first + std::min(kLogicalPageTokens, position + 1 - token);
    float& unit = scores[static_cast<size_t>(token / params.policy.unit_tokens)];
    for (int32_t g = 0; g < params.group; ++g) {
      const T* q = GroupQueries<T>(params, row, head) + int64_t{g} * head_dim;
      const double score = lane.layout.score == PageScore::kSketch
                               ? BestKeyScore(q, page, head, first, end, open)
                               : MinMaxScore(q, page, head, first / kLogicalPageTokens, head_dim);
      unit = std::max(unit, static_cast<float>(score));  // false for a NaN score
    }
  }
  return scores;
}

// Unit 0, the forced newest units, then the highest scores, equal scores to the lower unit;
// `capacity` units in ascending order.
std::vector<int32_t> KeepUnits(const std::vector<float>& scores, int32_t capacity,
                               int32_t first_forced) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto forced = [&](int32_t unit) { return unit == 0 || unit >= first_forced; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (forced(a) != forced(b)) {
      return forced(a);
    }
    return !forced(a) && scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(capacity)));
  std::sort(order.begin(), order.end());
  return order;
}

// Whether the row's list `index` is due, and the queries that it is judged by.
template <typename T>
bool Due(const SelectUnitsParams& params, int32_t row, int32_t head, int64_t index) {
  const SelectionPolicy& policy = params.policy;
  const int32_t head_dim = params.retrieval.layout.head_dim;
  const int32_t generated =
      params.batch.row_position[row] - params.prompt_tokens[params.batch.row_slot[row]];
  if (generated % policy.reuse_interval == 0 || params.lists.counts[index] < 0) {
    return true;
  }
  return policy.reuse_distance > 0.0f &&
         QueryMoved(GroupQueries<T>(params, row, head),
                    static_cast<const T*>(params.lists.queries) + index * params.group * head_dim,
                    params.group, head_dim, policy.reuse_distance);
}

// Makes list `index` of the row.
template <typename T>
void Select(const SelectUnitsParams& params, int32_t row, int32_t head, int64_t index) {
  const UnitLists& lists = params.lists;
  const int32_t unit_tokens = params.policy.unit_tokens;
  const int32_t tokens = params.batch.row_position[row] + 1;
  const std::vector<float> scores = ScoreUnits<T>(params, row, head);
  const std::vector<int32_t> kept =
      KeepUnits(scores, lists.capacity, FirstForcedNewestUnit(tokens, unit_tokens));
  std::copy(kept.begin(), kept.end(), lists.units + index * lists.capacity);
  lists.counts[index] = static_cast<int32_t>(kept.size());
  if (lists.made != nullptr) {
    ++lists.made[index];
  }
  if (lists.queries != nullptr) {
    const int64_t elements = int64_t{params.group} * params.retrieval.layout.head_dim;
    std::copy_n(GroupQueries<T>(params, row, head), elements,
                static_cast<T*>(lists.queries) + index * elements);
  }
  if (params.scores != nullptr) {
    const int64_t max_units = int64_t{params.retrieval.max_pages} * kPageTokens / unit_tokens;
    float* output =
        params.scores + (int64_t{row} * params.retrieval.layout.heads + head) * max_units;
    std::fill(std::copy(scores.begin(), scores.end(), output), output + max_units, kNever);
  }
}

}  // namespace

void RunSelectUnits(const SelectUnitsParams& params) {
  CheckBatchLists(params.batch);
  const SelectionPolicy& policy = params.policy;
  const UnitLists& lists = params.lists;
  const int32_t heads = params.retrieval.layout.heads;
  for (int32_t row = 0; row < params.batch.counts[kDecodeRows]; ++row) {
    const int32_t slot = params.batch.row_slot[row];
    const int32_t tokens = params.batch.row_position[row] + 1;
    for (int32_t head = 0; head < heads; ++head) {
      const int64_t index = int64_t{slot} * lists.slot_lists + lists.first_list + head;
      if (ReadsAll(policy, tokens)) {
        lists.counts[index] = -1;
        continue;
      }
      WithActivations(params.dtype, [&]<typename T>() {
        if (Due<T>(params, row, head, index)) {
          Select<T>(params, row, head, index);
        }
      });
    }
  }
}

}  // namespace lserve::ref
