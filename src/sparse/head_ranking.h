// Ranking KV heads by how little the model misses the whole context in them, from measured losses
// alone: the search of `lserve calibrate`. Free functions, thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "sparse/head_plan.h"

namespace lserve {

// Mean losses in nats, of `base` and then of each variant. The search asks for variants that add
// one head to the base, and for lone bases.
using LossFunction = std::function<Result<std::vector<double>>(const HeadSet& base,
                                                               std::span<const HeadSet> variants)>;

struct HeadRanking {
  std::vector<int32_t> order;  // heads by number, the first to stream first
  std::vector<double> rises;   // by place in `order`: what the loss gained when the head streamed
                               // beside the heads that were ranked when it was measured
  std::vector<double> alone;   // by head: what the loss gains when it streams alone
};

// Backward elimination by halves. Heads that are harmless alone may stand in for each other, so a
// head's rise is measured again beside those that already stream: in each round every head left is
// tried, and the half with the lowest rises (ties: the lower number) is ranked together. If its
// joint rise exceeds `tolerance` plus twice the sum of the single rises, the half hides such heads
// and is halved itself, down to one head. About 2 * heads losses when none do.
// Errors: those of `losses`; kInternal (a loss is not finite).
Result<HeadRanking> RankHeads(int32_t heads, double tolerance, const LossFunction& losses);

// A gate for each head of a ranking: with c_k the largest rise, at least 0, among the first k + 1
// places of N,
//   gate_k = (k + 1) / (10 N) + 0.9 c_k / (c_k + 0.01 nats), rounded to 6 decimals.
// It grows with the place, so HeadPlan::FromGates streams the first heads of the order at every
// share, and above 0.1 it tells what the head is worth. `ranking` orders layers * kv_heads heads.
HeadGates GatesFromRanking(const HeadRanking& ranking, int32_t layers, int32_t kv_heads);

}  // namespace lserve
