#include "model/random_tokens.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace lserve {
namespace {

class RandomAppender {
 public:
  RandomAppender(Backend& backend, Stream& stream, const ModelWeights& weights, TwoLaneCache& cache,
                 int32_t slot, uint64_t seed)
      : backend_(backend),
        stream_(stream),
        weights_(weights),
        cache_(cache),
        slot_(slot),
        seed_(seed) {}

  Status Allocate(int32_t rows) {
    const ModelConfig& config = weights_.config;
    const int64_t slack_rows = int64_t{rows} + kRowSlack;
    const int64_t bytes = DTypeBytes(weights_.activations);
    step_.resize(static_cast<size_t>(kBatchCounts + 3 * rows));
    const BufferSizes wanted = {
        {&step_device_, std::ssize(step_) * 4},
        {&chunk_, static_cast<int64_t>(sizeof(PrefillChunk))},
        {&qkv_, slack_rows * QkvWidth() * bytes},
        {&q_, slack_rows * config.num_q_heads * config.head_dim * bytes},
        {&angles_, slack_rows * config.head_dim * 4},
    };
    RETURN_IF_ERROR(AllocateTogether(backend_, wanted));
    const int32_t* array = step_device_.As<int32_t>();
    batch_.counts = array;
    batch_.row_slot = array + kBatchCounts;
    batch_.row_position = batch_.row_slot + rows;
    batch_.row_token = batch_.row_position + rows;
    batch_.chunks = chunk_.As<PrefillChunk>();
    batch_.max_rows = rows;
    batch_.max_chunks = 1;
    batch_.max_slots = cache_.config().max_slots;
    for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
      RETURN_IF_ERROR(Validate(RopeAppend(layer)));
    }
    return OkStatus();
  }

  void Append(int64_t first, int32_t rows) {
    step_[kPrefillRows] = rows;
    step_[kChunks] = 1;
    const auto max_rows = static_cast<size_t>(batch_.max_rows);
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      step_[kBatchCounts + row] = slot_;
      step_[kBatchCounts + max_rows + row] =
          static_cast<int32_t>(first) + static_cast<int32_t>(row);
    }
    backend_.CopyToDevice(step_device_.data(), step_.data(), std::ssize(step_) * 4, stream_);
    const PrefillChunk chunk{.slot = slot_,
                             .first_position = static_cast<int32_t>(first),
                             .first_row = 0,
                             .rows = rows,
                             .first_chunk_page = 0,
                             .first_query_block = 0};
    backend_.CopyToDevice(chunk_.data(), &chunk, sizeof(chunk), stream_);
    const Ops& ops = backend_.ops();
    ops.rope_angles.run(
        stream_, RopeAnglesParams{.batch = batch_,
                                  .inverse_frequencies = weights_.inverse_frequencies.As<float>(),
                                  .angles = angles_.As<float>(),
                                  .scale = weights_.rope_scale,
                                  .head_dim = static_cast<int32_t>(weights_.config.head_dim)});
    for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
      constexpr uint64_t kLayers = 1024;  // the most that a model has
      ops.fill_normal.run(stream_,
                          FillNormalParams{.data = qkv_.data(),
                                           .dtype = weights_.activations,
                                           .count = rows * QkvWidth(),
                                           .seed = seed_ * kLayers + layer,
                                           .first = static_cast<uint64_t>(first * QkvWidth()),
                                           .deviation = 1.0f});
      const RopeAppendParams append = RopeAppend(layer);
      ops.rope_append.run(stream_, append);
      if (append.streaming.layout.heads > 0) {
        ops.append_streaming.run(stream_, {.batch = batch_, .streaming = append.streaming});
      }
    }
  }

 private:
  int64_t QkvWidth() const {
    const ModelConfig& config = weights_.config;
    return (config.num_q_heads + 2 * config.num_kv_heads) * config.head_dim;
  }

  RopeAppendParams RopeAppend(size_t layer) const {
    const ModelConfig& config = weights_.config;
    return RopeAppendParams{.batch = batch_,
                            .qkv = qkv_.data(),
                            .bias = nullptr,
                            .q_norm = nullptr,
                            .k_norm = nullptr,
                            .angles = angles_.As<float>(),
                            .q = q_.data(),
                            .retrieval = cache_.retrieval(static_cast<int32_t>(layer)),
                            .streaming = cache_.streaming(static_cast<int32_t>(layer)),
                            .dtype = weights_.activations,
                            .q_heads = static_cast<int32_t>(config.num_q_heads),
                            .kv_heads = static_cast<int32_t>(config.num_kv_heads),
                            .head_dim = static_cast<int32_t>(config.head_dim),
                            .norm_epsilon = config.rms_norm_eps};
  }

  Backend& backend_;
  Stream& stream_;
  const ModelWeights& weights_;
  TwoLaneCache& cache_;
  const int32_t slot_;
  const uint64_t seed_;
  std::vector<int32_t> step_;  // counts, then slot, position and token of each row
  BatchView batch_{};
  Buffer step_device_, chunk_, qkv_, q_, angles_;
};

}  // namespace

Status AppendRandomTokens(Backend& backend, Stream& stream, const ModelWeights& weights,
                          TwoLaneCache& cache, int32_t slot, int64_t tokens, uint64_t seed,
                          int64_t chunk_tokens) {
  CHECK_GE(chunk_tokens, 1);
  const int64_t begin = cache.length(slot);
  RETURN_IF_ERROR(cache.Reserve(slot, begin + tokens));
  RandomAppender appender(backend, stream, weights, cache, slot, seed);
  RETURN_IF_ERROR(appender.Allocate(static_cast<int32_t>(std::min(chunk_tokens, tokens))));
  for (int64_t first = begin; first < begin + tokens; first += chunk_tokens) {
    appender.Append(first, static_cast<int32_t>(std::min(chunk_tokens, begin + tokens - first)));
  }
  RETURN_IF_ERROR(stream.Synchronize());
  cache.SetLength(slot, begin + tokens);
  return OkStatus();
}

}  // namespace lserve
