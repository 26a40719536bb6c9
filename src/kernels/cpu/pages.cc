// Whole pages: AppendStreaming, CopyPages, ExportPage, ImportPage.
#include <cstring>

#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/sketch.h"

namespace lserve::cpu {
namespace {

// Calls move(canonical, stored) for every element of the page; stored elements beyond head_dim have
// a null canonical.
template <typename Move>
void ForElements(const TransferPageParams& params, int32_t head, Move move) {
  const KvPageLayout& layout = params.layout;
  const int32_t padded = layout.padded_head_dim;
  const int64_t dim = layout.head_dim;
  auto* keys = reinterpret_cast<BFloat16*>(params.page + layout.key_offset(head));
  auto* values = reinterpret_cast<BFloat16*>(params.page + layout.value_offset(head));
  for (int32_t token = 0; token < kPageTokens; ++token) {
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

// One head's sketch, and where it lies in canonical order.
struct SketchPlaces {
  SketchPlaces(const TransferPageParams& params, int32_t head)
      : box(reinterpret_cast<Float16*>(params.page + params.layout.stats_offset(head))),
        codes(reinterpret_cast<uint32_t*>(params.page + params.layout.codes_offset(head))),
        canonical(params.stats +
                  int64_t{head} * StatsRows(PageScore::kSketch) * params.layout.head_dim) {}
  Float16* box;
  uint32_t* codes;
  float* canonical;
};

void ExportSketch(const TransferPageParams& params, int32_t head) {
  const SketchPlaces places(params, head);
  const int32_t dim = params.layout.head_dim;
  const int32_t padded = params.layout.padded_head_dim;
  for (int32_t d = 0; d < dim; ++d) {
    places.canonical[d] = ToFloat(places.box[d]);
    places.canonical[dim + d] = ToFloat(places.box[padded + d]);
    for (int32_t t = 0; t < kPageTokens; ++t) {
      const uint32_t word = places.codes[SketchIndex(t, d, padded)];
      places.canonical[int64_t{2 + t} * dim + d] =
          static_cast<float>((word >> SketchShift(d)) & 3u);
    }
  }
}

void ImportSketch(const TransferPageParams& params, int32_t head) {
  const SketchPlaces places(params, head);
  const int32_t dim = params.layout.head_dim;
  const int32_t padded = params.layout.padded_head_dim;
  std::memset(places.box, 0, static_cast<size_t>(params.layout.stats_bytes()));
  for (int32_t d = 0; d < dim; ++d) {
    places.box[d] = RoundDownToFloat16(places.canonical[d]);
    places.box[padded + d] = RoundUpToFloat16(places.canonical[dim + d]);
    for (int32_t t = 0; t < kPageTokens; ++t) {
      const auto code = static_cast<uint32_t>(places.canonical[int64_t{2 + t} * dim + d]);
      places.codes[SketchIndex(t, d, padded)] |= code << SketchShift(d);
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
  }
}

void RunImportPage(const TransferPageParams& params, Team& team) {
  for (int32_t head = team.thread(); head < params.layout.heads; head += team.threads()) {
    ForElements(params, head, [](const float* canonical, BFloat16* stored) {
      *stored = canonical == nullptr ? BFloat16{0} : ToBFloat16(*canonical);
    });
    if (params.layout.score == PageScore::kSketch) {
      ImportSketch(params, head);
    }
  }
}

}  // namespace lserve::cpu
