#include "model/llama_runner.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace lserve {
namespace {

constexpr int32_t kMaxBatchedTokens = 1 << 17;

// Bytes of an array, rounded up so that the next one is aligned.
constexpr int64_t Padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Offsets of the step's arrays in one block, so that a step is one copy.
struct StepLayout {
  StepLayout(const BatchView& batch)  // NOLINT(google-explicit-constructor)
      : counts(0),
        row_slot(counts + Padded(kBatchCounts * 4)),
        row_position(row_slot + Padded(int64_t{batch.max_rows} * 4)),
        row_token(row_position + Padded(int64_t{batch.max_rows} * 4)),
        chunks(row_token + Padded(int64_t{batch.max_rows} * 4)),
        logit_row(chunks + Padded(batch.max_chunks * static_cast<int64_t>(sizeof(PrefillChunk)))),
        bytes(logit_row + Padded(int64_t{batch.max_logit_rows} * 4)) {}

  int64_t counts, row_slot, row_position, row_token, chunks, logit_row, bytes;
};

const void* OrNull(const Buffer& buffer) { return buffer.bytes() > 0 ? buffer.data() : nullptr; }

}  // namespace

LlamaRunner::LlamaRunner(Backend& backend, std::shared_ptr<const ModelWeights> weights,
                         AttentionMode mode)
    : backend_(backend),
      weights_(std::move(weights)),
      mode_(std::move(mode)),
      stream_(backend.MakeStream()) {}

Result<std::unique_ptr<LlamaRunner>> LlamaRunner::Make(Backend& backend,
                                                       std::shared_ptr<const ModelWeights> weights,
                                                       const AttentionMode& mode,
                                                       const RunnerOptions& options) {
  RETURN_IF_ERROR(Validate(mode));
  const ModelConfig& config = weights->config;
  RunnerOptions checked = options;
  if (checked.max_model_len == 0) {
    checked.max_model_len = config.context_length;
  }
  if (checked.max_model_len < 1 || checked.max_model_len > config.context_length) {
    return InvalidArgument("max-model-len {} is outside 1 to {}, the model's context length",
                           checked.max_model_len, config.context_length);
  }
  if (checked.max_num_seqs < 1 || checked.max_num_seqs > 1024) {
    return InvalidArgument("max-num-seqs {} is outside 1 to 1024", checked.max_num_seqs);
  }
  if (checked.max_batched_tokens < kQueryBlockTokens ||
      checked.max_batched_tokens > kMaxBatchedTokens) {
    return InvalidArgument("max-num-batched-tokens {} is outside {} to {}",
                           checked.max_batched_tokens, kQueryBlockTokens, kMaxBatchedTokens);
  }
  if (checked.kv_cache_bytes < 0) {
    return InvalidArgument("KV cache size {} is negative", checked.kv_cache_bytes);
  }
  if (checked.max_logit_rows == 0) {
    checked.max_logit_rows = checked.max_num_seqs;
  }
  std::unique_ptr<LlamaRunner> runner(new LlamaRunner(backend, std::move(weights), mode));
  RETURN_IF_ERROR(runner->AllocateMemory(checked));
  RETURN_IF_ERROR(runner->Capture());
  return runner;
}

Result<CacheConfig> LlamaRunner::MakeCacheConfig(const ModelConfig& config,
                                                 const AttentionMode& mode,
                                                 const RunnerOptions& options, DType activations) {
  if (IsBoxed(mode.kv_format) && activations != DType::kBFloat16) {
    return InvalidArgument("a KV cache of int8 or int4 needs bfloat16 activations, they are {}",
                           DTypeName(activations));
  }
  CacheConfig cache;
  cache.retrieval_heads = mode.retrieval_heads();
  cache.kv_heads = static_cast<int32_t>(config.num_kv_heads);
  cache.head_dim = static_cast<int32_t>(config.head_dim);
  cache.format = activations == DType::kFloat32 ? KvFormat::kFloat32 : mode.kv_format;
  cache.score = mode.score;
  cache.sink_tokens = mode.sink_tokens;
  cache.local_tokens = mode.local_tokens;
  cache.max_slots = options.max_num_seqs;
  cache.max_model_len = options.max_model_len;
  // A chunk touches at most two pages more than its full ones.
  cache.max_chunk_pages = options.max_batched_tokens / kPageTokens + 2 * options.max_num_seqs;
  const int64_t full = int64_t{options.max_num_seqs} * TwoLaneCache::PagesFor(cache.max_model_len);
  const int64_t page_bytes = cache.RetrievalPageBytes();
  if (options.kv_cache_bytes == 0 || page_bytes == 0) {
    cache.retrieval_pages = full;
  } else {
    const int64_t pages =
        std::min((options.kv_cache_bytes - cache.FixedBytes()) / page_bytes, full);
    if (pages < 1) {
      return InvalidArgument(
          "a KV cache of {} bytes is too small: {} slots and one page take {} bytes",
          options.kv_cache_bytes, options.max_num_seqs, cache.FixedBytes() + page_bytes);
    }
    cache.retrieval_pages = pages;
  }
  return cache;
}

Status LlamaRunner::AllocateMemory(const RunnerOptions& options) {
  const ModelConfig& config = weights_->config;
  const DType dtype = weights_->activations;
  batch_.max_decode_rows = options.max_num_seqs;
  batch_.max_rows = options.max_batched_tokens + options.max_num_seqs;
  batch_.max_chunks = options.max_num_seqs;
  batch_.max_logit_rows = options.max_logit_rows;
  batch_.max_slots = options.max_num_seqs;

  ASSIGN_OR_RETURN(CacheConfig cache, MakeCacheConfig(config, mode_, options, dtype));
  ASSIGN_OR_RETURN(cache_, TwoLaneCache::Make(backend_, *stream_, std::move(cache)));

  limits_.max_model_len = options.max_model_len;
  limits_.max_num_seqs = options.max_num_seqs;
  limits_.max_batch_rows = batch_.max_rows;
  limits_.kv_pages = cache_->config().retrieval_pages;
  limits_.vocab_size = static_cast<int32_t>(config.vocab_size);

  const int64_t rows = batch_.max_rows + kRowSlack;
  const int64_t bytes = DTypeBytes(dtype);
  const int64_t q_width = config.num_q_heads * config.head_dim;
  const int64_t qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim;
  const int64_t slots = options.max_num_seqs;
  const int64_t lists = slots * mode_.plan.total_retrieval_heads();
  unit_capacity_ = mode_.policy.token_budget / mode_.policy.unit_tokens;
  const int64_t logit_rows = batch_.max_logit_rows + kRowSlack;
  const std::pair<Buffer*, int64_t> wanted[] = {
      {&residual_, rows * config.hidden_size * bytes},
      {&normed_, rows * config.hidden_size * bytes},
      {&qkv_, rows * qkv_width * bytes},
      {&q_, rows * q_width * bytes},
      {&attended_, rows * q_width * bytes},
      {&intermediate_, rows * config.intermediate_size * bytes},
      {&angles_, rows * config.head_dim * 4},
      {&logits_, logit_rows * config.vocab_size * 4},
      {&last_token_, slots * 4},
      {&prompt_tokens_, slots * 4},
      {&sampling_, slots * static_cast<int64_t>(sizeof(SlotSampling))},
      {&token_counts_, slots * config.vocab_size * 4},
      {&prompt_seen_, slots * config.vocab_size},
      {&units_, lists * unit_capacity_ * 4},
      {&unit_counts_, lists * 4},
      {&sampled_, logit_rows * 4},
      {&step_device_, StepLayout(batch_).bytes},
  };
  for (const auto& [buffer, size] : wanted) {
    ASSIGN_OR_RETURN(*buffer, backend_.Allocate(size));
  }
  slot_penalties_.resize(static_cast<size_t>(slots), false);
  const StepLayout layout(batch_);
  step_host_.resize(static_cast<size_t>(layout.bytes));
  const auto at = [&](int64_t offset) {
    return reinterpret_cast<const int32_t*>(step_device_.data() + offset);
  };
  batch_.counts = at(layout.counts);
  batch_.row_slot = at(layout.row_slot);
  batch_.row_position = at(layout.row_position);
  batch_.row_token = at(layout.row_token);
  batch_.chunks = reinterpret_cast<const PrefillChunk*>(at(layout.chunks));
  batch_.logit_row = at(layout.logit_row);
  return OkStatus();
}

template <typename Visitor>
void LlamaRunner::ForEachLayerOp(Pass pass, size_t layer, Visitor&& visit) const {
  const ModelConfig& config = weights_->config;
  const LayerWeights& w = weights_->layers[layer];
  const Ops& ops = backend_.ops();
  const DType dtype = weights_->activations;
  const auto q_heads = static_cast<int32_t>(config.num_q_heads);
  const auto kv_heads = static_cast<int32_t>(config.num_kv_heads);
  const auto head_dim = static_cast<int32_t>(config.head_dim);
  const auto hidden = static_cast<int32_t>(config.hidden_size);
  const RetrievalLane retrieval = cache_->retrieval(static_cast<int32_t>(layer));
  const StreamingLane streaming = cache_->streaming(static_cast<int32_t>(layer));

  const auto norm = [&](const Buffer& weight) {
    visit(ops.add_rms_norm, AddRmsNormParams{.batch = batch_,
                                             .rows = RowSet::kBatch,
                                             .residual = residual_.data(),
                                             .addend = nullptr,
                                             .weight = weight.data(),
                                             .output = normed_.data(),
                                             .dtype = dtype,
                                             .hidden = hidden,
                                             .epsilon = config.rms_norm_eps});
  };
  const auto linear = [&](const PackedLinear& weight, const Buffer& input, const Buffer& output,
                          Epilogue epilogue) {
    visit(ops.linear, LinearParams{.batch = batch_,
                                   .rows = RowSet::kBatch,
                                   .weight = &weight,
                                   .input = input.data(),
                                   .output = output.data(),
                                   .bias = nullptr,
                                   .dtype = dtype,
                                   .output_dtype = dtype,
                                   .epilogue = epilogue,
                                   .workspace = workspace_.data()});
  };

  norm(w.input_norm);
  linear(*w.qkv, normed_, qkv_, Epilogue::kNone);
  visit(ops.rope_append, RopeAppendParams{.batch = batch_,
                                          .qkv = qkv_.data(),
                                          .bias = OrNull(w.qkv_bias),
                                          .q_norm = OrNull(w.q_norm),
                                          .k_norm = OrNull(w.k_norm),
                                          .angles = angles_.As<float>(),
                                          .q = q_.data(),
                                          .retrieval = retrieval,
                                          .streaming = streaming,
                                          .dtype = dtype,
                                          .q_heads = q_heads,
                                          .kv_heads = kv_heads,
                                          .head_dim = head_dim,
                                          .norm_epsilon = config.rms_norm_eps});
  UnitLists lists{};
  if (!mode_.dense()) {
    const std::vector<int32_t>& heads = mode_.plan.retrieval_heads();
    lists.units = units_.As<int32_t>();
    lists.counts = unit_counts_.As<int32_t>();
    lists.slot_lists = mode_.plan.total_retrieval_heads();
    for (size_t below = 0; below < layer; ++below) {
      lists.first_list += heads[below];
    }
    lists.capacity = unit_capacity_;
    if (heads[layer] > 0) {
      visit(ops.select_units, SelectUnitsParams{.batch = batch_,
                                                .q = q_.data(),
                                                .retrieval = retrieval,
                                                .lists = lists,
                                                .prompt_tokens = prompt_tokens_.As<int32_t>(),
                                                .scores = nullptr,
                                                .policy = mode_.policy,
                                                .dtype = dtype,
                                                .q_heads = q_heads,
                                                .group = q_heads / kv_heads,
                                                .workspace = workspace_.data()});
    }
  }
  visit(ops.attend_decode, AttendDecodeParams{.batch = batch_,
                                              .q = q_.data(),
                                              .output = attended_.data(),
                                              .retrieval = retrieval,
                                              .streaming = streaming,
                                              .lists = lists,
                                              .policy = mode_.policy,
                                              .dtype = dtype,
                                              .q_heads = q_heads,
                                              .group = q_heads / kv_heads,
                                              .workspace = workspace_.data()});
  if (pass == Pass::kMixed) {
    visit(ops.attend_prefill, AttendPrefillParams{.batch = batch_,
                                                  .q = q_.data(),
                                                  .output = attended_.data(),
                                                  .retrieval = retrieval,
                                                  .streaming = streaming,
                                                  .block_offsets = nullptr,
                                                  .block_ids = nullptr,
                                                  .dtype = dtype,
                                                  .q_heads = q_heads,
                                                  .group = q_heads / kv_heads,
                                                  .workspace = workspace_.data()});
    if (streaming.layout.heads > 0) {
      visit(ops.append_streaming, AppendStreamingParams{.batch = batch_, .streaming = streaming});
    }
  }
  linear(*w.output, attended_, residual_, Epilogue::kResidual);
  norm(w.post_norm);
  linear(*w.gate_up, normed_, intermediate_, Epilogue::kSiluMul);
  linear(*w.down, intermediate_, residual_, Epilogue::kResidual);
}

template <typename Visitor>
void LlamaRunner::ForEachOp(Pass pass, bool sample, Visitor&& visit) const {
  const ModelConfig& config = weights_->config;
  const Ops& ops = backend_.ops();
  const DType dtype = weights_->activations;
  const auto hidden = static_cast<int32_t>(config.hidden_size);
  const auto vocab_size = static_cast<int32_t>(config.vocab_size);

  visit(ops.embed_rows, EmbedRowsParams{.batch = batch_,
                                        .table = weights_->embedding.data(),
                                        .table_dtype = weights_->embedding_dtype,
                                        .last_token = last_token_.As<int32_t>(),
                                        .output = residual_.data(),
                                        .dtype = dtype,
                                        .vocab_size = vocab_size,
                                        .hidden = hidden});
  visit(ops.rope_angles,
        RopeAnglesParams{.batch = batch_,
                         .inverse_frequencies = weights_->inverse_frequencies.As<float>(),
                         .angles = angles_.As<float>(),
                         .scale = weights_->rope_scale,
                         .head_dim = static_cast<int32_t>(config.head_dim)});
  for (size_t layer = 0; layer < weights_->layers.size(); ++layer) {
    ForEachLayerOp(pass, layer, visit);
  }
  visit(ops.add_rms_norm, AddRmsNormParams{.batch = batch_,
                                           .rows = RowSet::kLogits,
                                           .residual = residual_.data(),
                                           .addend = nullptr,
                                           .weight = weights_->final_norm.data(),
                                           .output = normed_.data(),
                                           .dtype = dtype,
                                           .hidden = hidden,
                                           .epsilon = config.rms_norm_eps});
  visit(ops.linear, LinearParams{.batch = batch_,
                                 .rows = RowSet::kLogits,
                                 .weight = weights_->lm_head.get(),
                                 .input = normed_.data(),
                                 .output = logits_.data(),
                                 .bias = nullptr,
                                 .dtype = dtype,
                                 .output_dtype = DType::kFloat32,
                                 .epilogue = Epilogue::kNone,
                                 .workspace = workspace_.data()});
  if (sample) {
    visit(ops.sample, SampleParams{.batch = batch_,
                                   .logits = logits_.As<float>(),
                                   .sampling = sampling_.As<SlotSampling>(),
                                   .token_counts = token_counts_.As<int32_t>(),
                                   .prompt_seen = prompt_seen_.As<uint8_t>(),
                                   .last_token = last_token_.As<int32_t>(),
                                   .sampled = sampled_.As<int32_t>(),
                                   .vocab_size = vocab_size,
                                   .workspace = workspace_.data()});
  }
}

Status LlamaRunner::Capture() {
  // What an operation's workspace needs follows from its shapes; addresses are checked after.
  ForEachOp(Pass::kMixed, true, [&](const auto& op, const auto& params) {
    workspace_bytes_ = std::max(workspace_bytes_, op.workspace_bytes(params));
  });
  ASSIGN_OR_RETURN(workspace_, backend_.Allocate(std::max<int64_t>(workspace_bytes_, 64)));
  Status valid;
  ForEachOp(Pass::kMixed, true, [&](const auto& op, const auto& params) {
    if (valid.ok()) {
      valid = Validate(params).Annotate(op.name);
    }
  });
  RETURN_IF_ERROR(valid);
  const auto capture = [&](Pass pass, bool sample) {
    stream_->BeginCapture();
    ForEachOp(pass, sample, [&](const auto& op, const auto& params) { op.run(*stream_, params); });
    return stream_->EndCapture();
  };
  decode_graph_ = capture(Pass::kDecode, true);
  mixed_graph_ = capture(Pass::kMixed, true);
  decode_logits_graph_ = capture(Pass::kDecode, false);
  mixed_logits_graph_ = capture(Pass::kMixed, false);
  return OkStatus();
}

void LlamaRunner::SetUpSlot(int32_t slot, std::span<const int32_t> prompt,
                            const SlotSampling& sampling) {
  const int64_t vocab_size = limits_.vocab_size;
  const auto prompt_tokens = static_cast<int32_t>(prompt.size());
  const auto at = [&](const Buffer& buffer, int64_t bytes_per_slot) {
    return buffer.data() + slot * bytes_per_slot;
  };
  backend_.CopyToDevice(at(prompt_tokens_, 4), &prompt_tokens, 4, *stream_);
  backend_.CopyToDevice(at(sampling_, sizeof(SlotSampling)), &sampling, sizeof(SlotSampling),
                        *stream_);
  const int64_t lists = mode_.dense() ? 0 : mode_.plan.total_retrieval_heads();
  if (lists > 0) {
    const std::vector<int32_t> all(static_cast<size_t>(lists), -1);
    backend_.CopyToDevice(at(unit_counts_, lists * 4), all.data(), lists * 4, *stream_);
  }
  slot_penalties_[static_cast<size_t>(slot)] = sampling.penalties != 0;
  if (sampling.penalties != 0) {
    backend_.Zero(at(token_counts_, vocab_size * 4), vocab_size * 4, *stream_);
    std::vector<uint8_t> seen(static_cast<size_t>(vocab_size), 0);
    for (const int32_t token : prompt) {
      seen.at(static_cast<size_t>(token)) = 1;
    }
    backend_.CopyToDevice(at(prompt_seen_, vocab_size), seen.data(), vocab_size, *stream_);
  }
}

Status LlamaRunner::CountReplayed(int32_t slot, int32_t token) {
  std::byte* count =
      token_counts_.data() + (int64_t{slot} * limits_.vocab_size + token) * int64_t{4};
  int32_t value = 0;
  backend_.CopyToHost(&value, count, 4, *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  ++value;
  backend_.CopyToDevice(count, &value, 4, *stream_);
  return stream_->Synchronize();
}

Result<int32_t> LlamaRunner::OpenSlot(std::span<const int32_t> prompt,
                                      const SlotSampling& sampling) {
  ASSIGN_OR_RETURN(const int32_t slot, cache_->OpenSlot());
  SetUpSlot(slot, prompt, sampling);
  return slot;
}

Result<int32_t> LlamaRunner::Fork(int32_t slot, std::span<const int32_t> prompt,
                                  const SlotSampling& sampling) {
  ASSIGN_OR_RETURN(const int32_t copy, cache_->Fork(slot));
  SetUpSlot(copy, prompt, sampling);
  return copy;
}

LlamaRunner::Pass LlamaRunner::FillStep(const StepInput& input,
                                        std::span<const int32_t> logit_rows) {
  const StepLayout layout(batch_);
  const auto at = [&](int64_t offset) {
    return reinterpret_cast<int32_t*>(step_host_.data() + offset);
  };
  int32_t* row_slot = at(layout.row_slot);
  int32_t* row_position = at(layout.row_position);
  int32_t* row_token = at(layout.row_token);
  auto* chunks = reinterpret_cast<PrefillChunk*>(at(layout.chunks));
  CHECK_LE(std::ssize(input.decode), batch_.max_decode_rows);
  CHECK_LE(std::ssize(input.chunks), batch_.max_chunks);
  CHECK_LE(std::ssize(logit_rows), batch_.max_logit_rows);

  int32_t row = 0;
  const auto add_row = [&](int32_t slot, int64_t position, int32_t token) {
    row_slot[row] = slot;
    row_position[row] = static_cast<int32_t>(position);
    row_token[row] = token;
    ++row;
  };
  for (const DecodeRow& decode : input.decode) {
    CHECK_EQ(decode.position, cache_->length(decode.slot));
    CHECK_LT(decode.token, limits_.vocab_size);
    add_row(decode.slot, decode.position, decode.token);
    cache_->SetLength(decode.slot, decode.position + 1);
  }
  int32_t chunk_page = 0;
  int32_t query_block = 0;
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    const PromptChunk& chunk = input.chunks[i];
    CHECK_EQ(chunk.first_position, cache_->length(chunk.slot));
    CHECK(!chunk.tokens.empty());
    CHECK_LE(row + std::ssize(chunk.tokens), batch_.max_rows);
    const auto first = static_cast<int32_t>(chunk.first_position);
    const auto rows = static_cast<int32_t>(chunk.tokens.size());
    chunks[i] = PrefillChunk{.slot = chunk.slot,
                             .first_position = first,
                             .first_row = row,
                             .rows = rows,
                             .first_chunk_page = chunk_page,
                             .first_query_block = query_block};
    const int32_t last = first + rows - 1;
    chunk_page += last / kPageTokens - first / kPageTokens + 1;
    query_block += last / kQueryBlockTokens - first / kQueryBlockTokens + 1;
    for (int32_t j = 0; j < rows; ++j) {
      const int32_t token = chunk.tokens[static_cast<size_t>(j)];
      CHECK(token >= 0 && token < limits_.vocab_size);
      add_row(chunk.slot, first + j, token);
    }
    cache_->SetLength(chunk.slot, chunk.first_position + rows);
  }
  CHECK_LE(chunk_page, cache_->config().max_chunk_pages);

  const auto decode_rows = static_cast<int32_t>(input.decode.size());
  int32_t* counts = at(layout.counts);
  counts[kDecodeRows] = decode_rows;
  counts[kPrefillRows] = row - decode_rows;
  counts[kChunks] = static_cast<int32_t>(input.chunks.size());
  counts[kLogitRows] = static_cast<int32_t>(logit_rows.size());
  std::copy(logit_rows.begin(), logit_rows.end(), at(layout.logit_row));
  backend_.CopyToDevice(step_device_.data(), step_host_.data(), layout.bytes, *stream_);
  return input.chunks.empty() ? Pass::kDecode : Pass::kMixed;
}

Result<std::vector<SampledToken>> LlamaRunner::Step(const StepInput& input) {
  std::vector<int32_t> logit_rows;
  std::vector<SampledToken> sampled;
  int32_t row = 0;
  for (const DecodeRow& decode : input.decode) {
    if (decode.token >= 0 && slot_penalties_[static_cast<size_t>(decode.slot)]) {
      RETURN_IF_ERROR(CountReplayed(decode.slot, decode.token));
    }
    if (decode.sample) {
      logit_rows.push_back(row);
      sampled.push_back({decode.slot, -1});
    }
    ++row;
  }
  for (const PromptChunk& chunk : input.chunks) {
    row += static_cast<int32_t>(chunk.tokens.size());
    if (chunk.sample) {
      logit_rows.push_back(row - 1);
      sampled.push_back({chunk.slot, -1});
    }
  }
  const Pass pass = FillStep(input, logit_rows);
  stream_->Launch(pass == Pass::kDecode ? *decode_graph_ : *mixed_graph_);
  std::vector<int32_t> tokens(sampled.size());
  backend_.CopyToHost(tokens.data(), sampled_.data(), std::ssize(tokens) * 4, *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  for (size_t i = 0; i < sampled.size(); ++i) {
    sampled[i].token = tokens[i];
  }
  return sampled;
}

Result<std::vector<float>> LlamaRunner::StepLogits(const StepInput& input,
                                                   std::span<const int32_t> rows) {
  const Pass pass = FillStep(input, rows);
  stream_->Launch(pass == Pass::kDecode ? *decode_logits_graph_ : *mixed_logits_graph_);
  std::vector<float> logits(rows.size() * static_cast<size_t>(limits_.vocab_size));
  backend_.CopyToHost(logits.data(), logits_.data(), std::ssize(logits) * 4, *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  return logits;
}

}  // namespace lserve
