// What a variant of decode attention computes: a segment of one row's list for one KV head. The
// driver (attend_decode.cc) walks rows, heads and lists; a kernel sees 16-token units of keys and
// values and the group's query heads, which share each of them. Plain structs.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/boxed.h"
#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu {

// 16 tokens of one head in a page (page_layout.h).
struct DecodeUnit {
  const uint16_t* keys;
  const uint16_t* values;  // tokens that do not exist are zero
  int32_t first_position;
  bool edge;  // the row does not see all of its tokens
};

// The codes of 16 tokens of one head in a boxed page (page_layout.h), all of which the row sees.
struct BoxedUnit {
  const Float16* box;         // [lo, hi][padded_head_dim]
  const uint32_t* planes[4];  // of keys, uppermost bits first: [padded_head_dim / 16][16] each
  const ValueGrid* grids;     // [16]
  const std::byte* values;    // [8 token pairs][padded_head_dim]
};

struct DecodeSegment {
  // In.
  const uint16_t* q;        // [group, padded_head_dim] bf16
  const DecodeUnit* units;  // [unit_count], at least 1, in the order of the list
  int32_t unit_count;
  // The first units of the list, in a boxed lane; their keys and values in `units` are null. 0
  // unless the variant reads codes.
  const BoxedUnit* boxed;  // [boxed_count]
  int32_t boxed_count;
  int32_t code_bits;  // 4 or 8
  int32_t group;
  int32_t padded_head_dim;
  int32_t position;      // of the row
  int32_t sink_tokens;   // it sees j <= position with j < sink_tokens or
  int32_t local_tokens;  // position - j < local_tokens
  float scale;           // log2(e) / sqrt(head_dim): softmax in powers of two
  // Scratch, aligned to 64 bytes.
  float* scores;            // [group, unit_count * 16]
  uint16_t* probabilities;  // [group, unit_count * 16] bf16
  // Out: per query head a record of record_stride floats: the maximum of the unscaled scores, the
  // sum of 2^(scale * (score - maximum)), and from kRecordOutput on the output, not yet divided.
  // What lies between is the variant's own.
  float* records;
  int64_t record_stride;
};

inline constexpr int32_t kRecordOutput = 16;  // keeps the output aligned to 64 bytes

struct DecodeVariant {
  const char* name;
  bool (*supports)();
  void (*run)(const DecodeSegment& segment);
  // Multiplies with the codes of boxed units as they are, in full precision where they would be
  // rounded to bf16; otherwise the driver reads them back.
  bool reads_codes;
};

// In order of preference; the last one runs everywhere.
std::span<const DecodeVariant> DecodeVariants();

// One variant each; listed by DecodeVariants().
DecodeVariant Avx512DecodeVariant();
DecodeVariant HighwayDecodeVariant();

// Runs the operation with a given variant; for tests and benchmarks.
void RunAttendDecode(const AttendDecodeParams& params, const DecodeVariant& variant, Team& team);

}  // namespace lserve::cpu
