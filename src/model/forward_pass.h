// ForwardPass: the operations of a Llama-family decoder in their order, with the activations that
// they pass on. Its owner brings the batch, the cache and the attention: LlamaRunner captures the
// operations once, HeadAblation runs them layer by layer. Owns device memory; not thread-safe.
#pragma once

#include <algorithm>

#include "base/status.h"
#include "kernels/backend.h"
#include "model/weights.h"

namespace lserve {

class ForwardPass {
 public:
  // `backend` and `weights` outlive the pass.
  ForwardPass(Backend& backend, const ModelWeights& weights)
      : backend_(backend), weights_(weights) {}

  // Activations of batch.max_rows rows and logits of batch.max_logit_rows, with the rows' slack;
  // the batch's addresses stay fixed. Errors: kResourceExhausted.
  Status Allocate(const BatchView& batch);

  // Finds the workspace that the operations need, allocates it and checks their parameters.
  // each_operation(visit) visits all that will run. Errors: kResourceExhausted; those of Validate.
  template <typename EachOperation>
  Status Prepare(EachOperation&& each_operation);

  const BatchView& batch() const { return batch_; }
  DType dtype() const { return weights_.activations; }
  const Buffer& residual() const { return residual_; }  // [max_rows, hidden]
  const Buffer& q() const { return q_; }                // [max_rows, q_heads, head_dim]
  const Buffer& attended() const { return attended_; }  // the same
  const Buffer& logits() const { return logits_; }      // [max_logit_rows, vocab_size] float32
  void* workspace() const { return workspace_.data(); }
  int64_t bytes() const;  // of activations, logits and workspace
  int32_t q_heads() const { return static_cast<int32_t>(weights_.config.num_q_heads); }
  int32_t group() const {
    return static_cast<int32_t>(weights_.config.num_q_heads / weights_.config.num_kv_heads);
  }

  // Each of these calls visit(op, params) for its operations; `op` is the backend's entry. Tokens
  // to the residual stream, and the rows' RoPE angles; last_token as in EmbedRowsParams.
  template <typename Visitor>
  void VisitEmbedding(const int32_t* last_token, Visitor&& visit) const;
  // One layer, the residual stream in place. attend() visits what turns q into `attended`, after
  // the append to the lanes.
  template <typename Attend, typename Visitor>
  void VisitLayer(size_t layer, const RetrievalLane& retrieval, const StreamingLane& streaming,
                  Attend&& attend, Visitor&& visit) const;
  // The residual stream of the logit rows to their logits.
  template <typename Visitor>
  void VisitLogits(Visitor&& visit) const;

 private:
  int32_t hidden() const { return static_cast<int32_t>(weights_.config.hidden_size); }
  LinearParams Linear(const PackedLinear& weight, const Buffer& input, const Buffer& output,
                      Epilogue epilogue) const;
  // Of the residual stream, normalised.
  LinearParams NormedLinear(const Buffer& norm, const PackedLinear& weight, const Buffer& output,
                            Epilogue epilogue) const;
  RopeAppendParams RopeAppend(const LayerWeights& weights, const RetrievalLane& retrieval,
                              const StreamingLane& streaming) const;

  Backend& backend_;
  const ModelWeights& weights_;
  BatchView batch_{};
  Buffer residual_, normed_, qkv_, q_, attended_, intermediate_, angles_, logits_, workspace_;
};

template <typename EachOperation>
Status ForwardPass::Prepare(EachOperation&& each_operation) {
  // What an operation's workspace needs follows from its shapes; addresses are checked after.
  int64_t bytes = 64;
  each_operation([&](const auto& op, const auto& params) {
    bytes = std::max(bytes, op.workspace_bytes(params));
  });
  ASSIGN_OR_RETURN(workspace_, backend_.Allocate(bytes));
  Status valid;
  each_operation([&](const auto& op, const auto& params) {
    if (valid.ok()) {
      valid = Validate(params).Annotate(op.name);
    }
  });
  return valid;
}

template <typename Visitor>
void ForwardPass::VisitEmbedding(const int32_t* last_token, Visitor&& visit) const {
  const Ops& ops = backend_.ops();
  visit(ops.embed_rows,
        EmbedRowsParams{.batch = batch_,
                        .table = weights_.embedding.data(),
                        .table_dtype = weights_.embedding_dtype,
                        .last_token = last_token,
                        .output = residual_.data(),
                        .dtype = dtype(),
                        .vocab_size = static_cast<int32_t>(weights_.config.vocab_size),
                        .hidden = hidden()});
  visit(ops.rope_angles,
        RopeAnglesParams{.batch = batch_,
                         .inverse_frequencies = weights_.inverse_frequencies.As<float>(),
                         .angles = angles_.As<float>(),
                         .scale = weights_.rope_scale,
                         .head_dim = static_cast<int32_t>(weights_.config.head_dim)});
}

template <typename Attend, typename Visitor>
void ForwardPass::VisitLayer(size_t layer, const RetrievalLane& retrieval,
                             const StreamingLane& streaming, Attend&& attend,
                             Visitor&& visit) const {
  const Ops& ops = backend_.ops();
  const LayerWeights& w = weights_.layers[layer];
  visit(ops.linear, NormedLinear(w.input_norm, *w.qkv, qkv_, Epilogue::kNone));
  visit(ops.rope_append, RopeAppend(w, retrieval, streaming));
  attend();
  visit(ops.linear, Linear(*w.output, attended_, residual_, Epilogue::kResidual));
  visit(ops.linear, NormedLinear(w.post_norm, *w.gate_up, intermediate_, Epilogue::kSiluMul));
  visit(ops.linear, Linear(*w.down, intermediate_, residual_, Epilogue::kResidual));
}

template <typename Visitor>
void ForwardPass::VisitLogits(Visitor&& visit) const {
  const Ops& ops = backend_.ops();
  LinearParams head =
      NormedLinear(weights_.final_norm, *weights_.lm_head, logits_, Epilogue::kNone);
  head.rows = RowSet::kLogits;
  head.output_dtype = DType::kFloat32;
  visit(ops.linear, head);
}

}  // namespace lserve
