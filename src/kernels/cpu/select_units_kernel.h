// What a variant of unit selection computes: the group scores of the 16-token units of a run of
// pages, for one row and KV head. The driver (select_units.cc) walks rows and heads and keeps the
// best units. Plain structs.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

struct PageScoreRun {
  // In.
  // kMinMax: a head's score is the dot product of q_pairs with the statistics: the sum over dims of
  // q- min + q+ max, since max(q max, q min) = q+ max + q- min.
  const uint16_t* q_pairs;  // [group, padded_head_dim, (q-, q+)] bf16
  // kSketch: with k = lo + (c + 1/2) step, q k is the sum over dims of q (lo + step / 2) + (q step)
  // c. The first part and the weights q step are made once a page, for its 64 tokens. A variant may
  // round the weights to 2^-16 of the head's largest, w: a score is then within 3 sqrt(head_dim) w
  // 2^-16 of the definition.
  const float* queries;           // [group, padded_head_dim]
  const std::byte* const* stats;  // [pages] a head's statistics in a page (page_layout.h)
  int32_t pages;
  int32_t group;
  int32_t padded_head_dim;
  float scale;  // 1 / sqrt(head_dim)
  // Out: the maximum over the group; NaN counts as minus infinity.
  float* scores;  // [pages, 4]
};

// The keys of an open page as they are: what its units score under kSketch.
struct KeyScoreRun {
  const float* queries;  // [group, padded_head_dim]
  const uint16_t* keys;  // a head's keys in the page (page_layout.h)
  int32_t tokens;        // 1 to 64; the others score nothing
  int32_t group;
  int32_t padded_head_dim;
  float scale;
  float* scores;  // [4], out
};

struct SelectVariant {
  const char* name;
  bool (*supports)();
  void (*min_max)(const PageScoreRun& run);
  void (*sketch)(const PageScoreRun& run);
};

// In order of preference; the last one runs everywhere.
std::span<const SelectVariant> SelectVariants();

// One variant each; listed by SelectVariants().
SelectVariant Avx512SelectVariant();
SelectVariant HighwaySelectVariant();

// One page a step: not worth variants.
void ScoreOpenKeys(const KeyScoreRun& run);

// Runs the operation with a given variant; for tests and benchmarks.
void RunSelectUnits(const SelectUnitsParams& params, const SelectVariant& variant, Team& team);

}  // namespace lserve::cpu
