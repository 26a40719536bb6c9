#include "model/llama_runner.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/random.h"

namespace lserve {
namespace {

constexpr int32_t kMaxBatchedTokens = 1 << 17;
// An operation may take time for the room that a step has. Steps with prompt rows have room for one
// of these or for all that there can be, steps without for a power of two or all.
constexpr int32_t kRoomForRows[] = {256, 512, 1024, 2048, 4096, 8192};
constexpr uint64_t kAuditSeed = 0x61756469;  // which steps are audited

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
        logit_row(chunks + ChunkBytes(batch)),
        last_counts(logit_row + Padded(int64_t{batch.max_logit_rows} * 4)),
        last_chunks(last_counts + Padded(kBatchCounts * 4)),
        bytes(last_chunks + ChunkBytes(batch)) {}

  static int64_t ChunkBytes(const BatchView& batch) {
    return Padded(batch.max_chunks * static_cast<int64_t>(sizeof(PrefillChunk)));
  }

  int64_t counts, row_slot, row_position, row_token, chunks, logit_row;
  int64_t last_counts, last_chunks;  // of last_rows_
  int64_t bytes;
};

// The chunk's last row as a chunk.
PrefillChunk LastRow(const PrefillChunk& chunk) {
  const int32_t position = chunk.first_position + chunk.rows - 1;
  PrefillChunk last = chunk;
  last.first_position = position;
  last.first_row += chunk.rows - 1;
  last.rows = 1;
  last.first_chunk_page += position / kPageTokens - chunk.first_position / kPageTokens;
  last.first_query_block += position / kQueryBlockTokens - chunk.first_position / kQueryBlockTokens;
  return last;
}

}  // namespace

LlamaRunner::LlamaRunner(Backend& backend, std::shared_ptr<const ModelWeights> weights,
                         AttentionMode mode)
    : backend_(backend),
      weights_(std::move(weights)),
      mode_(std::move(mode)),
      stream_(backend.MakeStream()),
      forward_(backend, *weights_) {}

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
  if (!(checked.audit_rate >= 0 && checked.audit_rate <= 1)) {
    return InvalidArgument("audit-rate {} is outside 0 to 1", checked.audit_rate);
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

Status LlamaRunner::AllocateLists() {
  const ModelConfig& config = weights_->config;
  const int64_t lists = int64_t{batch_.max_slots} * mode_.plan.total_retrieval_heads();
  unit_capacity_ = mode_.policy.token_budget / mode_.policy.unit_tokens;
  const int64_t query_bytes = config.num_q_heads / config.num_kv_heads * config.head_dim *
                              DTypeBytes(weights_->activations);
  const BufferSizes wanted = {
      {&units_, lists * unit_capacity_ * 4},
      {&unit_counts_, lists * 4},
      {&unit_queries_, mode_.policy.reuse_distance > 0.0f ? lists * query_bytes : 0},
      {&lists_made_, lists * 8},
  };
  RETURN_IF_ERROR(AllocateTogether(backend_, wanted));
  const std::vector<int32_t> all(static_cast<size_t>(lists), -1);
  backend_.CopyToDevice(unit_counts_.data(), all.data(), lists * 4, *stream_);
  lists_used_ = 0;
  return stream_->Synchronize();
}

Status LlamaRunner::SetPolicy(const SelectionPolicy& policy) {
  CHECK(!mode_.dense());
  RETURN_IF_ERROR(Validate(policy));
  if (policy.token_budget == 0) {
    return InvalidArgument("a policy without a token budget is another attention mode: dense");
  }
  mode_.policy = policy;
  RETURN_IF_ERROR(AllocateLists());
  return Capture();
}

Status LlamaRunner::AllocateMemory(const RunnerOptions& options) {
  const ModelConfig& config = weights_->config;
  batch_.max_decode_rows = options.max_num_seqs;
  batch_.max_rows = options.max_batched_tokens + options.max_num_seqs;
  batch_.max_chunks = options.max_num_seqs;
  batch_.max_logit_rows = options.max_logit_rows;
  batch_.max_slots = options.max_num_seqs;

  ASSIGN_OR_RETURN(CacheConfig cache,
                   MakeCacheConfig(config, mode_, options, weights_->activations));
  ASSIGN_OR_RETURN(cache_, TwoLaneCache::Make(backend_, *stream_, std::move(cache)));

  limits_.max_model_len = options.max_model_len;
  limits_.max_num_seqs = options.max_num_seqs;
  limits_.max_batch_rows = batch_.max_rows;
  limits_.kv_pages = cache_->config().retrieval_pages;
  limits_.vocab_size = static_cast<int32_t>(config.vocab_size);

  const int64_t slots = options.max_num_seqs;
  const BufferSizes wanted = {
      {&last_token_, slots * 4},
      {&prompt_tokens_, slots * 4},
      {&sampling_, slots * static_cast<int64_t>(sizeof(SlotSampling))},
      {&token_counts_, slots * config.vocab_size * 4},
      {&prompt_seen_, slots * config.vocab_size},
      {&prefill_blocks_, static_cast<int64_t>(sizeof(PrefillBlocks))},
      {&sampled_, (int64_t{batch_.max_logit_rows} + kRowSlack) * 4},
      {&step_device_, StepLayout(batch_).bytes},
  };
  RETURN_IF_ERROR(AllocateTogether(backend_, wanted));
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
  last_rows_ = batch_;
  last_rows_.counts = at(layout.last_counts);
  last_rows_.chunks = reinterpret_cast<const PrefillChunk*>(at(layout.last_chunks));
  RETURN_IF_ERROR(AllocateLists());
  audit_rate_ = options.audit_rate;
  if (audit_rate_ > 0 && !mode_.dense()) {
    ASSIGN_OR_RETURN(audit_,
                     SelectionAudit::Make(backend_, mode_.plan.retrieval_heads(), batch_,
                                          forward_.dtype(), forward_.q_heads(), forward_.group(),
                                          static_cast<int32_t>(config.head_dim)));
  }
  return forward_.Allocate(batch_);
}

template <typename Visitor>
void LlamaRunner::ForEachAttentionOp(Pass pass, bool sample, size_t layer, Visitor&& visit) const {
  const Ops& ops = backend_.ops();
  const RetrievalLane retrieval = cache_->retrieval(static_cast<int32_t>(layer));
  const StreamingLane streaming = cache_->streaming(static_cast<int32_t>(layer));
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
    lists.queries = unit_queries_.bytes() > 0 ? unit_queries_.data() : nullptr;
    lists.made = lists_made_.As<int64_t>();
    if (heads[layer] > 0) {
      visit(ops.select_units, SelectUnitsParams{.batch = batch_,
                                                .q = forward_.q().data(),
                                                .retrieval = retrieval,
                                                .lists = lists,
                                                .prompt_tokens = prompt_tokens_.As<int32_t>(),
                                                .scores = nullptr,
                                                .policy = mode_.policy,
                                                .dtype = forward_.dtype(),
                                                .q_heads = forward_.q_heads(),
                                                .group = forward_.group(),
                                                .workspace = forward_.workspace()});
    }
  }
  const AttendDecodeParams attend{.batch = batch_,
                                  .q = forward_.q().data(),
                                  .output = forward_.attended().data(),
                                  .retrieval = retrieval,
                                  .streaming = streaming,
                                  .lists = lists,
                                  .prompt_tokens = prompt_tokens_.As<int32_t>(),
                                  .policy = mode_.policy,
                                  .dtype = forward_.dtype(),
                                  .q_heads = forward_.q_heads(),
                                  .group = forward_.group(),
                                  .workspace = forward_.workspace()};
  visit(ops.attend_decode, attend);
  if (pass == Pass::kAuditedDecode) {
    audit_->Visit(layer, ops.attend_decode, attend, visit);
  }
  if (pass != Pass::kMixed) {
    return;
  }
  AttendPrefillParams prefill{
      .batch = batch_,
      .q = forward_.q().data(),
      .output = forward_.attended().data(),
      .retrieval = retrieval,
      .streaming = streaming,
      .block_offsets = nullptr,
      .block_ids = nullptr,
      .dtype = forward_.dtype(),
      .q_heads = forward_.q_heads(),
      .group = forward_.group(),
      .workspace = forward_.workspace(),
      .policy = mode_.prefill,
      .blocks = mode_.prefill.threshold > 0.0f ? prefill_blocks_.As<PrefillBlocks>() : nullptr};
  const auto append = [&] {
    if (streaming.layout.heads > 0) {
      visit(ops.append_streaming, AppendStreamingParams{.batch = batch_, .streaming = streaming});
    }
  };
  if (sample && layer + 1 == weights_->layers.size()) {
    // Above the last layer only the rows that are sampled matter. They are the newest of their
    // sequences, so that the ring, too, holds what they see.
    append();
    prefill.batch = last_rows_;
    visit(ops.attend_prefill, prefill);
  } else {
    visit(ops.attend_prefill, prefill);
    append();
  }
}

LlamaRunner::Room LlamaRunner::RoomFor(Pass pass, int32_t rows) const {
  return {.rows = rows,
          .decode_rows = std::min(batch_.max_decode_rows, rows),
          .chunks = pass == Pass::kMixed ? std::min(batch_.max_chunks, rows) : 0,
          .logit_rows = std::min(batch_.max_logit_rows, rows)};
}

template <typename Visitor>
void LlamaRunner::ForEachOp(Pass pass, const Room& room, bool sample, Visitor&& visit_op) const {
  const auto visit = [&](const auto& op, auto params) {
    params.batch.max_rows = room.rows;
    params.batch.max_decode_rows = room.decode_rows;
    params.batch.max_chunks = room.chunks;
    params.batch.max_logit_rows = room.logit_rows;
    visit_op(op, params);
  };
  forward_.VisitEmbedding(last_token_.As<int32_t>(), visit);
  for (size_t layer = 0; layer < weights_->layers.size(); ++layer) {
    forward_.VisitLayer(
        layer, cache_->retrieval(static_cast<int32_t>(layer)),
        cache_->streaming(static_cast<int32_t>(layer)),
        [&] { ForEachAttentionOp(pass, sample, layer, visit); }, visit);
  }
  forward_.VisitLogits(visit);
  if (sample) {
    visit(backend_.ops().sample, SampleParams{.batch = batch_,
                                              .logits = forward_.logits().As<float>(),
                                              .sampling = sampling_.As<SlotSampling>(),
                                              .token_counts = token_counts_.As<int32_t>(),
                                              .prompt_seen = prompt_seen_.As<uint8_t>(),
                                              .last_token = last_token_.As<int32_t>(),
                                              .sampled = sampled_.As<int32_t>(),
                                              .vocab_size = limits_.vocab_size,
                                              .workspace = forward_.workspace()});
  }
}

Status LlamaRunner::Capture() {
  RETURN_IF_ERROR(forward_.Prepare([&](const auto& visit) {
    ForEachOp(Pass::kMixed, RoomFor(Pass::kMixed, batch_.max_rows), true, visit);
    ForEachOp(Pass::kDecode, RoomFor(Pass::kDecode, batch_.max_decode_rows), true, visit);
  }));
  const auto capture = [&](Pass pass, int32_t rows, bool sample) {
    stream_->BeginCapture();
    ForEachOp(pass, RoomFor(pass, rows), sample,
              [&](const auto& op, const auto& params) { op.run(*stream_, params); });
    return stream_->EndCapture();
  };
  const auto add = [&](Pass pass, int32_t rows, std::vector<StepGraphs>& graphs) {
    graphs.push_back({rows, capture(pass, rows, true), capture(pass, rows, false)});
  };
  decode_graphs_.clear();
  for (int32_t rows = 1; rows < batch_.max_decode_rows; rows *= 2) {
    add(Pass::kDecode, rows, decode_graphs_);
  }
  add(Pass::kDecode, batch_.max_decode_rows, decode_graphs_);
  if (audit_ != nullptr) {
    audited_graph_ = capture(Pass::kAuditedDecode, batch_.max_decode_rows, true);
  }
  mixed_graphs_.clear();
  for (const int32_t rows : kRoomForRows) {
    if (rows > batch_.max_decode_rows && rows < batch_.max_rows) {
      add(Pass::kMixed, rows, mixed_graphs_);
    }
  }
  add(Pass::kMixed, batch_.max_rows, mixed_graphs_);
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

const LlamaRunner::StepGraphs& LlamaRunner::GraphsFor(Pass pass, const StepInput& input) const {
  int64_t rows = std::ssize(input.decode);
  for (const PromptChunk& chunk : input.chunks) {
    rows += std::ssize(chunk.tokens);
  }
  const std::vector<StepGraphs>& all = pass == Pass::kDecode ? decode_graphs_ : mixed_graphs_;
  const auto graphs =
      std::find_if(all.begin(), all.end(), [&](const StepGraphs& g) { return g.rows >= rows; });
  CHECK(graphs != all.end());
  return *graphs;
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

  selecting_rows_.clear();
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
    if (!ReadsAll(mode_.policy, static_cast<int32_t>(decode.position) + 1)) {
      selecting_rows_.push_back(row);
    }
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

  lists_used_ += std::ssize(selecting_rows_) * mode_.plan.total_retrieval_heads();
  const auto decode_rows = static_cast<int32_t>(input.decode.size());
  int32_t* counts = at(layout.counts);
  counts[kDecodeRows] = decode_rows;
  counts[kPrefillRows] = row - decode_rows;
  counts[kChunks] = static_cast<int32_t>(input.chunks.size());
  counts[kLogitRows] = static_cast<int32_t>(logit_rows.size());
  std::copy(logit_rows.begin(), logit_rows.end(), at(layout.logit_row));
  int32_t* last_counts = at(layout.last_counts);
  auto* last_chunks = reinterpret_cast<PrefillChunk*>(at(layout.last_chunks));
  int32_t sampled_chunks = 0;
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    if (input.chunks[i].sample) {
      last_chunks[sampled_chunks++] = LastRow(chunks[i]);
    }
  }
  last_counts[kDecodeRows] = decode_rows;
  last_counts[kPrefillRows] = last_counts[kChunks] = sampled_chunks;
  last_counts[kLogitRows] = counts[kLogitRows];
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
  const bool audited = audit_ != nullptr && pass == Pass::kDecode && !selecting_rows_.empty() &&
                       UniformFloat(Philox(kAuditSeed, decode_steps_++)[0]) < audit_rate_;
  stream_->Launch(audited ? *audited_graph_ : *GraphsFor(pass, input).sampled);
  std::vector<int32_t> tokens(sampled.size());
  backend_.CopyToHost(tokens.data(), sampled_.data(), std::ssize(tokens) * 4, *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  for (size_t i = 0; i < sampled.size(); ++i) {
    sampled[i].token = tokens[i];
  }
  if (audited) {
    RETURN_IF_ERROR(audit_->Record(*stream_, selecting_rows_));
  }
  return sampled;
}

Result<SelectionStats> LlamaRunner::Selection() {
  SelectionStats stats;
  stats.uses = lists_used_;
  std::vector<int64_t> made(static_cast<size_t>(lists_made_.bytes()) / sizeof(int64_t));
  backend_.CopyToHost(made.data(), lists_made_.data(), lists_made_.bytes(), *stream_);
  backend_.CopyToHost(&stats.prefill, prefill_blocks_.data(), sizeof(stats.prefill), *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  stats.made = std::accumulate(made.begin(), made.end(), int64_t{0});
  if (audit_ != nullptr) {
    stats.layers = audit_->layers();
  }
  return stats;
}

Result<std::vector<float>> LlamaRunner::StepLogits(const StepInput& input,
                                                   std::span<const int32_t> rows) {
  const Pass pass = FillStep(input, rows);
  stream_->Launch(*GraphsFor(pass, input).logits);
  std::vector<float> logits(rows.size() * static_cast<size_t>(limits_.vocab_size));
  backend_.CopyToHost(logits.data(), forward_.logits().data(), std::ssize(logits) * 4, *stream_);
  RETURN_IF_ERROR(stream_->Synchronize());
  return logits;
}

}  // namespace lserve
