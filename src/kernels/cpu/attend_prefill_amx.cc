// Prefill attention on AMX tiles. Both products read the cache in place: a unit of keys is the B
// tile of Q K^T (16 dim pairs x 16 tokens), 32 tokens of values that of P V (16 token pairs x 16
// dims). Tile loads are the limit, not products, so operands stay in tiles as long as they can.
#include "kernels/cpu/attend_prefill_avx512.h"  // before other headers: it includes the intrinsics

#include <bit>

namespace lserve::cpu {
namespace {

// The compiler does not know that tile instructions read memory.
inline void MemoryFence() { __asm__ volatile("" ::: "memory"); }

// Tile registers 0 to 7: 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

LSERVE_TARGET_AMX_BF16 void Begin() {
  static constexpr TileConfig kConfig;
  MemoryFence();
  _tile_loadconfig(&kConfig);
}

LSERVE_TARGET_AMX_BF16 void End() { _tile_release(); }

constexpr int64_t kScoreBytes = kScoreStride * 4;
constexpr int64_t kProbabilityBytes = kProbabilityStride * 2;

// Scores of 32 rows of 64 dims: the queries stay in tiles 4 to 7.
LSERVE_TARGET_AMX_BF16 void Scores64(const PrefillTile& tile) {
  constexpr int64_t kRowBytes = 64 * 2;
  _tile_loadd(4, tile.q, kRowBytes);
  _tile_loadd(5, tile.q + 32, kRowBytes);
  _tile_loadd(6, tile.q + 16 * 64, kRowBytes);
  _tile_loadd(7, tile.q + 16 * 64 + 32, kRowBytes);
  for (int32_t b = 0; b < tile.block_count; ++b) {
    const uint16_t* keys = tile.blocks[b].keys;
    float* scores = tile.scores + b * 64;
    for (int32_t unit = 0; unit < 4; ++unit, keys += 16 * 64, scores += 16) {
      _tile_loadd(2, keys, 64);
      _tile_loadd(3, keys + 16 * 32, 64);
      _tile_zero(0);
      _tile_zero(1);
      _tile_dpbf16ps(0, 4, 2);
      _tile_dpbf16ps(1, 6, 2);
      _tile_dpbf16ps(0, 5, 3);
      _tile_dpbf16ps(1, 7, 3);
      _tile_stored(0, scores, kScoreBytes);
      _tile_stored(1, scores + 16 * kScoreStride, kScoreBytes);
    }
  }
}

// Scores of any padded head size: 32 rows x 32 tokens at a time.
LSERVE_TARGET_AMX_BF16 void ScoresAny(const PrefillTile& tile) {
  const int32_t dims = tile.padded_head_dim;
  const int64_t row_bytes = int64_t{dims} * 2;
  for (int32_t b = 0; b < tile.block_count; ++b) {
    for (int32_t half = 0; half < 2; ++half) {
      const uint16_t* keys = tile.blocks[b].keys + int64_t{half} * 32 * dims;
      float* scores = tile.scores + b * 64 + half * 32;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int32_t d = 0; d < dims; d += 32) {
        _tile_loadd(4, tile.q + d, row_bytes);
        _tile_loadd(6, keys + int64_t{d} * 16, 64);
        _tile_loadd(7, keys + int64_t{d} * 16 + int64_t{16} * dims, 64);
        _tile_loadd(5, tile.q + int64_t{16} * dims + d, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, scores, kScoreBytes);
      _tile_stored(1, scores + 16, kScoreBytes);
      _tile_stored(2, scores + 16 * kScoreStride, kScoreBytes);
      _tile_stored(3, scores + 16 * kScoreStride + 16, kScoreBytes);
    }
  }
}

// output += P V, 32 rows x 32 dims at a time; they stay in tiles 0 to 3 over the step's keys.
LSERVE_TARGET_AMX_BF16 void AddValues(const PrefillTile& tile, uint32_t weighed) {
  const int32_t dims = tile.padded_head_dim;
  const int64_t output_bytes = int64_t{dims} * 4;
  for (int32_t d = 0; d < dims; d += 32) {
    float* output = tile.output + d;
    _tile_loadd(0, output, output_bytes);
    _tile_loadd(1, output + 16, output_bytes);
    _tile_loadd(2, output + 16 * dims, output_bytes);
    _tile_loadd(3, output + 16 * dims + 16, output_bytes);
    for (int32_t b = 0; b < tile.block_count; ++b) {
      if ((weighed >> b & 1) == 0) {
        continue;
      }
      const uint16_t* values = tile.blocks[b].values + d * 2;
      const uint16_t* probabilities = tile.probabilities + b * 64;
      for (int32_t half = 0; half < 2; ++half) {
        _tile_loadd(6, values, output_bytes);
        _tile_loadd(4, probabilities, kProbabilityBytes);
        _tile_loadd(7, values + 32, output_bytes);
        _tile_loadd(5, probabilities + 16 * kProbabilityStride, kProbabilityBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        values += int64_t{32} * dims;
        probabilities += 32;
      }
    }
    _tile_stored(0, output, output_bytes);
    _tile_stored(1, output + 16, output_bytes);
    _tile_stored(2, output + 16 * dims, output_bytes);
    _tile_stored(3, output + 16 * dims + 16, output_bytes);
  }
}

LSERVE_TARGET_AMX_BF16 int32_t Run(const PrefillTile& tile) {
  const FlushDenormals flush;
  MemoryFence();
  if (tile.padded_head_dim == 64) {
    Scores64(tile);
  } else {
    ScoresAny(tile);
  }
  MemoryFence();
  const uint32_t weighed = StepSoftmax(tile);
  MemoryFence();
  if (weighed != 0) {
    AddValues(tile, weighed);
  }
  return std::popcount(weighed);
}

}  // namespace

PrefillVariant AmxPrefillVariant() { return {"amx-bf16", HasAmxBf16, Begin, Run, End}; }

}  // namespace lserve::cpu
