// Decode attention, split over the list of 16-token units that a row and KV head read.
//
// A list is cut into segments whose length depends on the list and the POD alone; a persistent grid
// takes (row, KV head, eight of its queries, segment) items. In a block each warp walks its own
// units with its own ring of asynchronous copies (decode_warp.cuh), and the warps' softmaxes meet
// at the end of the segment, whose record it writes. In steps of few rows, and where rows read
// lists, a block has few items: it draws a ticket after each, and whoever draws the last one for
// these queries combines the records; a list of one segment is done without. Where a block has many
// items, each ticket would hold up the next one's loads, and a second kernel combines. All sums
// have a fixed order, so a row's result depends neither on the other rows nor on which block that
// is; that of a list or window depends on how many rows the POD has room for.
//
// Before its wait a block looks up its first item and fetches what no kernel of the step writes.
// The RopeAppend before writes the newest token of the row, that is its newest unit; and when this
// token is the first of a page, all of the page before, which closes. The rest of what rows without
// a list and streaming heads read stands since earlier steps: closed pages, the units of open pages
// and of ring pages that are full. So do lists that are not due in the step.
#pragma once

#include <cstdint>

#include "kernels/cuda/decode_walk.cuh"
#include "kernels/cuda/decode_warp.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/work_plan.cuh"

namespace lserve::cuda {

// Queries of one row and KV head that are attended together.
struct DecodeQueries {
  int32_t head;     // row * q_heads + q_head of the first
  int32_t queries;  // 1 to kDecodeQueries
};

// Their records, [segment][query][maximum, sum, how many segments there are, -, output]; maxima
// are of scores in powers of two.
__device__ inline float* Records(const AttendDecodeParams& params, const DecodeShape& shape,
                                 const DecodeQueries& of) {
  return static_cast<float*>(params.workspace) +
         int64_t{of.head} * shape.max_segments * shape.record_floats;
}

// What keys did to four dims of a query: scores up to `highest`, weights relative to it.
struct DecodePart {
  float highest = -INFINITY;
  float sum = 0.0f;
  float4 output = {0.0f, 0.0f, 0.0f, 0.0f};
};

// The weight of scores up to `highest` relative to `base`, which is not below, where both may be
// minus infinity.
__device__ __forceinline__ float WeightOf(float highest, float base) {
  return Exp2(highest - (base == -INFINITY ? 0.0f : base));
}

__device__ __forceinline__ void AddScaled(float4& sum, float weight, const float4& part) {
  sum.x += weight * part.x;
  sum.y += weight * part.y;
  sum.z += weight * part.z;
  sum.w += weight * part.w;
}

// Dims d to d + 3 of a query's output, rounded.
__device__ inline void WriteOutput(const AttendDecodeParams& params, int32_t head_dim, int64_t head,
                                   int32_t d, const DecodePart& part) {
  const float inverse = part.sum > 0.0f ? 1.0f / part.sum : 0.0f;
  auto* to = static_cast<uint16_t*>(params.output) + head * head_dim + d;
  const uint32_t low = PackBf16(part.output.x * inverse, part.output.y * inverse);
  const uint32_t high = PackBf16(part.output.z * inverse, part.output.w * inverse);
  if (head_dim % 4 == 0) {
    if (d < head_dim) {
      *reinterpret_cast<uint2*>(to) = uint2{low, high};
    }
  } else {
    const uint32_t pairs[2] = {low, high};
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      if (d + i < head_dim) {
        to[i] = static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16);
      }
    }
  }
  if (d == 0 && params.log_sums != nullptr) {
    const float base = part.highest == -INFINITY ? 0.0f : part.highest;
    params.log_sums[head] = (base + log2f(part.sum)) * 0.6931471805599453f;
  }
}

// The warps' softmaxes become the segment's record, or with `done` the output.
template <int32_t kDim, int32_t kBits>
__device__ void MergeWarps(const AttendDecodeParams& params, const DecodeShape& shape,
                           const float* merge, const DecodeQueries& of, int32_t segment,
                           int32_t segments, bool done) {
  constexpr int32_t kStride = DecodeStages<kDim, kBits>::kOutputStride;
  const float* outputs = merge + kDecodeWarps * kDecodeQueries * 2;
  const int32_t fours = (kDim <= 128 ? kDim : shape.padded_head_dim) / 4;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < of.queries * fours; i += kDecodeThreads) {
    const int32_t query = i / fours;
    const int32_t d = i % fours * 4;
    DecodePart part;
#pragma unroll
    for (int32_t warp = 0; warp < kDecodeWarps; ++warp) {
      part.highest = fmaxf(part.highest, merge[(warp * kDecodeQueries + query) * 2]);
    }
#pragma unroll
    for (int32_t warp = 0; warp < kDecodeWarps; ++warp) {
      const int32_t of_warp = warp * kDecodeQueries + query;
      const float2 state = *reinterpret_cast<const float2*>(merge + of_warp * 2);
      const float weight = WeightOf(state.x, part.highest);
      part.sum += weight * state.y;
      AddScaled(part.output, weight,
                *reinterpret_cast<const float4*>(outputs + of_warp * kStride + d));
    }
    if (done) {
      WriteOutput(params, shape.head_dim, of.head + query, d, part);
      continue;
    }
    float* record =
        Records(params, shape, of) + (segment * of.queries + query) * shape.record_floats;
    *reinterpret_cast<float4*>(record + kRecordOutput + d) = part.output;
    if (d == 0) {
      *reinterpret_cast<float4*>(record) =
          float4{part.highest, part.sum, static_cast<float>(segments), 0.0f};
    }
  }
}

// Records of all segments to the output, by one block: a thread takes four dims of a query and asks
// for what it needs of many segments at once, past the first-level cache.
template <int32_t kDim>
__device__ void CombineSegments(const AttendDecodeParams& params, const DecodeShape& shape,
                                const DecodeQueries& of, int32_t segments) {
  constexpr int32_t kAtOnce = 16;
  const int32_t fours = (kDim <= 128 ? kDim : shape.padded_head_dim) / 4;
  const int32_t segment_floats = of.queries * shape.record_floats;
  LetNextKernelStart();
#pragma unroll 1
  for (auto i = static_cast<int32_t>(threadIdx.x); i < of.queries * fours; i += kDecodeThreads) {
    const int32_t query = i / fours;
    const int32_t d = i % fours * 4;
    const float* record = Records(params, shape, of) + query * shape.record_floats;
    DecodePart part;
#pragma unroll 1
    for (int32_t first = 0; first < segments; first += kAtOnce) {
      float2 states[kAtOnce];
      float4 outputs[kAtOnce];
#pragma unroll
      for (int32_t s = 0; s < kAtOnce; ++s) {
        const float* from = record + min(first + s, segments - 1) * segment_floats;
        states[s] = __ldcg(reinterpret_cast<const float2*>(from));
        outputs[s] = __ldcg(reinterpret_cast<const float4*>(from + kRecordOutput + d));
      }
      const float before = part.highest;
#pragma unroll
      for (int32_t s = 0; s < kAtOnce; ++s) {
        states[s].x = first + s < segments ? states[s].x : -INFINITY;
        part.highest = fmaxf(part.highest, states[s].x);
      }
      const float factor = WeightOf(before, part.highest);
      float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
      AddScaled(total, factor, part.output);
      part.sum *= factor;
#pragma unroll
      for (int32_t s = 0; s < kAtOnce; ++s) {
        const float weight = WeightOf(states[s].x, part.highest);
        part.sum += weight * states[s].y;
        AddScaled(total, weight, outputs[s]);
      }
      part.output = total;
    }
    WriteOutput(params, shape.head_dim, of.head + query, d, part);
  }
}

// tickets: zeros, one for each row, KV head and eight queries; zeros again when the kernel ends.
template <int32_t kDim, int32_t kBits>
__global__ void __launch_bounds__(kDecodeThreads, DecodeStages<kDim, kBits>::kBlocks)
    AttendDecodeKernel(const __grid_constant__ AttendDecodeParams params,
                       const __grid_constant__ DecodeShape shape, int32_t* tickets) {
  using Stages = DecodeStages<kDim, kBits>;
  __shared__ PlanShared plan;
  constexpr int32_t kWarpUnits = kDecodeBatch / kDecodeWarps;  // of a batch, at most
  __shared__ UnitPlace places[kDecodeBatch];                   // [warp][kWarpUnits]
  std::byte* stages = SharedMemory();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpLanes;
  const int32_t retrieval_heads = params.retrieval.layout.heads;
  const int32_t pairs = params.batch.counts[kDecodeRows] * shape.kv_heads;
  bool waited = false;
  const auto wait = [&] {
    if (!waited) {
      WaitForEarlierKernels();
      waited = true;
    }
  };
  const auto items_of = [&](int32_t pair) {
    const UnitWalk walk(params, pair / shape.kv_heads, pair % shape.kv_heads);
    return (walk.listed() ? shape.MostSegments(walk) : shape.Segments(walk)) * shape.passes;
  };
  const auto attend = [&](int32_t pair, int32_t item) {
    const int32_t row = pair / shape.kv_heads;
    const int32_t kv_head = pair % shape.kv_heads;
    const int32_t segment = item / shape.passes;
    const int32_t pass = item % shape.passes;
    const int32_t slot = params.batch.row_slot[row];
    const int32_t position = params.batch.row_position[row];
    const bool streams = kv_head >= retrieval_heads;
    const int32_t first_query = pass * kDecodeQueries;
    const DecodeQueries of{row * params.q_heads + kv_head * params.group + first_query,
                           min(kDecodeQueries, params.group - first_query)};
    DecodeWarp<kDim, kBits> attention(
        params, shape, streams, streams ? kv_head - retrieval_heads : kv_head, position, stages);
    UnitWalk walk(params, row, kv_head);
    int32_t segment_units = shape.SegmentUnits(walk);
    int32_t segments = shape.Segments(walk);
    int32_t begin = segment * segment_units;
    UnitWalk::Listed looked{-1, 0};
    if (walk.listed()) {
      if (!waited && !walk.Stands(params, row)) {
        wait();
      }
      looked = walk.Look(begin + thread);
      walk.Take();
      segment_units = shape.SegmentUnits(walk);
      segments = shape.Segments(walk);
      begin = segment * segment_units;
      if (segment >= segments) {
        return;
      }
    }
    const int32_t end = min(begin + segment_units, walk.size());
    // From here on the step's RopeAppend writes.
    const int32_t newest = position / kUnitTokens;
    const int32_t first_written =
        !streams && position % kPageTokens == 0 ? newest - kPageUnits : newest;
    // Units that follow each other in a page go to one warp where there are enough for all.
    const int32_t turn = segment_units >= kPageUnits * kDecodeWarps ? 2 : 0;  // log2 of the units

    // A warp's units of a batch lie behind each other. Gives how many of the batch are of codes:
    // they come first, as the open page is among the newest 64 tokens, which every list ends with.
    const auto look_up = [&](int32_t first, int32_t count, UnitWalk::Listed known) {
      __syncthreads();  // the places of the batch before, and what was merged, were read
      UnitPlace place{nullptr, 0, 0};
      if (thread < count) {
        place.unit = walk.Unit(first + thread, known);
        const int32_t page = place.unit / kPageUnits;
        if (streams) {
          place.page = RingPage(params.streaming, slot, page);
        } else if (page == position / kPageTokens) {
          place.page = OpenPage(params.retrieval, slot);
        } else {
          place.page = ClosedPage(params.retrieval, slot, page);
          place.boxed = kBits > 0 ? 1 : 0;
        }
        const int32_t turns = thread >> turn;
        places[turns % kDecodeWarps * kWarpUnits + (turns / kDecodeWarps << turn) +
               (thread & ((1 << turn) - 1))] = place;
      }
      return __syncthreads_count(place.boxed);
    };
    // How many of a batch's first `units` are the warp's.
    const auto share = [&](int32_t units) {
      const int32_t rounds = (units >> turn) / kDecodeWarps;
      const int32_t rest = units - (rounds * kDecodeWarps << turn) - (warp << turn);
      return (rounds << turn) + min(max(rest, 0), 1 << turn);
    };
    const uint32_t mine = SharedAddress(places + warp * kWarpUnits);
    const auto place_of = [&](int32_t j) {
      return *static_cast<const UnitPlace*>(
          __cvta_shared_to_generic(mine + j * static_cast<uint32_t>(sizeof(UnitPlace))));
    };
    int32_t first = begin;
    int32_t count = min(kDecodeBatch, end - first);
    int32_t codes = look_up(first, count, looked);
    while (true) {
      const int32_t units = share(count);
      const int32_t boxed = kBits > 0 ? share(codes) : 0;
      // Stages are taken from the last to the first; the last unit of codes has the first one.
      const auto stage_behind = [](int32_t stage, int32_t stages) {
        return stage == 0 ? stages - 1 : stage - 1;
      };
      const auto stage_before = [](int32_t stage, int32_t stages) {
        return stage == stages - 1 ? 0 : stage + 1;
      };
      // A bit for each unit of codes that is not of the page of the one before.
      uint32_t boxes = 0;
      if constexpr (kBits > 0) {
        static_assert(kWarpUnits <= kWarpLanes);
        const int32_t lane = thread % kWarpLanes;
        const int32_t before = max(lane - 1, 0);
        boxes = __ballot_sync(
            kWholeWarp, lane == 0 || (lane < boxed && place_of(lane).unit / kPageUnits !=
                                                          place_of(before).unit / kPageUnits));
      }
      const auto fetch_boxed = [&](int32_t j, int32_t stage) {
        attention.FetchBoxed(place_of(j), stage, (boxes >> j & 1) != 0);
      };
      const auto fetch_full = [&](int32_t j, int32_t stage) {
        if (j < units) {
          attention.FetchFull(place_of(j), stage);
        } else {
          CommitCopies();
        }
      };
      const auto wait_if_written = [&](int32_t j) {
        if (!waited && j < units && place_of(j).unit >= first_written) {
          wait();
        }
      };
      int32_t stage = Stages::kStages - 1;
      if (boxed == 0) {
#pragma unroll 1
        for (int32_t j = 0; j < Stages::kStages; ++j) {
          wait_if_written(j);
          fetch_full(j, Stages::kStages - 1 - j);
        }
      } else {
        stage = (boxed - 1) % Stages::kBoxedStages;
        int32_t to = stage;
#pragma unroll 1
        for (int32_t j = 0; j < Stages::kBoxedStages; ++j) {  // a group each
          wait_if_written(j);
          if (j < boxed) {
            fetch_boxed(j, to);
            to = stage_behind(to, Stages::kBoxedStages);
          } else if (j == boxed && boxed <= Stages::kBesideFull) {
            fetch_full(j, Stages::kStages - 1);
          } else {
            CommitCopies();
          }
        }
      }
      wait();
      if (first == begin) {
        attention.TakeQueries(
            static_cast<const uint16_t*>(params.q) + int64_t{of.head} * shape.head_dim, of.queries,
            shape.head_dim);
      }
      if constexpr (kBits > 0) {
        if (boxed > 0) {
          WaitCopies<Stages::kBoxedStages - 1>();
          __syncwarp();
          for (int32_t j = 0;;) {
            attention.AttendBoxed(stage, (boxes >> j & 1) != 0);
            if (++j == boxed) {
              break;
            }
            WaitCopies<Stages::kBoxedStages - 2>();
            __syncwarp();
            // The stage of the unit before is free: every lane has passed the barrier.
            const int32_t next = j + Stages::kBoxedStages - 1;
            if (next < boxed) {
              fetch_boxed(next, stage);
            } else if (boxed - j == Stages::kBesideFull) {
              fetch_full(boxed, Stages::kStages - 1);
            } else {
              CommitCopies();
            }
            stage = stage_behind(stage, Stages::kBoxedStages);
          }
          __syncwarp();
          for (int32_t j = 1; j < Stages::kStages; ++j) {
            fetch_full(boxed + j, Stages::kStages - 1 - j);
          }
          stage = Stages::kStages - 1;
        }
        if (boxed < units) {
          attention.FinishCodes();
        }
      }
      for (int32_t j = boxed; j < units; ++j) {
        if (j == boxed) {
          WaitCopies<Stages::kStages - 1>();
        } else {
          WaitCopies<Stages::kStages - 2>();
        }
        __syncwarp();
        if (j > boxed) {
          fetch_full(j + Stages::kStages - 1, stage_before(stage, Stages::kStages));
        }
        attention.AttendFull(place_of(j).unit, stage);
        stage = stage_behind(stage, Stages::kStages);
      }
      WaitCopies<0>();
      first += kDecodeBatch;
      if (first >= end) {
        break;
      }
      count = min(kDecodeBatch, end - first);
      codes = look_up(first, count, {-1, 0});
    }
    if (!shape.by_ticket) {
      LetNextKernelStart();
    }
    __syncthreads();
    auto* merge = reinterpret_cast<float*>(stages);
    attention.Write(warp, merge);
    __syncthreads();
    const bool done = shape.by_ticket && segments == 1;
    MergeWarps<kDim, kBits>(params, shape, merge, of, segment, segments, done);
    if (done || !shape.by_ticket) {
      return;
    }
    __syncthreads();
    int32_t* ticket = tickets + int64_t{pair} * shape.passes + pass;
    const bool last = thread == 0 && DrawTickets(ticket, 1) == segments - 1;
    if (__syncthreads_or(last ? 1 : 0) == 0) {
      return;
    }
    if (thread == 0) {
      *ticket = 0;
    }
    CombineSegments<kDim>(params, shape, of, segments);
  };
  ForPlannedItems<kDecodeThreads>(pairs, plan, items_of, attend,
                                  shape.unplanned ? shape.MostItems() : 0);
  wait();
}

// A block of it for each row, KV head and eight queries.
template <int32_t kDim>
__global__ void __launch_bounds__(kDecodeThreads)
    CombineSegmentsKernel(const __grid_constant__ AttendDecodeParams params,
                          const __grid_constant__ DecodeShape shape) {
  const auto row = static_cast<int32_t>(blockIdx.y);
  const int32_t kv_head = static_cast<int32_t>(blockIdx.x) / shape.passes;
  const int32_t pass = static_cast<int32_t>(blockIdx.x) % shape.passes;
  const bool exists = row < params.batch.counts[kDecodeRows];
  WaitForEarlierKernels();
  if (!exists) {
    return;
  }
  const int32_t q_head = kv_head * params.group + pass * kDecodeQueries;
  const DecodeQueries of{row * params.q_heads + q_head,
                         min(kDecodeQueries, params.group - pass * kDecodeQueries)};
  const auto segments = static_cast<int32_t>(Records(params, shape, of)[2]);
  CombineSegments<kDim>(params, shape, of, segments);
}

// Launches the instance for a padded head size that kDim holds.
template <int32_t kDim>
void LaunchAttendDecode(const AttendDecodeParams& params, int32_t* tickets, cudaStream_t stream);

template <int32_t kDim, int32_t kBits>
void LaunchDecodeInstance(const AttendDecodeParams& params, int32_t* tickets, cudaStream_t stream) {
  using Stages = DecodeStages<kDim, kBits>;
  const DecodeShape shape(params);
  const int64_t items = int64_t{params.batch.max_decode_rows} * shape.kv_heads * shape.MostItems();
  const int64_t blocks = shape.unplanned ? items : PersistentBlocks(items, Stages::kBlocks);
  LaunchDependent("attend_decode", AttendDecodeKernel<kDim, kBits>,
                  dim3(static_cast<unsigned>(blocks)), kDecodeThreads, Stages::kBytes, stream,
                  params, shape, tickets);
  if (!shape.by_ticket) {
    LaunchDependent("attend_decode", CombineSegmentsKernel<kDim>,
                    dim3(static_cast<unsigned>(shape.kv_heads * shape.passes),
                         static_cast<unsigned>(params.batch.max_decode_rows)),
                    kDecodeThreads, 0, stream, params, shape);
  }
}

#define LSERVE_INSTANTIATE_ATTEND_DECODE(kDim)                                      \
  template <>                                                                       \
  void LaunchAttendDecode<kDim>(const AttendDecodeParams& params, int32_t* tickets, \
                                cudaStream_t stream) {                              \
    const KvPageLayout& layout = params.retrieval.layout;                           \
    if (!layout.boxed() || layout.heads == 0) {                                     \
      LaunchDecodeInstance<kDim, 0>(params, tickets, stream);                       \
    } else if (layout.value_bits() == 8) {                                          \
      LaunchDecodeInstance<kDim, 8>(params, tickets, stream);                       \
    } else {                                                                        \
      LaunchDecodeInstance<kDim, 4>(params, tickets, stream);                       \
    }                                                                               \
  }

}  // namespace lserve::cuda
