// What a variant of unit selection computes: the group scores of the logical pages of a run of
// pages, for one row and KV head. The driver (select_units.cc) walks rows and heads and keeps the
// best units. Plain structs.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

struct PageScoreRun {
  // In. A head's score is the dot product of q_pairs with the statistics: the sum over dims of
  // q- min + q+ max, since max(q max, q min) = q+ max + q- min.
  const uint16_t* q_pairs;       // [group, padded_head_dim, (q-, q+)] bf16
  const uint16_t* const* stats;  // [pages] a head's statistics in a page (page_layout.h)
  int32_t pages;
  int32_t group;
  int32_t padded_head_dim;
  float scale;  // 1 / sqrt(head_dim)
  // Out: the maximum over the group; NaN counts as minus infinity.
  float* scores;  // [pages, 4]
};

struct SelectVariant {
  const char* name;
  bool (*supports)();
  void (*run)(const PageScoreRun& run);
};

// In order of preference; the last one runs everywhere.
std::span<const SelectVariant> SelectVariants();

// One variant each; listed by SelectVariants().
SelectVariant Avx512SelectVariant();
SelectVariant HighwaySelectVariant();

// Runs the operation with a given variant; for tests and benchmarks.
void RunSelectUnits(const SelectUnitsParams& params, const SelectVariant& variant, Team& team);

}  // namespace lserve::cpu
