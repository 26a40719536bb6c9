// A page of the `ref` backend: elements in canonical order,
//   keys, values  [KV head][token][padded head dim]
//   stats         kMinMax [KV head][logical page][min, max][padded head dim]
//   codes         a plane [token][padded head dim] in 2 bits, of values in 4 or 8 bits, lowest
//   first
// and where a token of a sequence lies in either lane. Views; they own nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/boxed.h"
#include "kernels/ops.h"

namespace lserve::ref {

template <typename T>
class Page {
 public:
  Page(std::byte* data, const KvPageLayout& layout) : data_(data), layout_(layout) {}

  std::byte* data() const { return data_; }
  const KvPageLayout& layout() const { return layout_; }

  // [head_dim], then the padding. Not of a boxed page.
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

  // [lo, hi][padded head dim] of a page with a sketch, which a boxed one has.
  Float16* Box(int32_t head) const {
    return reinterpret_cast<Float16*>(data_ + layout_.box_offset(head));
  }
  float Lo(int32_t head, int32_t dim) const { return ToFloat(Box(head)[dim]); }
  float Hi(int32_t head, int32_t dim) const {
    return ToFloat(Box(head)[layout_.padded_head_dim + dim]);
  }

  // The uppermost 2 bits of a key's code: the sketch.
  int32_t SketchCode(int32_t head, int32_t token, int32_t dim) const {
    return Bits(KeyPlane(head, 0), token, dim, 2);
  }
  // layout.key_bits() bits.
  int32_t KeyCode(int32_t head, int32_t token, int32_t dim) const {
    int32_t code = 0;
    for (int32_t plane = 0; plane < layout_.key_bits() / 2; ++plane) {
      code = code << 2 | Bits(KeyPlane(head, plane), token, dim, 2);
    }
    return code;
  }
  void SetKeyCode(int32_t head, int32_t token, int32_t dim, int32_t code) const {
    for (int32_t plane = 0; plane < layout_.key_bits() / 2; ++plane) {
      SetBits(KeyPlane(head, plane), token, dim, 2,
              code >> (layout_.key_bits() - 2 * (plane + 1)) & 3);
    }
  }

  // Of a boxed page.
  ValueGrid& Grid(int32_t head, int32_t token) const {
    return reinterpret_cast<ValueGrid*>(data_ + layout_.value_offset(head))[token];
  }
  int32_t ValueCode(int32_t head, int32_t token, int32_t dim) const {
    return Bits(data_ + layout_.value_codes_offset(head), token, dim, layout_.value_bits());
  }
  void SetValueCode(int32_t head, int32_t token, int32_t dim, int32_t code) const {
    SetBits(data_ + layout_.value_codes_offset(head), token, dim, layout_.value_bits(), code);
  }

  // An element of the page, of a boxed one as its code reads back.
  float KeyElement(int32_t head, int32_t token, int32_t dim) const {
    if (!layout_.boxed()) {
      return ToFloat(Key(head, token)[dim]);
    }
    const float lo = Lo(head, dim);
    return KeyOfCode(KeyCode(head, token, dim), lo, KeyStep(lo, Hi(head, dim), layout_.key_bits()));
  }
  float ValueElement(int32_t head, int32_t token, int32_t dim) const {
    return layout_.boxed() ? ValueOfCode(ValueCode(head, token, dim), Grid(head, token))
                           : ToFloat(Value(head, token)[dim]);
  }

 private:
  T* At(int64_t offset) const { return reinterpret_cast<T*>(data_ + offset); }

  std::byte* KeyPlane(int32_t head, int32_t plane) const {
    return data_ + layout_.codes_offset(head, plane);
  }

  // Element (token, dim) of a plane of `bits` bits an element.
  int32_t Bits(const std::byte* plane, int32_t token, int32_t dim, int32_t bits) const {
    const int64_t first = (int64_t{token} * layout_.padded_head_dim + dim) * bits;
    return static_cast<int32_t>(plane[first / 8] >> first % 8) & ((1 << bits) - 1);
  }
  void SetBits(std::byte* plane, int32_t token, int32_t dim, int32_t bits, int32_t value) const {
    const int64_t first = (int64_t{token} * layout_.padded_head_dim + dim) * bits;
    const auto mask = static_cast<std::byte>((1 << bits) - 1) << first % 8;
    std::byte& byte = plane[first / 8];
    byte = (byte & ~mask) | static_cast<std::byte>(value) << first % 8;
  }

  std::byte* data_;
  KvPageLayout layout_;
};

template <typename T>
Page<T> OpenPage(const RetrievalLane& lane, int32_t slot) {
  const KvPageLayout layout = lane.layout.open();
  return {lane.open + slot * layout.page_bytes(), layout};
}

template <typename T>
Page<T> ClosedPage(const RetrievalLane& lane, int32_t slot, int32_t page) {
  const int32_t id = lane.table[int64_t{slot} * lane.max_pages + page];
  return {lane.pages + id * lane.layout.page_bytes(), lane.layout};
}

// Page `page` of a sequence whose newest cached token stands at `newest_position`.
template <typename T>
Page<T> RetrievalPage(const RetrievalLane& lane, int32_t slot, int32_t page,
                      int32_t newest_position) {
  return page == newest_position / kPageTokens ? OpenPage<T>(lane, slot)
                                               : ClosedPage<T>(lane, slot, page);
}

template <typename T>
Page<T> RingPage(const StreamingLane& lane, int32_t slot, int32_t page) {
  const int32_t entries = lane.sink_pages + lane.ring_pages;
  const int32_t id = lane.table[int64_t{slot} * entries + StreamingRingSlot(lane, page)];
  return {lane.pages + id * lane.layout.page_bytes(), lane.layout};
}

// Page `page` (absolute in its sequence, at least that of the chunk's first token) of a chunk among
// the chunk pages of a lane.
template <typename T>
Page<T> ChunkPage(std::byte* chunk_pages, const KvPageLayout& layout, const PrefillChunk& chunk,
                  int32_t page) {
  const int64_t index = int64_t{chunk.first_chunk_page} + page - chunk.first_position / kPageTokens;
  return {chunk_pages + index * layout.page_bytes(), layout};
}

}  // namespace lserve::ref
