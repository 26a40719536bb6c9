// What the kernels of SelectUnits share: a row and head, when its list is due, where scores lie in
// the workspace. Device code but for sizes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/page_layout.cuh"
#include "kernels/ops.h"

namespace lserve::cuda {

__host__ __device__ inline int32_t MaxUnits(const SelectUnitsParams& params) {
  return params.retrieval.max_pages * (kPageTokens / params.policy.unit_tokens);
}

// Workspace: scores [decode rows, heads, max units] unless the caller takes them; then whether each
// row and head is due, under a reuse distance.
__host__ __device__ inline int64_t ScoreFloats(const SelectUnitsParams& params) {
  return int64_t{params.batch.max_decode_rows} * params.retrieval.layout.heads * MaxUnits(params);
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

// Appends the kernel that scores the units of the due rows and heads.
void ScoreUnits(const SelectUnitsParams& params, cudaStream_t stream);

}  // namespace lserve::cuda
