// What the kernels of SelectUnits share: a row and head, when its list is due, where scores lie in
// the workspace. Device code but for sizes.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/page_layout.cuh"
#include "kernels/cuda/work_plan.cuh"
#include "kernels/ops.h"

namespace lserve::cuda {

__host__ __device__ inline int32_t MaxUnits(const SelectUnitsParams& params) {
  return params.retrieval.max_pages * (kPageTokens / params.policy.unit_tokens);
}

__host__ __device__ inline int64_t MaxPairs(const SelectUnitsParams& params) {
  return int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads;
}

// Workspace: scores [decode rows, heads, max units] unless the caller takes them; whether each row
// and head is due, under a reuse distance; the maxima of groups of units [decode rows, heads, max
// groups], which stand for the scores until a list's candidates are known.
__host__ __device__ inline int64_t ScoreFloats(const SelectUnitsParams& params) {
  return MaxPairs(params) * MaxUnits(params);
}
// Groups of a page at least, in fours.
__host__ __device__ inline int32_t MaxGroups(const SelectUnitsParams& params) {
  return (params.retrieval.max_pages + 3) / 4 * 4;
}
__host__ __device__ inline int64_t MaximaOffset(const SelectUnitsParams& params) {
  return (ScoreFloats(params) + MaxPairs(params) + 3) / 4 * 4;
}

// a / b rounded down, for 0 <= a < 2^20 and 0 < b, at most the error of two float operations away
// from (a + 1/2) / b: far less than the half of 1 / b that it may be.
__device__ inline int32_t Quotient(int32_t a, int32_t b) {
  return static_cast<int32_t>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

// A row and head.
struct SelectionPair {
  __device__ SelectionPair(const SelectUnitsParams& params, int32_t pair)
      : SelectionPair(params, Quotient(pair, params.retrieval.layout.heads), pair) {}
  // pair: as many as the heads of the rows before, and the head.
  __device__ SelectionPair(const SelectUnitsParams& params, int32_t row_of_pair, int32_t pair)
      : row(row_of_pair), head(pair - row_of_pair * params.retrieval.layout.heads) {
    slot = params.batch.row_slot[row];
    tokens = params.batch.row_position[row] + 1;
    list = int64_t{slot} * params.lists.slot_lists + params.lists.first_list + head;
  }

  const __device__ uint16_t* Queries(const SelectUnitsParams& params) const {
    return static_cast<const uint16_t*>(params.q) +
           (int64_t{row} * params.q_heads + int64_t{head} * params.group) *
               params.retrieval.layout.head_dim;
  }
  __device__ uint16_t* ListQueries(const SelectUnitsParams& params) const {
    return static_cast<uint16_t*>(params.lists.queries) +
           list * params.group * params.retrieval.layout.head_dim;
  }

  __device__ bool BeyondBudget(const SelectUnitsParams& params) const {
    return !ReadsAll(params.policy, tokens);
  }
  // Due whatever the queries.
  __device__ bool InItsTurn(const SelectUnitsParams& params) const {
    if (params.policy.reuse_interval == 1) {
      return true;
    }
    const int32_t generated = tokens - 1 - params.prompt_tokens[slot];
    return generated % params.policy.reuse_interval == 0 || params.lists.counts[list] < 0;
  }

  int32_t row;
  int32_t head;
  int32_t slot;
  int32_t tokens;
  int64_t list;
};

__device__ inline float* UnitScores(const SelectUnitsParams& params, int32_t pair) {
  float* scores = params.scores != nullptr ? params.scores : static_cast<float*>(params.workspace);
  return scores + int64_t{pair} * MaxUnits(params);
}

__device__ inline float* GroupMaxima(const SelectUnitsParams& params, int32_t pair) {
  return static_cast<float*>(params.workspace) + MaximaOffset(params) +
         int64_t{pair} * MaxGroups(params);
}

__host__ __device__ inline int32_t* DueFlags(const SelectUnitsParams& params) {
  return reinterpret_cast<int32_t*>(static_cast<float*>(params.workspace) + ScoreFloats(params));
}

__device__ inline bool IsDue(const SelectUnitsParams& params, const SelectionPair& pair,
                             int32_t index) {
  if (params.policy.reuse_distance > 0.0f) {
    return DueFlags(params)[index] != 0;
  }
  return pair.BeyondBudget(params) && pair.InItsTurn(params);
}

// A unit has 2^UnitBits tokens.
__device__ inline int32_t UnitBits(const SelectionPolicy& policy) {
  return policy.unit_tokens == 64 ? 6 : policy.unit_tokens == 32 ? 5 : 4;
}

// What a list is made of: unit 0, units that compete by their scores, [1, newest), and the units
// from `newest` on.
struct ListParts {
  __device__ ListParts(const SelectionPolicy& policy, int32_t tokens)
      : kept(policy.token_budget >> UnitBits(policy)),
        units((tokens + policy.unit_tokens - 1) >> UnitBits(policy)),
        newest(max(tokens - kPageTokens, 0) >> UnitBits(policy)) {}  // FirstForcedNewestUnit

  // For competing units, of which there are more.
  __device__ int32_t places() const { return kept - 1 - (units - newest); }

  int32_t kept;
  int32_t units;
  int32_t newest;
};

// Says that a list has been made, of `kept` units. By one thread, after a barrier behind what the
// others wrote.
__device__ inline void CountList(const SelectUnitsParams& params, const SelectionPair& pair,
                                 int32_t kept) {
  int32_t* count = params.lists.counts + pair.list;
  if (params.policy.reuse_interval > 1) {  // steps that reuse the list do not wait for this kernel
    StoreReleased(count, kept);
  } else {
    *count = kept;
  }
  if (params.lists.made != nullptr) {
    atomicAdd(reinterpret_cast<unsigned long long*>(params.lists.made + pair.list), 1ull);
  }
}

// Of a list whose competing units stand: the rest, and with `counted` that it is made. By a block
// of kThreads.
template <int32_t kThreads>
__device__ void FinishList(const SelectUnitsParams& params, const SelectionPair& pair,
                           const ListParts& parts, int32_t index, bool counted) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  int32_t* list = params.lists.units + pair.list * params.lists.capacity;
  if (thread <= parts.units - parts.newest) {  // at most 5 are forced besides unit 0
    list[thread == 0 ? 0 : parts.places() + thread] = thread == 0 ? 0 : parts.newest + thread - 1;
  }
  if (counted) {
    __syncthreads();
    if (thread == 0) {
      CountList(params, pair, parts.kept);
    }
  }
  if (params.lists.queries != nullptr) {
    const int32_t elements = params.group * params.retrieval.layout.head_dim;
#pragma unroll 1
    for (int32_t i = thread; i < elements; i += kThreads) {
      pair.ListQueries(params)[i] = pair.Queries(params)[i];
    }
  }
  if (params.scores != nullptr) {
    float* beyond = UnitScores(params, index);
#pragma unroll 1
    for (int32_t unit = parts.units + thread; unit < MaxUnits(params); unit += kThreads) {
      beyond[unit] = -INFINITY;
    }
  }
}

// Whether the kernel that scores writes the lists, too: few places (group_lists.cuh).
bool ListsByGroups(const SelectUnitsParams& params);

// Appends the kernel that scores the units of the due rows and heads, and under ListsByGroups
// writes their lists. tickets: zeros, and zeros again when it has run; one more than MaxPairs.
void ScoreUnits(const SelectUnitsParams& params, int32_t* tickets, cudaStream_t stream);

}  // namespace lserve::cuda
