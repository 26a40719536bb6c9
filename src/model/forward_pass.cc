#include "model/forward_pass.h"

namespace lserve {
namespace {

const void* OrNull(const Buffer& buffer) { return buffer.bytes() > 0 ? buffer.data() : nullptr; }

}  // namespace

Status ForwardPass::Allocate(const BatchView& batch) {
  batch_ = batch;
  const ModelConfig& config = weights_.config;
  const int64_t bytes = DTypeBytes(dtype());
  const int64_t rows = int64_t{batch.max_rows} + kRowSlack;
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim;
  const BufferSizes wanted = {
      {&residual_, rows * config.hidden_size * bytes},
      {&normed_, rows * config.hidden_size * bytes},
      {&qkv_, rows * qkv_width * bytes},
      {&q_, rows * q_width * bytes},
      {&attended_, rows * q_width * bytes},
      {&intermediate_, rows * config.intermediate_size * bytes},
      {&angles_, rows * config.head_dim * 4},
      {&logits_, (int64_t{batch.max_logit_rows} + kRowSlack) * config.vocab_size * 4},
  };
  return AllocateTogether(backend_, wanted);
}

int64_t ForwardPass::bytes() const {
  int64_t bytes = 0;
  for (const Buffer* buffer : {&residual_, &normed_, &qkv_, &q_, &attended_, &intermediate_,
                               &angles_, &logits_, &workspace_}) {
    bytes += buffer->bytes();
  }
  return bytes;
}

LinearParams ForwardPass::NormedLinear(const Buffer& norm, const PackedLinear& weight,
                                       const Buffer& output, Epilogue epilogue) const {
  LinearParams params = Linear(weight, residual_, output, epilogue);
  params.norm = {
      .weight = norm.data(), .output = normed_.data(), .epsilon = weights_.config.rms_norm_eps};
  return params;
}

LinearParams ForwardPass::Linear(const PackedLinear& weight, const Buffer& input,
                                 const Buffer& output, Epilogue epilogue) const {
  return LinearParams{.batch = batch_,
                      .rows = RowSet::kBatch,
                      .weight = &weight,
                      .input = input.data(),
                      .output = output.data(),
                      .bias = nullptr,
                      .dtype = dtype(),
                      .output_dtype = dtype(),
                      .epilogue = epilogue,
                      .workspace = workspace_.data()};
}

RopeAppendParams ForwardPass::RopeAppend(const LayerWeights& weights,
                                         const RetrievalLane& retrieval,
                                         const StreamingLane& streaming) const {
  return RopeAppendParams{.batch = batch_,
                          .qkv = qkv_.data(),
                          .bias = OrNull(weights.qkv_bias),
                          .q_norm = OrNull(weights.q_norm),
                          .k_norm = OrNull(weights.k_norm),
                          .angles = angles_.As<float>(),
                          .q = q_.data(),
                          .retrieval = retrieval,
                          .streaming = streaming,
                          .dtype = dtype(),
                          .q_heads = q_heads(),
                          .kv_heads = static_cast<int32_t>(weights_.config.num_kv_heads),
                          .head_dim = static_cast<int32_t>(weights_.config.head_dim),
                          .norm_epsilon = weights_.config.rms_norm_eps};
}

}  // namespace lserve
