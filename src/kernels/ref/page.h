// A page of the `ref` backend: elements in canonical order,
//   keys, values  [KV head][token][padded head dim]
//   stats         kMinMax [KV head][logical page][min, max][padded head dim]
//                 kSketch [KV head] box [lo, hi][padded head dim], codes [token][padded head dim]
//                 in 2 bits, lowest first
// and where a token of a sequence lies in either lane. Views; they own nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace lserve::ref {

template <typename T>
class Page {
 public:
  Page(std::byte* data, const KvPageLayout& layout) : data_(data), layout_(layout) {}

  // [head_dim], then the padding.
  T* Key(int32_t head, int32_t token) const {
    return At(layout_.key_offset(head)) + int64_t{token} * layout_.padded_head_dim;
  }
  T* Value(int32_t head, int32_t token) const {
    return At(layout_.value_offset(head)) + int64_t{token} * layout_.padded_head_dim;
  }
  T* Minimum(int32_t head, int32_t logical_page) const {
    return At(layout_.stats_offset(head)) + int64_t{logical_page} * 2 * layout_.padded_head_dim;
  }
  T* Maximum(int32_t head, int32_t logical_page) const {
    return Minimum(head, logical_page) + layout_.padded_head_dim;
  }

  // kSketch: [lo, hi][padded head dim].
  Float16* Box(int32_t head) const {
    return reinterpret_cast<Float16*>(data_ + layout_.stats_offset(head));
  }
  int32_t Code(int32_t head, int32_t token, int32_t dim) const {
    return static_cast<int32_t>(CodeByte(head, token, dim) >> CodeShift(dim)) & 3;
  }
  void SetCode(int32_t head, int32_t token, int32_t dim, int32_t code) const {
    std::byte& byte = CodeByte(head, token, dim);
    byte = (byte & ~(std::byte{3} << CodeShift(dim))) | static_cast<std::byte>(code)
                                                            << CodeShift(dim);
  }

  std::byte* data() const { return data_; }

 private:
  static int32_t CodeShift(int32_t dim) { return 2 * (dim % 4); }
  std::byte& CodeByte(int32_t head, int32_t token, int32_t dim) const {
    return data_[layout_.codes_offset(head) + (int64_t{token} * layout_.padded_head_dim + dim) / 4];
  }
  T* At(int64_t offset) const { return reinterpret_cast<T*>(data_ + offset); }

  std::byte* data_;
  const KvPageLayout& layout_;
};

inline std::byte* OpenPage(const RetrievalLane& lane, int32_t slot) {
  return lane.open + slot * lane.layout.page_bytes();
}

inline std::byte* ClosedPage(const RetrievalLane& lane, int32_t slot, int32_t page) {
  const int32_t id = lane.table[int64_t{slot} * lane.max_pages + page];
  return lane.pages + id * lane.layout.page_bytes();
}

// Page `page` of a sequence whose newest cached token stands at `newest_position`.
inline std::byte* RetrievalPage(const RetrievalLane& lane, int32_t slot, int32_t page,
                                int32_t newest_position) {
  return page == newest_position / kPageTokens ? OpenPage(lane, slot)
                                               : ClosedPage(lane, slot, page);
}

inline std::byte* RingPage(const StreamingLane& lane, int32_t slot, int32_t page) {
  const int32_t entries = lane.sink_pages + lane.ring_pages;
  const int32_t id = lane.table[int64_t{slot} * entries + StreamingRingSlot(lane, page)];
  return lane.pages + id * lane.layout.page_bytes();
}

// Page `page` (absolute in its sequence, at least that of the chunk's first token) of a chunk.
inline std::byte* ChunkPage(const StreamingLane& lane, const PrefillChunk& chunk, int32_t page) {
  const int64_t index = int64_t{chunk.first_chunk_page} + page - chunk.first_position / kPageTokens;
  return lane.chunk_pages + index * lane.layout.page_bytes();
}

}  // namespace lserve::ref
