// HeadAblation: what a document's answers lose when some KV heads see only sink and local window.
// One forward pass scores many choices of such heads (variants) side by side, each a slot of one
// batch, and a variant runs only from the first layer in which it differs from a base. Any KV head
// of any layer may stream: all heads lie in the retrieval lane in the checkpoint's order, and
// prefill reads the KV blocks that a list names. A document is one prefill chunk, so a layer's keys
// and values are needed while that layer runs, and one layer's pages serve all layers.
//
// Blocks are 64 keys and a list serves a query block of 128 tokens, so a streaming head sees up to
// 63 sink and 190 local tokens more than in serving, never fewer.
// Owns device memory; used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kv/two_lane_cache.h"
#include "model/forward_pass.h"
#include "model/weights.h"
#include "sparse/head_plan.h"

namespace lserve {

struct AblationOptions {
  int64_t max_tokens = 0;    // of a document, at least 1
  int32_t max_variants = 1;  // that run side by side; 2^17 tokens at most in all of them together
  int32_t sink_tokens = 128;
  int32_t local_tokens = 256;
};

// A token sequence in which some tokens are predicted.
struct ScoredDocument {
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;  // their positions, ascending, the first above 0
};

class HeadAblation {
 public:
  // The weights' heads lie in the checkpoint's order (HeadPlan::AllRetrieval). Errors:
  // kInvalidArgument (an option out of range, named), kResourceExhausted.
  static Result<std::unique_ptr<HeadAblation>> Make(Backend& backend,
                                                    std::shared_ptr<const ModelWeights> weights,
                                                    const AblationOptions& options);

  // The negative log-likelihood in nats of each of the document's targets given the tokens before
  // it: for `base`, then for each variant. Errors: kInvalidArgument (the document has no target or
  // is longer than max_tokens), kInternal (the device failed).
  Result<std::vector<std::vector<double>>> Losses(const ScoredDocument& document,
                                                  const HeadSet& base,
                                                  std::span<const HeadSet> variants);

 private:
  // A variant on its way through the layers: it joins the batch at the first layer in which it
  // differs from the base.
  struct Branch {
    const HeadSet* streams;
    size_t join;
    size_t index;  // of its losses
  };

  HeadAblation(Backend& backend, std::shared_ptr<const ModelWeights> weights,
               const AblationOptions& options);
  Status Allocate();

  template <typename Visitor>
  void VisitLayer(size_t layer, Visitor&& visit) const;

  // Fills the rows of `slots` copies of the document and embeds them.
  void LoadDocument(const ScoredDocument& document, int32_t slots);
  void SetCounts(int32_t slots, int32_t logit_rows);
  // Runs the base from the embedding and keeps its residual stream at each layer's input.
  void RunTrunk(const Branch& base);
  // Runs branches, ascending in `join`, from the trunk.
  void RunBranches(std::span<const Branch> branches);
  // Runs a layer for the batch's slots, which hold the branches in their order.
  void RunLayer(size_t layer, std::span<const Branch> branches);
  // Copies the document's residual streams: place to[i] of `destination` = from[i] of `source`.
  void CopyResiduals(const Buffer& destination, const Buffer& source,
                     const std::vector<int32_t>& from, const std::vector<int32_t>& to);
  Result<std::vector<double>> SlotLosses(const ScoredDocument& document, int32_t slot);
  template <typename T>
  void Upload(const Buffer& buffer, const std::vector<T>& host);

  Backend& backend_;
  const std::shared_ptr<const ModelWeights> weights_;
  const AblationOptions options_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;  // of one layer
  ForwardPass forward_;
  int32_t rows_ = 0;  // of a slot: the document's tokens up to the last target

  Buffer trunk_;  // [layers, rows, hidden]
  Buffer counts_, row_slot_, row_position_, row_token_, chunks_, logit_row_, last_token_;
  Buffer block_offsets_, block_ids_;  // the lists of one layer
  Buffer places_;                     // what CopyResiduals copies from and to
};

}  // namespace lserve
