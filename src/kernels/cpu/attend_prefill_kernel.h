// What a variant of prefill attention computes: one step of one row tile. The driver
// (attend_prefill.cc) walks chunks, heads, query blocks and block lists; a kernel sees a few
// blocks of keys and values and a tile of query rows with their running softmax. Plain structs.
//
// A row's result depends on its own query, its position and the blocks of each step alone: kernels
// treat rows independently and in one order of keys, so the chunking cannot show (equality E1).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

inline constexpr int32_t kRowTile = 32;  // query rows that a kernel takes at once
inline constexpr int32_t kStepBlocks = kPrefillStepBlocks;
inline constexpr int32_t kStepTokens = kStepBlocks * 64;
inline constexpr int32_t kScoreStride = kStepTokens + 16;        // floats; spreads the cache sets
inline constexpr int32_t kProbabilityStride = kStepTokens + 32;  // bf16

struct PrefillBlock {
  const uint16_t* keys;    // a head's key plane of a page (page_layout.h)
  const uint16_t* values;  // its value plane; tokens that do not exist are zero
  int32_t first_position;  // of its first token
  bool edge;               // some row of the tile does not see all of its tokens
};

struct PrefillTile {
  // In.
  const uint16_t* q;           // [kRowTile, padded_head_dim] bf16
  const int32_t* positions;    // [kRowTile]
  const PrefillBlock* blocks;  // [block_count], at most kStepBlocks
  int32_t block_count;
  int32_t padded_head_dim;
  int32_t sink_tokens;  // the row at i sees j <= i with j < sink_tokens or i - j < local_tokens
  int32_t local_tokens;
  float scale;  // log2(e) / sqrt(head_dim): softmax in powers of two
  // [kRowTile] log2 of the share of a row's largest weight below which it leaves a block out: -inf
  // to leave out none, +inf for rows that do not count. Null: no row leaves out any.
  const float* thresholds;
  // In and out: the softmax so far.
  float* row_max;  // [kRowTile] of unscaled scores, -inf before the first key
  float* row_sum;  // [kRowTile]
  float* output;   // [kRowTile, padded_head_dim], not yet divided by the sum
  // Scratch, aligned to 64 bytes.
  float* scores;            // [kRowTile, kScoreStride]
  uint16_t* probabilities;  // [kRowTile, kProbabilityStride] bf16
  float* staging;           // [kRowTile, padded_head_dim]
};

// What a step's scores say: the blocks that rows weigh, and the running maxima.
struct StepScores {
  uint32_t weighed = 0;             // bit b: some row weighs block b
  uint32_t rows[kStepBlocks] = {};  // bit r: row r weighs the block; where rows leave blocks out
  alignas(64) float row_max[kRowTile];

  bool Weighs(int32_t row, int32_t block) const { return (rows[block] >> row & 1) != 0; }
};

struct PrefillVariant {
  const char* name;
  bool (*supports)();
  void (*begin)();  // on every thread, before its first tile
  // Returns how many of the blocks some row weighed.
  int32_t (*run)(const PrefillTile& tile);
  void (*end)();  // after its last
};

// In order of preference; the last one runs everywhere.
std::span<const PrefillVariant> PrefillVariants();

// One variant each; listed by PrefillVariants().
PrefillVariant AmxPrefillVariant();
PrefillVariant Avx512PrefillVariant();
PrefillVariant HighwayPrefillVariant();

// Runs the operation with a given variant; for tests and benchmarks.
void RunAttendPrefill(const AttendPrefillParams& params, const PrefillVariant& variant, Team& team);

// Whether the row at `position` sees key `key`.
constexpr bool SeesKey(int32_t position, int32_t key, int32_t sink_tokens, int32_t local_tokens) {
  return key <= position && (key < sink_tokens || position - key < local_tokens);
}

}  // namespace lserve::cpu
