// What decode attention reads (attend_decode.cuh): the 16-token units of a row and KV head, and the
// segments they are cut into. Device code but for sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/work_plan.cuh"

namespace lserve::cuda {

inline constexpr int32_t kDecodeThreads = 128;
inline constexpr int32_t kDecodeWarps = kDecodeThreads / kWarpLanes;
inline constexpr int32_t kDecodeQueries = 8;  // of a group, in one item
inline constexpr int32_t kDecodeBatch = 128;  // units whose places are looked up at once
inline constexpr int32_t kRecordOutput = 4;   // floats before a record's output
inline constexpr int32_t kMaxSegments = 256;  // of one row and KV head
// As many as blocks that an H100 or H200 has at once.
inline constexpr int32_t kWantedItems = 264;
inline constexpr int32_t kUnplannedItems = 1056;  // that there can be; four rows of long lists
inline constexpr int32_t kUnbounded = 0x3FFFFFFF;

// The 16-token units that a row and KV head read, in order. What it is made of no kernel writes
// while a step runs, except for a list, which Take() brings after the wait (device.cuh).
class UnitWalk {
 public:
  // Of a row that reads all no list is looked at: SelectUnits makes its count -1 in every step.
  // Until Take(), the walk of a list is that of a full one with all newest units, which a list is
  // when it has just been made.
  __device__ UnitWalk(const AttendDecodeParams& params, int32_t row, int32_t head) {
    const int32_t tokens = params.batch.row_position[row] + 1;
    newest_ = (tokens - 1) / kUnitTokens;
    if (head >= params.retrieval.layout.heads) {
      const StreamingLane& lane = params.streaming;
      const int32_t oldest = max(0, tokens - lane.local_tokens) / kUnitTokens;
      listed_ = min(DivideUp(lane.sink_tokens, kUnitTokens), newest_ + 1);
      rest_ = max(listed_, oldest);
      most_ = size_ = listed_ + max(0, newest_ + 1 - rest_);
      return;
    }
    if (params.lists.units == nullptr || ReadsAll(params.policy, tokens)) {
      most_ = size_ = newest_ + 1;
      return;
    }
    const int64_t list = int64_t{params.batch.row_slot[row]} * params.lists.slot_lists +
                         params.lists.first_list + head;
    count_ = params.lists.counts + list;
    ids_ = params.lists.units + list * params.lists.capacity;
    capacity_ = params.lists.capacity;
    const int32_t unit_tokens = params.policy.unit_tokens;
    forced_ = FirstForcedNewestUnit(tokens, unit_tokens);
    shift_ = unit_tokens == 64 ? 2 : unit_tokens == 32 ? 1 : 0;
    LayOut(capacity_, 0);
    most_ = size_;
    LayOut(capacity_, min(capacity_, (newest_ >> shift_) + 1 - forced_));
  }

  // Whether a list says what is read.
  __device__ bool listed() const { return ids_ != nullptr; }

  // Whether it stands since an earlier step: its turn has not come, and it has a count, which
  // whoever makes it writes last. May be asked before the wait.
  __device__ bool Stands(const AttendDecodeParams& params, int32_t row) const {
    const SelectionPolicy& policy = params.policy;
    if (policy.reuse_interval == 1 || policy.reuse_distance > 0.0f ||
        params.prompt_tokens == nullptr) {
      return false;
    }
    const int32_t generated =
        params.batch.row_position[row] - params.prompt_tokens[params.batch.row_slot[row]];
    return generated % policy.reuse_interval != 0 && LoadAcquired(count_) >= 0;
  }

  // Reads how long the list is and which of it are newest units, in one turn if it is full.
  __device__ void Take() {
    int32_t last[kPageUnits + 1];
    const int32_t count = *count_;
#pragma unroll
    for (int32_t i = 0; i <= kPageUnits; ++i) {
      last[i] = ids_[max(capacity_ - 1 - i, 0)];
    }
    if (count < 0) {
      ids_ = nullptr;
      listed_ = rest_ = 0;
      size_ = newest_ + 1;
      return;
    }
    if (count != capacity_) {
#pragma unroll
      for (int32_t i = 0; i <= kPageUnits; ++i) {
        last[i] = ids_[max(count - 1 - i, 0)];
      }
    }
    // A reused list lacks the newest units that came since: those of the row's own position follow
    // what is listed before them. At most 64 / 16 + 1 listed units are forced ones.
    int32_t newer = 0;
#pragma unroll
    for (int32_t i = 0; i <= kPageUnits; ++i) {
      newer += i < count && last[i] >= forced_ ? 1 : 0;
    }
    LayOut(count, newer);
  }

  __device__ int32_t size() const { return size_; }
  // The most units that a walk of this position can have, also before Take(); but a list that names
  // none stands for all.
  __device__ int32_t most() const { return most_; }
  // Whether it is known, before Take(), to be all units.
  __device__ bool whole() const { return most_ == newest_ + 1; }

  // A place in the list, and what stands there.
  struct Listed {
    int32_t place;
    int32_t id;
  };
  // Of the i-th unit, as far as is known before Take(), whose loads it need not wait for.
  __device__ Listed Look(int32_t i) const {
    const int32_t place = min(i >> shift_, capacity_ - 1);
    return {place, ids_[place]};
  }

  // Number of the i-th unit; `looked` spares another look where it is of the same place.
  __device__ int32_t Unit(int32_t i, Listed looked = {-1, 0}) const {
    if (i >= listed_) {
      return rest_ + (i - listed_);
    }
    if (ids_ == nullptr) {
      return i;
    }
    const int32_t place = i >> shift_;
    const int32_t id = place == looked.place ? looked.id : ids_[place];
    return (id << shift_) + (i & ((1 << shift_) - 1));
  }

 private:
  __device__ void LayOut(int32_t count, int32_t newer) {
    listed_ = (count - newer) << shift_;
    rest_ = forced_ << shift_;
    size_ = listed_ + newest_ + 1 - rest_;
  }

  const int32_t* count_ = nullptr;
  const int32_t* ids_ = nullptr;
  int32_t capacity_ = 0;
  int32_t newest_ = 0;  // the row's own unit
  int32_t forced_ = 0;  // of the list's units, the first that is kept because it is new
  int32_t shift_ = 0;   // log2 of 16-token units in a listed one
  int32_t listed_ = 0;  // 16-token units of the list, or [0, listed); then from rest on
  int32_t rest_ = 0;
  int32_t size_ = 0;
  int32_t most_ = 0;
};

// What follows from the POD alone: the host's, which kernels get.
struct DecodeShape {
  explicit DecodeShape(const AttendDecodeParams& params) {
    const KvPageLayout& retrieval = params.retrieval.layout;
    const KvPageLayout& streaming = params.streaming.layout;
    const int32_t rows = params.batch.max_decode_rows;
    kv_heads = retrieval.heads + streaming.heads;
    head_dim = retrieval.heads > 0 ? retrieval.head_dim : streaming.head_dim;
    padded_head_dim = PaddedHeadDim(head_dim);
    passes = DivideUp(params.group, kDecodeQueries);
    record_floats = kRecordOutput + padded_head_dim;
    const bool sparse = params.lists.units != nullptr;
    const int32_t window = streaming.heads == 0
                               ? 0
                               : DivideUp(params.streaming.sink_tokens, kUnitTokens) +
                                     params.streaming.local_tokens / kUnitTokens + 2;
    const int32_t longest = retrieval.heads > 0 ? params.retrieval.max_pages * kPageUnits : 1;
    least_units = kPageUnits;
    if (sparse) {
      // Beyond its budget a row reads a known number of units: a block gets one item of them.
      const int32_t listed = params.policy.token_budget / kUnitTokens + 2 * kPageUnits;
      const auto items = [&] {
        return int64_t{rows} * passes *
               (retrieval.heads * DivideUp(listed, least_units) +
                streaming.heads * DivideUp(window, least_units));
      };
      while (items() > kWantedItems && least_units < std::max(listed, window)) {
        least_units += kPageUnits;
      }
    }
    max_segments = std::min(DivideUp(std::max(longest, window), kPageUnits),
                            std::clamp(kWantedItems / kv_heads, 16, kMaxSegments));
    // Blocks that wait for lists should all have room at once.
    unplanned = int64_t{rows} * kv_heads * MostItems() <= (sparse ? kWantedItems : kUnplannedItems);
    by_ticket = unplanned || sparse;
  }

  // The most segments of a walk, the units of one, and how many there are.
  __device__ int32_t MostSegments(const UnitWalk& walk) const {
    return min(max(DivideUp(walk.most(), LeastUnits(walk)), 1), max_segments);
  }
  __device__ int32_t SegmentUnits(const UnitWalk& walk) const {
    const int32_t even = DivideUp(walk.size(), MostSegments(walk));
    return max(DivideUp(even, kPageUnits) * kPageUnits, LeastUnits(walk));
  }
  __device__ int32_t Segments(const UnitWalk& walk) const {
    return max(DivideUp(walk.size(), SegmentUnits(walk)), 1);
  }
  // Of a segment that is not the last. What reads all is cut as where nothing is sparse, so that it
  // gives the same.
  __device__ int32_t LeastUnits(const UnitWalk& walk) const {
    return walk.whole() ? kPageUnits : least_units;
  }

  // The most items of a pair of a row and a KV head.
  __host__ __device__ int32_t MostItems() const { return passes * max_segments; }

  int32_t kv_heads;
  int32_t head_dim;
  int32_t padded_head_dim;
  int32_t passes;         // items that share a segment's keys
  int32_t least_units;    // of a segment of a list or window
  int32_t max_segments;   // of any walk
  int32_t record_floats;  // four of its head (attend_decode.cuh), then the output
  bool unplanned;         // so few items that a grid has a block for each that there can be
  bool by_ticket;         // blocks have few items: the last to end combines, else a second kernel
};

// A unit of one KV head.
struct UnitPlace {
  const std::byte* page;
  int32_t unit;   // number; its place in the page is unit % 4
  int32_t boxed;  // 1: codes of a closed page, 0: in full
};
static_assert(sizeof(UnitPlace) == 16);

}  // namespace lserve::cuda
