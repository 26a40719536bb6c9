// Decode attention: lists, segments and the combination of their partial softmaxes. The arithmetic
// of a segment is a kernel's (attend_decode_kernel.h).
//
// The list of a row and KV head is cut into segments of a fixed number of 16-token units, whatever
// the thread count; threads take segments, meet at a barrier, and combine each row and head in the
// order of its segments.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "base/check.h"
#include "kernels/cpu/attend_decode_kernel.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/page_codes.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/variant.h"

namespace lserve::cpu {
namespace {

constexpr int32_t kUnbounded = std::numeric_limits<int32_t>::max() / 2;
constexpr int32_t kSegmentUnits = 32;  // 512 tokens, more where lists would have more segments than
constexpr int32_t kMaxSegments = 128;  // this

int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// What follows from the POD alone.
struct DecodeShape {
  explicit DecodeShape(const AttendDecodeParams& params) {
    kv_heads = params.retrieval.layout.heads + params.streaming.layout.heads;
    padded_head_dim = params.retrieval.layout.heads > 0 ? params.retrieval.layout.padded_head_dim
                                                        : params.streaming.layout.padded_head_dim;
    int32_t most = 1;
    if (params.retrieval.layout.heads > 0) {
      most = std::max(most, params.retrieval.max_pages * (kPageTokens / kUnitTokens));
    }
    if (params.streaming.layout.heads > 0) {
      most = std::max(most, DivideUp(params.streaming.sink_tokens, kUnitTokens) +
                                params.streaming.local_tokens / kUnitTokens + 2);
    }
    segment_units = std::max(kSegmentUnits, DivideUp(most, kMaxSegments));
    max_segments = DivideUp(most, segment_units);
    record_stride = kRecordOutput + padded_head_dim;
  }

  int32_t kv_heads;
  int32_t padded_head_dim;
  int32_t segment_units;
  int32_t max_segments;   // of one row and head
  int64_t record_stride;  // floats
};

// The 16-token units that a row and KV head read, in order.
class UnitWalk {
 public:
  UnitWalk(const AttendDecodeParams& params, int32_t row, int32_t head) {
    const int32_t tokens = params.batch.row_position[row] + 1;
    const int32_t newest = (tokens - 1) / kUnitTokens;
    const int32_t retrieval_heads = params.retrieval.layout.heads;
    if (head >= retrieval_heads) {
      const StreamingLane& lane = params.streaming;
      const int32_t oldest = std::max(0, tokens - lane.local_tokens) / kUnitTokens;
      listed_ = std::min(DivideUp(lane.sink_tokens, kUnitTokens), newest + 1);
      rest_ = std::max(listed_, oldest);
      size_ = listed_ + newest + 1 - rest_;
      return;
    }
    int32_t count = -1;
    if (params.lists.units != nullptr) {
      const int64_t list = int64_t{params.batch.row_slot[row]} * params.lists.slot_lists +
                           params.lists.first_list + head;
      count = params.lists.counts[list];
      ids_ = params.lists.units + list * params.lists.capacity;
    }
    if (count < 0) {
      ids_ = nullptr;
      size_ = newest + 1;
      return;
    }
    // A reused list lacks the newest units that came since: those of the row's own position follow
    // what is listed before them.
    const int32_t unit_tokens = params.policy.unit_tokens;
    const int32_t forced = FirstForcedNewestUnit(tokens, unit_tokens);
    while (count > 0 && ids_[count - 1] >= forced) {
      --count;
    }
    shift_ = unit_tokens == 64 ? 2 : unit_tokens == 32 ? 1 : 0;
    listed_ = count << shift_;
    rest_ = forced << shift_;
    size_ = listed_ + newest + 1 - rest_;
  }

  int32_t size() const { return size_; }

  // Number of the i-th 16-token unit.
  int32_t operator[](int32_t i) const {
    if (i >= listed_) {
      return rest_ + (i - listed_);
    }
    return ids_ == nullptr ? i : (ids_[i >> shift_] << shift_) + (i & ((1 << shift_) - 1));
  }

 private:
  const int32_t* ids_ = nullptr;
  int32_t shift_ = 0;   // log2 of 16-token units in a listed one
  int32_t listed_ = 0;  // 16-token units of the list, or [0, listed); then from rest on
  int32_t rest_ = 0;
  int32_t size_ = 0;
};

// Where a row's pages lie, and what a head's units hold.
class PageFinder {
 public:
  PageFinder(const AttendDecodeParams& params, int32_t row, int32_t head)
      : params_(params), slot_(params.batch.row_slot[row]) {
    open_page_ = params.batch.row_position[row] / kPageTokens;
    streams_ = head >= params.retrieval.layout.heads;
    layout_ = streams_ ? params.streaming.layout : params.retrieval.layout;
    open_layout_ = layout_.open();
    head_ = streams_ ? head - params.retrieval.layout.heads : head;
  }

  bool streams() const { return streams_; }
  int32_t head_dim() const { return layout_.head_dim; }
  int32_t code_bits() const { return layout_.value_bits(); }  // of boxed units

  // Whether the unit lies in a boxed page.
  bool IsBoxed(int32_t unit) const { return layout_.boxed() && unit / kPageUnits != open_page_; }

  // A unit in full.
  DecodeUnit Unit(int32_t unit) const {
    const int32_t page = unit / kPageUnits;
    const bool open = !streams_ && page == open_page_;
    const KvPageLayout& layout = open ? open_layout_ : layout_;
    const std::byte* data = open       ? params_.retrieval.open + slot_ * layout.page_bytes()
                            : streams_ ? RingPage(page)
                                       : ClosedPage(page);
    const int64_t first = unit % kPageUnits * UnitElements();
    return {reinterpret_cast<const uint16_t*>(data + layout.key_offset(head_)) + first,
            reinterpret_cast<const uint16_t*>(data + layout.value_offset(head_)) + first,
            unit * kUnitTokens, false};
  }

  // A boxed unit, read back: keys, then values.
  DecodeUnit ReadBack(int32_t unit, uint16_t* to) const {
    ReadBackUnits(layout_, HeadCodes(layout_, head_, ClosedPage(unit / kPageUnits)),
                  unit % kPageUnits, 1, to, to + UnitElements());
    return {to, to + UnitElements(), unit * kUnitTokens, false};
  }

  BoxedUnit Codes(int32_t unit) const {
    const HeadCodes codes(layout_, head_, ClosedPage(unit / kPageUnits));
    const int32_t first = unit % kPageUnits * kUnitTokens;
    BoxedUnit boxed{codes.box, {}, codes.grids + first, codes.values};
    for (int32_t plane = 0; plane < codes.plane_count; ++plane) {
      boxed.planes[plane] = codes.planes[plane] + SketchIndex(first, 0, layout_.padded_head_dim);
    }
    boxed.values += ValueCodeIndex(first, 0, layout_.padded_head_dim) * layout_.value_bits() / 4;
    return boxed;
  }

 private:
  static constexpr int32_t kPageUnits = kPageTokens / kUnitTokens;

  int64_t UnitElements() const { return int64_t{kUnitTokens} * layout_.padded_head_dim; }
  std::byte* RingPage(int32_t page) const {
    const StreamingLane& lane = params_.streaming;
    const int32_t* table = lane.table + slot_ * (lane.sink_pages + lane.ring_pages);
    return lane.pages + table[StreamingRingSlot(lane, page)] * layout_.page_bytes();
  }
  std::byte* ClosedPage(int32_t page) const {
    const RetrievalLane& lane = params_.retrieval;
    return lane.pages + lane.table[slot_ * lane.max_pages + page] * layout_.page_bytes();
  }

  const AttendDecodeParams& params_;
  const int64_t slot_;
  int32_t open_page_ = 0;
  bool streams_ = false;
  KvPageLayout layout_;
  KvPageLayout open_layout_;
  int32_t head_ = 0;  // in its lane
};

// A thread's scratch for one segment.
struct DecodeScratch {
  DecodeUnit* units;
  BoxedUnit* boxed;
  uint16_t* q;
  float* scores;
  uint16_t* probabilities;
  uint16_t* tail;       // values of the newest unit, zero where there is no token yet
  uint16_t* read_back;  // [units][keys, values][16 * padded head dim], for boxed pages
};

// Carves the parts off `memory`; with null it only counts the bytes.
int64_t LayOut(const AttendDecodeParams& params, const DecodeShape& shape, std::byte* memory,
               DecodeScratch* scratch) {
  int64_t offset = 0;
  const auto take = [&](auto*& part, int64_t count) {
    using T = std::remove_reference_t<decltype(*part)>;
    if (memory != nullptr) {
      part = reinterpret_cast<T*>(memory + offset);
    }
    offset += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  };
  const int64_t tokens = int64_t{shape.segment_units} * kUnitTokens;
  take(scratch->units, shape.segment_units);
  take(scratch->boxed, params.retrieval.layout.boxed() ? shape.segment_units : 0);
  take(scratch->q, int64_t{params.group} * shape.padded_head_dim);
  take(scratch->scores, params.group * tokens);
  take(scratch->probabilities, params.group * tokens);
  take(scratch->tail, int64_t{kUnitTokens} * shape.padded_head_dim);
  take(scratch->read_back,
       params.retrieval.layout.boxed() ? 2 * tokens * shape.padded_head_dim : int64_t{0});
  return offset;
}

// Values of a unit of which the first `tokens` exist. Memory behind them may hold anything, and
// 0 x NaN is NaN.
void CopyTail(const uint16_t* values, int32_t tokens, int32_t dims, uint16_t* tail) {
  for (int32_t t = 0; t < kUnitTokens; ++t) {
    for (int32_t d = 0; d < dims; ++d) {
      const int64_t i = ValueIndex(t, d, dims);
      tail[i] = t < tokens ? values[i] : uint16_t{0};
    }
  }
}

void RunSegment(const AttendDecodeParams& params, const DecodeShape& shape,
                const DecodeVariant& variant, const DecodeScratch& scratch, int32_t row,
                int32_t head, const UnitWalk& walk, int32_t first, float* records) {
  const PageFinder pages(params, row, head);
  const int32_t position = params.batch.row_position[row];
  DecodeSegment segment;
  segment.sink_tokens = pages.streams() ? params.streaming.sink_tokens : 0;
  segment.local_tokens = pages.streams() ? params.streaming.local_tokens : kUnbounded;
  segment.unit_count = std::min(shape.segment_units, walk.size() - first);
  segment.boxed_count = 0;
  for (int32_t i = 0; i < segment.unit_count; ++i) {
    DecodeUnit& unit = scratch.units[i];
    const int32_t number = walk[first + i];
    if (!pages.IsBoxed(number)) {
      unit = pages.Unit(number);
    } else if (variant.reads_codes) {
      scratch.boxed[segment.boxed_count++] = pages.Codes(number);  // lists ascend: the first ones
      unit = {nullptr, nullptr, number * kUnitTokens, false};
      continue;
    } else {
      unit = pages.ReadBack(
          number, scratch.read_back + i * int64_t{2 * kUnitTokens} * shape.padded_head_dim);
    }
    const int32_t last = unit.first_position + kUnitTokens - 1;
    unit.edge = last > position || (last >= segment.sink_tokens &&
                                    position - unit.first_position >= segment.local_tokens);
    if (last > position) {
      CopyTail(unit.values, position + 1 - unit.first_position, shape.padded_head_dim,
               scratch.tail);
      unit.values = scratch.tail;
    }
  }
  const int64_t head_dim = pages.head_dim();
  const auto* q = static_cast<const uint16_t*>(params.q) +
                  (int64_t{row} * params.q_heads + int64_t{head} * params.group) * head_dim;
  for (int32_t g = 0; g < params.group; ++g) {
    uint16_t* to = scratch.q + int64_t{g} * shape.padded_head_dim;
    std::memcpy(to, q + g * head_dim, static_cast<size_t>(head_dim) * 2);
    std::fill(to + head_dim, to + shape.padded_head_dim, uint16_t{0});
  }
  segment.q = scratch.q;
  segment.units = scratch.units;
  segment.boxed = scratch.boxed;
  segment.code_bits = pages.code_bits();
  segment.group = params.group;
  segment.padded_head_dim = shape.padded_head_dim;
  segment.position = position;
  segment.scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(head_dim));
  segment.scores = scratch.scores;
  segment.probabilities = scratch.probabilities;
  segment.records = records;
  segment.record_stride = shape.record_stride;
  variant.run(segment);
}

// One query head: its segments' records, `step` floats apart, to the rounded output. Returns the
// natural logarithm of the softmax's denominator.
float Combine(const float* records, int64_t step, int32_t segments, float scale, int32_t head_dim,
              BFloat16* output) {
  float max = records[0];
  for (int32_t s = 1; s < segments; ++s) {
    max = std::max(max, records[s * step]);
  }
  std::array<float, kMaxSegments> weights;
  float sum = 0.0f;
  for (int32_t s = 0; s < segments; ++s) {
    const float weight = std::exp2((records[s * step] - max) * scale);
    weights[static_cast<size_t>(s)] = weight;
    sum += weight * records[s * step + 1];
  }
  const float inverse = 1.0f / sum;
  for (int32_t d = 0; d < head_dim; ++d) {
    float value = 0.0f;
    for (int32_t s = 0; s < segments; ++s) {
      value += weights[static_cast<size_t>(s)] * records[s * step + kRecordOutput + d];
    }
    output[d] = ToBFloat16(value * inverse);
  }
  return (max * scale + std::log2(sum)) * std::numbers::ln2_v<float>;
}

}  // namespace

std::span<const DecodeVariant> DecodeVariants() {
  static const std::array<DecodeVariant, 2> kVariants = {Avx512DecodeVariant(),
                                                         HighwayDecodeVariant()};
  return kVariants;
}

void RunAttendDecode(const AttendDecodeParams& params, const DecodeVariant& variant, Team& team) {
  DCHECK(params.dtype == DType::kBFloat16);
  const int32_t rows = params.batch.counts[kDecodeRows];
  if (rows == 0) {
    return;
  }
  const DecodeShape shape(params);
  DecodeScratch scratch{};
  LayOut(params, shape, team.Scratch(LayOut(params, shape, nullptr, &scratch)), &scratch);
  auto* workspace = static_cast<float*>(params.workspace);
  const int64_t segment_floats = params.group * shape.record_stride;
  const int64_t pair_floats = shape.max_segments * segment_floats;
  const int64_t pairs = int64_t{rows} * shape.kv_heads;

  // Tasks are numbered through all pairs of row and head; the shared counter only moves forward, so
  // a thread keeps its place.
  int64_t task = team.Next();
  int64_t base = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto row = static_cast<int32_t>(pair / shape.kv_heads);
    const auto head = static_cast<int32_t>(pair % shape.kv_heads);
    const UnitWalk walk(params, row, head);
    const int32_t segments = DivideUp(walk.size(), shape.segment_units);
    for (; task < base + segments; task = team.Next()) {
      const auto segment = static_cast<int32_t>(task - base);
      RunSegment(params, shape, variant, scratch, row, head, walk, segment * shape.segment_units,
                 workspace + pair * pair_floats + segment * segment_floats);
    }
    base += segments;
  }
  team.Barrier();

  for (int64_t pair = team.thread(); pair < pairs; pair += team.threads()) {
    const auto row = static_cast<int32_t>(pair / shape.kv_heads);
    const auto head = static_cast<int32_t>(pair % shape.kv_heads);
    const UnitWalk walk(params, row, head);
    const int32_t segments = DivideUp(walk.size(), shape.segment_units);
    const int32_t head_dim = params.retrieval.layout.heads > 0 ? params.retrieval.layout.head_dim
                                                               : params.streaming.layout.head_dim;
    const float scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(head_dim));
    const int64_t q_head = int64_t{row} * params.q_heads + int64_t{head} * params.group;
    auto* output = static_cast<BFloat16*>(params.output) + q_head * head_dim;
    for (int32_t g = 0; g < params.group; ++g) {
      const float log_sum =
          Combine(workspace + pair * pair_floats + g * shape.record_stride, segment_floats,
                  segments, scale, head_dim, output + int64_t{g} * head_dim);
      if (params.log_sums != nullptr) {
        params.log_sums[q_head + g] = log_sum;
      }
    }
  }
}

int64_t AttendDecodeWorkspace(const AttendDecodeParams& params) {
  const DecodeShape shape(params);
  return int64_t{params.batch.max_decode_rows} * shape.kv_heads * shape.max_segments *
         params.group * shape.record_stride * static_cast<int64_t>(sizeof(float));
}

void RunAttendDecode(const AttendDecodeParams& params, Team& team) {
  RunAttendDecode(params, FirstSupported(DecodeVariants()), team);
}

const char* AttendDecodeVariant(const AttendDecodeParams& /*params*/) {
  return FirstSupported(DecodeVariants()).name;
}

}  // namespace lserve::cpu
