// LlamaRunner: the forward pass of a Llama-family decoder over a mixed batch, for one attention
// mode. It owns its cache, activations and step arrays, and shares the weights. The operations of a
// step are captured once, at start-up: graphs for steps of decode rows alone and graphs for steps
// with prompt chunks, by how many rows they have room for; a step only rewrites the arrays they
// read. Used by one thread at a time.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kv/two_lane_cache.h"
#include "model/forward_pass.h"
#include "model/random_tokens.h"
#include "model/runner.h"
#include "model/selection_audit.h"
#include "model/weights.h"
#include "sparse/attention_mode.h"

namespace lserve {

struct RunnerOptions {
  int64_t max_model_len = 0;          // 0: the model's context length
  int32_t max_num_seqs = 8;           // 1 to 1024
  int32_t max_batched_tokens = 2048;  // prefill rows of one step, 128 to 2^17
  int64_t kv_cache_bytes = 0;         // of all pools; 0: what max_num_seqs full contexts take
  int32_t max_logit_rows = 0;         // 0: max_num_seqs; more to read logits of many rows
  double audit_rate = 0;              // share of decode steps whose selection is audited, 0 to 1
};

class LlamaRunner : public Runner {
 public:
  // Errors: kInvalidArgument (an option out of range; a context or cache too small, naming both),
  // kResourceExhausted.
  static Result<std::unique_ptr<LlamaRunner>> Make(Backend& backend,
                                                   std::shared_ptr<const ModelWeights> weights,
                                                   const AttentionMode& mode,
                                                   const RunnerOptions& options);

  // The cache of a runner with checked options: what Make allocates, and what `inspect` reports.
  // Errors: kInvalidArgument (a cache of kv_cache_bytes is too small; a boxed format with float32
  // activations).
  static Result<CacheConfig> MakeCacheConfig(const ModelConfig& config, const AttentionMode& mode,
                                             const RunnerOptions& options, DType activations);

  const RunnerLimits& limits() const override { return limits_; }
  Result<int32_t> OpenSlot(std::span<const int32_t> prompt, const SlotSampling& sampling) override;
  Status Reserve(int32_t slot, int64_t tokens) override { return cache_->Reserve(slot, tokens); }
  Result<int32_t> Fork(int32_t slot, std::span<const int32_t> prompt,
                       const SlotSampling& sampling) override;
  void CloseSlot(int32_t slot) override { cache_->CloseSlot(slot); }
  int64_t PagesFor(int64_t tokens) const override { return TwoLaneCache::PagesFor(tokens); }
  int64_t FreePages() const override { return cache_->free_pages(); }
  int64_t KvBytes(int32_t slot) const override { return cache_->KvBytes(slot); }
  Result<SelectionStats> Selection() override;
  Result<std::vector<SampledToken>> Step(const StepInput& input) override;

  // Runs a step and returns the float32 logits [rows, vocab_size] of the given rows of its batch
  // (decode rows first, then the chunks' rows, in the input's order); at most max_logit_rows.
  // Nothing is sampled.
  Result<std::vector<float>> StepLogits(const StepInput& input, std::span<const int32_t> rows);

  // Appends random keys and values to a slot in place of prefilling so many tokens
  // (random_tokens.h). Errors: those of AppendRandomTokens.
  Status AppendRandom(int32_t slot, int64_t tokens, uint64_t seed, int64_t chunk_tokens) {
    return AppendRandomTokens(backend_, *stream_, *weights_, *cache_, slot, tokens, seed,
                              chunk_tokens);
  }

  // Selects by another policy from the next step on: what a slot selected before is forgotten. Not
  // for a dense runner. Errors: those of Validate; kResourceExhausted.
  Status SetPolicy(const SelectionPolicy& policy);

  const AttentionMode& mode() const { return mode_; }
  const TwoLaneCache& cache() const { return *cache_; }
  // Bytes of what a step works with: activations, logits, workspace, and by slot token counts and
  // lists of units.
  int64_t ActivationBytes() const {
    return forward_.bytes() + step_device_.bytes() + token_counts_.bytes() + prompt_seen_.bytes() +
           units_.bytes() + unit_queries_.bytes();
  }

 private:
  LlamaRunner(Backend& backend, std::shared_ptr<const ModelWeights> weights, AttentionMode mode);

  Status AllocateMemory(const RunnerOptions& options);
  // The lists of selected units, whose size the policy decides; every count -1.
  Status AllocateLists();
  // Validates the operations' parameters and captures the graphs.
  Status Capture();
  // Calls visit(op, params) for the operations of a step, in their order.
  enum class Pass { kDecode, kMixed, kAuditedDecode };
  // The most that a step of a graph may have: where its kernels look for what there is.
  struct Room {
    int32_t rows, decode_rows, chunks, logit_rows;
  };
  Room RoomFor(Pass pass, int32_t rows) const;
  template <typename Visitor>
  void ForEachOp(Pass pass, const Room& room, bool sample, Visitor&& visit_op) const;
  template <typename Visitor>
  void ForEachAttentionOp(Pass pass, bool sample, size_t layer, Visitor&& visit) const;

  // The graphs of a step with room for `rows` rows, with and without sampling.
  struct StepGraphs {
    int32_t rows;
    std::unique_ptr<Graph> sampled, logits;
  };
  // Those with the least room that does for the step; the pass is not audited.
  const StepGraphs& GraphsFor(Pass pass, const StepInput& input) const;
  // Fills and uploads the step arrays. Returns the pass that the step needs.
  Pass FillStep(const StepInput& input, std::span<const int32_t> logit_rows);
  // Tells the penalties of a slot that a token was generated which this runner did not sample: a
  // rebuilt sequence replays its tokens.
  Status CountReplayed(int32_t slot, int32_t token);
  void SetUpSlot(int32_t slot, std::span<const int32_t> prompt, const SlotSampling& sampling);

  Backend& backend_;
  const std::shared_ptr<const ModelWeights> weights_;
  AttentionMode mode_;
  RunnerLimits limits_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;

  ForwardPass forward_;
  // By slot.
  Buffer last_token_, prompt_tokens_, sampling_, token_counts_, prompt_seen_, units_, unit_counts_;
  Buffer unit_queries_;  // of reuse_distance, else empty
  Buffer lists_made_;
  Buffer prefill_blocks_;  // PrefillBlocks
  Buffer sampled_;
  BatchView batch_;
  BatchView last_rows_;  // the same, each chunk that is sampled cut down to its last row
  Buffer step_device_;
  std::vector<std::byte> step_host_;
  std::vector<bool> slot_penalties_;  // by slot: its sampling settings have a penalty
  int32_t unit_capacity_ = 0;

  // Selection figures.
  int64_t lists_used_ = 0;
  std::vector<int32_t> selecting_rows_;    // of the step: decode rows beyond the budget
  std::unique_ptr<SelectionAudit> audit_;  // null: none
  double audit_rate_ = 0;
  uint64_t decode_steps_ = 0;

  std::vector<StepGraphs> decode_graphs_, mixed_graphs_;  // ascending in rows
  std::unique_ptr<Graph> audited_graph_;                  // with sampling
};

}  // namespace lserve
