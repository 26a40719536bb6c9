// Whole pages: AppendStreaming, CopyPages, ExportPage, ImportPage.
#include <cstring>

#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/row_ops.h"

namespace lserve::cpu {
namespace {

// Calls move(canonical, stored) for every element that the page holds in bf16; stored elements
// beyond head_dim have a null canonical.
template <typename Move>
void ForElements(const TransferPageParams& params, int32_t head, Move move) {
  const KvPageLayout& layout = params.layout;
  const int32_t padded = layout.padded_head_dim;
  const int64_t dim = layout.head_dim;
  auto* keys = reinterpret_cast<BFloat16*>(params.page + layout.key_offset(head));
  auto* values = reinterpret_cast<BFloat16*>(params.page + layout.value_offset(head));
  for (int32_t token = 0; !layout.boxed() && token < kPageTokens; ++token) {
    const int64_t row = (int64_t{head} * kPageTokens + token) * dim;
    for (int32_t d = 0; d < padded; ++d) {
      const bool real = d < dim;
      move(real ? params.keys + row + d : nullptr, keys + KeyIndex(token, d, padded));
      move(real ? params.values + row + d : nullptr, values + ValueIndex(token, d, padded));
    }
  }
  if (layout.score != PageScore::kMinMax) {
    return;
  }
  auto* stats = reinterpret_cast<BFloat16*>(params.page + layout.stats_offset(head));
  constexpr int32_t kLogicalPages = kPageTokens / kLogicalPageTokens;
  for (int32_t logical = 0; logical < kLogicalPages; ++logical) {
    const int64_t row = (int64_t{head} * kLogicalPages + logical) * 2 * dim;
    for (int32_t d = 0; d < padded; ++d) {
      const bool real = d < dim;
      const int64_t index = StatsIndex(logical, d, padded);
      move(real ? params.stats + row + d : nullptr, stats + index);
      move(real ? params.stats + row + dim + d : nullptr, stats + index + 1);
    }
  }
}

// One head's codes by element.
class CodeElements {
 public:
  CodeElements(const TransferPageParams& params, int32_t head)
      : codes_(params.layout, head, params.page),
        padded_(params.layout.padded_head_dim),
        value_bits_(params.layout.value_bits()) {}

  Float16& Lo(int32_t dim) const { return codes_.box[dim]; }
  Float16& Hi(int32_t dim) const { return codes_.box[padded_ + dim]; }
  ValueGrid& Grid(int32_t token) const { return codes_.grids[token]; }
  float KeyStepOf(int32_t dim) const {
    return KeyStep(ToFloat(Lo(dim)), ToFloat(Hi(dim)), 2 * codes_.plane_count);
  }

  // The sketch's code is that of the uppermost plane.
  int32_t SketchCode(int32_t token, int32_t dim) const { return KeyBits(0, token, dim); }
  int32_t KeyCodeOf(int32_t token, int32_t dim) const {
    int32_t code = 0;
    for (int32_t plane = 0; plane < codes_.plane_count; ++plane) {
      code = code << 2 | KeyBits(plane, token, dim);
    }
    return code;
  }
  void SetKeyCode(int32_t token, int32_t dim, int32_t code) const {
    for (int32_t plane = codes_.plane_count - 1; plane >= 0; --plane, code >>= 2) {
      uint32_t& word = codes_.planes[plane][SketchIndex(token, dim, padded_)];
      word = (word & ~(3u << SketchShift(dim))) | static_cast<uint32_t>(code & 3)
                                                      << SketchShift(dim);
    }
  }

  int32_t ValueCodeOf(int32_t token, int32_t dim) const {
    const std::byte bits = ValueByte(token, dim);
    return std::to_integer<int32_t>(bits >> ValueShift(token)) & ((1 << value_bits_) - 1);
  }
  void SetValueCode(int32_t token, int32_t dim, int32_t code) const {
    std::byte& bits = ValueByte(token, dim);
    const auto mask = static_cast<std::byte>((1 << value_bits_) - 1) << ValueShift(token);
    bits = (bits & ~mask) | static_cast<std::byte>(code) << ValueShift(token);
  }

 private:
  int32_t KeyBits(int32_t plane, int32_t token, int32_t dim) const {
    const uint32_t word = codes_.planes[plane][SketchIndex(token, dim, padded_)];
    return static_cast<int32_t>(word >> SketchShift(dim) & 3u);
  }
  // A pair of tokens shares a byte, or has one each.
  std::byte& ValueByte(int32_t token, int32_t dim) const {
    const int64_t pair = ValueCodeIndex(token, dim, padded_);
    return codes_.values[value_bits_ == 4 ? pair : 2 * pair + token % 2];
  }
  int32_t ValueShift(int32_t token) const { return value_bits_ == 4 ? token % 2 * 4 : 0; }

  HeadCodes codes_;
  int32_t padded_;
  int32_t value_bits_;
};

void ExportSketch(const TransferPageParams& params, int32_t head) {
  const CodeElements codes(params, head);
  const int32_t dim = params.layout.head_dim;
  float* stats = params.stats + int64_t{head} * StatsRows(PageScore::kSketch) * dim;
  for (int32_t d = 0; d < dim; ++d) {
    stats[d] = ToFloat(codes.Lo(d));
    stats[dim + d] = ToFloat(codes.Hi(d));
    for (int32_t t = 0; t < kPageTokens; ++t) {
      stats[int64_t{2 + t} * dim + d] = static_cast<float>(codes.SketchCode(t, d));
    }
  }
}

// Padding has boxes without width and codes of zero.
void ImportSketch(const TransferPageParams& params, int32_t head) {
  const CodeElements codes(params, head);
  const int32_t dim = params.layout.head_dim;
  const float* stats = params.stats + int64_t{head} * StatsRows(PageScore::kSketch) * dim;
  for (int32_t d = 0; d < params.layout.padded_head_dim; ++d) {
    const bool real = d < dim;
    codes.Lo(d) = RoundDownToFloat16(real ? stats[d] : 0.0f);
    codes.Hi(d) = RoundUpToFloat16(real ? stats[dim + d] : 0.0f);
    for (int32_t t = 0; t < kPageTokens; ++t) {
      codes.SetKeyCode(t, d, real ? static_cast<int32_t>(stats[int64_t{2 + t} * dim + d]) : 0);
    }
  }
}

void ExportBoxed(const TransferPageParams& params, int32_t head) {
  const CodeElements codes(params, head);
  const int32_t dim = params.layout.head_dim;
  float* box = params.boxes + int64_t{head} * 2 * dim;
  for (int32_t d = 0; d < dim; ++d) {
    box[d] = ToFloat(codes.Lo(d));
    box[dim + d] = ToFloat(codes.Hi(d));
  }
  for (int32_t t = 0; t < kPageTokens; ++t) {
    const int64_t row = int64_t{head} * kPageTokens + t;
    params.grids[2 * row] = ToFloat(codes.Grid(t).zero);
    params.grids[2 * row + 1] = ToFloat(codes.Grid(t).scale);
    for (int32_t d = 0; d < dim; ++d) {
      params.keys[row * dim + d] =
          KeyOfCode(codes.KeyCodeOf(t, d), ToFloat(codes.Lo(d)), codes.KeyStepOf(d));
      params.values[row * dim + d] = ValueOfCode(codes.ValueCodeOf(t, d), codes.Grid(t));
    }
  }
}

void ImportBoxed(const TransferPageParams& params, int32_t head) {
  const CodeElements codes(params, head);
  const KvPageLayout& layout = params.layout;
  const int32_t dim = layout.head_dim;
  const float* box = params.boxes + int64_t{head} * 2 * dim;
  for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
    codes.Lo(d) = RoundDownToFloat16(d < dim ? box[d] : 0.0f);
    codes.Hi(d) = RoundUpToFloat16(d < dim ? box[dim + d] : 0.0f);
  }
  for (int32_t t = 0; t < kPageTokens; ++t) {
    const int64_t row = int64_t{head} * kPageTokens + t;
    const ValueGrid grid{RoundDownToFloat16(params.grids[2 * row]),
                         RoundUpToFloat16(params.grids[2 * row + 1])};
    codes.Grid(t) = grid;
    for (int32_t d = 0; d < layout.padded_head_dim; ++d) {
      const float key = d < dim ? params.keys[row * dim + d] : 0.0f;
      const float value = d < dim ? params.values[row * dim + d] : 0.0f;
      codes.SetKeyCode(t, d,
                       KeyCode(key, ToFloat(codes.Lo(d)), codes.KeyStepOf(d), layout.key_bits()));
      codes.SetValueCode(t, d, ValueCode(value, grid, layout.value_bits()));
    }
  }
}

}  // namespace

// A page matters to later queries if it holds sink tokens or is one of the newest ring_pages.
void RunAppendStreaming(const AppendStreamingParams& params, Team& team) {
  const StreamingLane& lane = params.streaming;
  if (lane.layout.heads == 0) {
    return;
  }
  const int64_t page_bytes = lane.layout.page_bytes();
  const int32_t slot_pages = lane.sink_pages + lane.ring_pages;
  int32_t task = 0;  // pages are dealt out in turn
  for (int32_t c = 0; c < params.batch.counts[kChunks]; ++c) {
    const PrefillChunk& chunk = params.batch.chunks[c];
    const int32_t first_page = chunk.first_position / kPageTokens;
    const int32_t last_page = (chunk.first_position + chunk.rows - 1) / kPageTokens;
    for (int32_t page = first_page; page <= last_page; ++page) {
      if (page >= lane.sink_pages && page <= last_page - lane.ring_pages) {
        continue;
      }
      if (task++ % team.threads() != team.thread()) {
        continue;
      }
      const int64_t id =
          lane.table[int64_t{chunk.slot} * slot_pages + StreamingRingSlot(lane, page)];
      std::memcpy(
          lane.pages + id * page_bytes,
          lane.chunk_pages + int64_t{chunk.first_chunk_page + page - first_page} * page_bytes,
          static_cast<size_t>(page_bytes));
    }
  }
}

void RunCopyPages(const CopyPagesParams& params, Team& team) {
  for (int32_t i = team.thread(); i < params.count; i += team.threads()) {
    std::memmove(params.destination + params.to[i] * params.page_bytes,
                 params.source + params.from[i] * params.page_bytes,
                 static_cast<size_t>(params.page_bytes));
  }
}

void RunExportPage(const TransferPageParams& params, Team& team) {
  for (int32_t head = team.thread(); head < params.layout.heads; head += team.threads()) {
    ForElements(params, head, [](float* canonical, const BFloat16* stored) {
      if (canonical != nullptr) {
        *canonical = ToFloat(*stored);
      }
    });
    if (params.layout.score == PageScore::kSketch) {
      ExportSketch(params, head);
    }
    if (params.layout.boxed()) {
      ExportBoxed(params, head);
    }
  }
}

void RunImportPage(const TransferPageParams& params, Team& team) {
  for (int32_t head = team.thread(); head < params.layout.heads; head += team.threads()) {
    ForElements(params, head, [](const float* canonical, BFloat16* stored) {
      *stored = canonical == nullptr ? BFloat16{0} : ToBFloat16(*canonical);
    });
    if (params.layout.boxed()) {
      ImportBoxed(params, head);
    } else if (params.layout.score == PageScore::kSketch) {
      ImportSketch(params, head);
    }
  }
}

}  // namespace lserve::cpu
