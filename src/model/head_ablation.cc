#include "model/head_ablation.h"

#include <algorithm>
#include <utility>

#include "model/log_softmax.h"

namespace lserve {
namespace {

constexpr int64_t kMaxRows = 1 << 17;
constexpr int32_t kMaxLogitRows = 128;  // whose logits are made at once

int32_t QueryBlocks(int32_t rows) { return (rows + kQueryBlockTokens - 1) / kQueryBlockTokens; }

// The KV blocks that any query of block `query_block` of a document of `rows` tokens sees,
// ascending.
void AppendBlocks(int32_t query_block, int32_t rows, bool streams, const AblationOptions& options,
                  std::vector<int32_t>* ids) {
  const int32_t first_row = query_block * kQueryBlockTokens;
  const int32_t end_row = std::min(rows, first_row + kQueryBlockTokens);
  const int32_t end = (end_row + kPageTokens - 1) / kPageTokens;
  const int32_t sink_end = (options.sink_tokens + kPageTokens - 1) / kPageTokens;
  const int32_t local_begin = std::max(0, first_row - options.local_tokens + 1) / kPageTokens;
  for (int32_t block = 0; block < end; ++block) {
    if (!streams || block < sink_end || block >= local_begin) {
      ids->push_back(block);
    }
  }
}

// Runs what a ForwardPass visits.
auto RunOn(Stream& stream) {
  return [&stream](const auto& op, const auto& params) { op.run(stream, params); };
}

}  // namespace

HeadAblation::HeadAblation(Backend& backend, std::shared_ptr<const ModelWeights> weights,
                           const AblationOptions& options)
    : backend_(backend),
      weights_(std::move(weights)),
      options_(options),
      stream_(backend.MakeStream()),
      forward_(backend, *weights_) {}

Result<std::unique_ptr<HeadAblation>> HeadAblation::Make(
    Backend& backend, std::shared_ptr<const ModelWeights> weights, const AblationOptions& options) {
  if (options.max_tokens < 1 || options.max_tokens > weights->config.context_length) {
    return InvalidArgument("documents of {} tokens are outside 1 to {}, the model's context length",
                           options.max_tokens, weights->config.context_length);
  }
  if (options.max_variants < 1 || options.max_variants > kMaxRows / options.max_tokens) {
    return InvalidArgument("{} variants of {} tokens are outside 1 variant to {} tokens in all",
                           options.max_variants, options.max_tokens, kMaxRows);
  }
  if (options.sink_tokens < 0 || options.local_tokens < 1) {
    return InvalidArgument("{} sink and {} local tokens are below 0 and 1", options.sink_tokens,
                           options.local_tokens);
  }
  std::unique_ptr<HeadAblation> ablation(new HeadAblation(backend, std::move(weights), options));
  RETURN_IF_ERROR(ablation->Allocate());
  return ablation;
}

Status HeadAblation::Allocate() {
  const ModelConfig& config = weights_->config;
  const DType dtype = weights_->activations;
  const auto max_tokens = static_cast<int32_t>(options_.max_tokens);
  CacheConfig cache;
  cache.retrieval_heads = {static_cast<int32_t>(config.num_kv_heads)};
  cache.kv_heads = static_cast<int32_t>(config.num_kv_heads);
  cache.head_dim = static_cast<int32_t>(config.head_dim);
  cache.format = dtype == DType::kFloat32 ? KvFormat::kFloat32 : KvFormat::kBFloat16;
  cache.max_slots = options_.max_variants;
  cache.max_model_len = max_tokens;
  const int64_t pages = TwoLaneCache::PagesFor(max_tokens);
  cache.retrieval_pages = std::max<int64_t>(1, options_.max_variants * pages);
  ASSIGN_OR_RETURN(cache_, TwoLaneCache::Make(backend_, *stream_, std::move(cache)));
  for (int32_t i = 0; i < options_.max_variants; ++i) {
    ASSIGN_OR_RETURN(const int32_t slot, cache_->OpenSlot());
    CHECK_EQ(slot, i);
    RETURN_IF_ERROR(cache_->Reserve(slot, max_tokens));
  }

  BatchView batch{};
  batch.max_rows = options_.max_variants * max_tokens;
  batch.max_chunks = options_.max_variants;
  batch.max_logit_rows = std::min(kMaxLogitRows, batch.max_rows);
  batch.max_slots = options_.max_variants;
  const int64_t lists =
      int64_t{options_.max_variants} * QueryBlocks(max_tokens) * config.num_kv_heads;
  const int64_t longest_list = (int64_t{max_tokens} + kPageTokens - 1) / kPageTokens;
  const int64_t residual_bytes = max_tokens * config.hidden_size * DTypeBytes(dtype);
  const BufferSizes wanted = {
      {&counts_, kBatchCounts * 4},
      {&row_slot_, batch.max_rows * int64_t{4}},
      {&row_position_, batch.max_rows * int64_t{4}},
      {&row_token_, batch.max_rows * int64_t{4}},
      {&chunks_, batch.max_chunks * static_cast<int64_t>(sizeof(PrefillChunk))},
      {&logit_row_, batch.max_logit_rows * int64_t{4}},
      {&last_token_, batch.max_slots * int64_t{4}},
      {&block_offsets_, (lists + 1) * 4},
      {&block_ids_, lists * longest_list * 4},
      {&places_, int64_t{2} * options_.max_variants * 4},
      {&trunk_, config.num_layers * residual_bytes},
  };
  RETURN_IF_ERROR(AllocateTogether(backend_, wanted));
  batch.counts = counts_.As<int32_t>();
  batch.row_slot = row_slot_.As<int32_t>();
  batch.row_position = row_position_.As<int32_t>();
  batch.row_token = row_token_.As<int32_t>();
  batch.chunks = chunks_.As<PrefillChunk>();
  batch.logit_row = logit_row_.As<int32_t>();
  RETURN_IF_ERROR(forward_.Allocate(batch));
  return forward_.Prepare([&](const auto& visit) {
    forward_.VisitEmbedding(last_token_.As<int32_t>(), visit);
    for (size_t layer = 0; layer < weights_->layers.size(); ++layer) {
      VisitLayer(layer, visit);
    }
    forward_.VisitLogits(visit);
  });
}

template <typename T>
void HeadAblation::Upload(const Buffer& buffer, const std::vector<T>& host) {
  const auto bytes = static_cast<int64_t>(host.size() * sizeof(T));
  CHECK_LE(bytes, buffer.bytes());
  backend_.CopyToDevice(buffer.data(), host.data(), bytes, *stream_);
}

template <typename Visitor>
void HeadAblation::VisitLayer(size_t layer, Visitor&& visit) const {
  const RetrievalLane retrieval = cache_->retrieval(0);
  const StreamingLane streaming = cache_->streaming(0);
  const auto attend = [&] {
    visit(backend_.ops().attend_prefill,
          AttendPrefillParams{.batch = forward_.batch(),
                              .q = forward_.q().data(),
                              .output = forward_.attended().data(),
                              .retrieval = retrieval,
                              .streaming = streaming,
                              .block_offsets = block_offsets_.As<int32_t>(),
                              .block_ids = block_ids_.As<int32_t>(),
                              .dtype = forward_.dtype(),
                              .q_heads = forward_.q_heads(),
                              .group = forward_.group(),
                              .workspace = forward_.workspace()});
  };
  forward_.VisitLayer(layer, retrieval, streaming, attend, visit);
}

Result<std::vector<std::vector<double>>> HeadAblation::Losses(const ScoredDocument& document,
                                                              const HeadSet& base,
                                                              std::span<const HeadSet> variants) {
  const auto heads = static_cast<size_t>(weights_->config.num_kv_heads);
  const size_t layers = weights_->layers.size();
  if (document.targets.empty()) {
    return InvalidArgument("the document has no target");
  }
  if (document.targets.back() > options_.max_tokens) {
    return InvalidArgument("the document's last target at {} is outside 1 to {}",
                           document.targets.back(), options_.max_tokens);
  }
  CHECK_GT(document.targets.front(), 0);
  CHECK_LT(document.targets.back(), std::ssize(document.tokens));
  CHECK_EQ(base.size(), layers * heads);
  std::vector<Branch> branches;
  for (size_t i = 0; i < variants.size(); ++i) {
    CHECK_EQ(variants[i].size(), base.size());
    const auto differs = std::mismatch(base.begin(), base.end(), variants[i].begin()).first;
    if (differs != base.end()) {
      branches.push_back(
          {&variants[i], static_cast<size_t>(differs - base.begin()) / heads, i + 1});
    }
  }
  std::stable_sort(branches.begin(), branches.end(),
                   [](const Branch& a, const Branch& b) { return a.join < b.join; });

  const auto slots = std::clamp(static_cast<int32_t>(branches.size()), 1, options_.max_variants);
  LoadDocument(document, slots);
  RunTrunk({&base, 0, 0});
  ASSIGN_OR_RETURN(const std::vector<double> base_losses, SlotLosses(document, 0));
  std::vector<std::vector<double>> losses(variants.size() + 1, base_losses);
  for (size_t first = 0; first < branches.size(); first += static_cast<size_t>(slots)) {
    const size_t size = std::min(branches.size() - first, static_cast<size_t>(slots));
    const auto group = std::span<const Branch>(branches).subspan(first, size);
    RunBranches(group);
    for (size_t slot = 0; slot < size; ++slot) {
      ASSIGN_OR_RETURN(losses[group[slot].index], SlotLosses(document, static_cast<int32_t>(slot)));
    }
  }
  return losses;
}

void HeadAblation::LoadDocument(const ScoredDocument& document, int32_t slots) {
  rows_ = document.targets.back();
  std::vector<int32_t> slot_of_row, positions, tokens;
  std::vector<PrefillChunk> chunks;
  for (int32_t slot = 0; slot < slots; ++slot) {
    for (int32_t row = 0; row < rows_; ++row) {
      const int32_t token = document.tokens[static_cast<size_t>(row)];
      CHECK(token >= 0 && token < weights_->config.vocab_size);
      slot_of_row.push_back(slot);
      positions.push_back(row);
      tokens.push_back(token);
    }
    chunks.push_back(PrefillChunk{.slot = slot,
                                  .first_position = 0,
                                  .first_row = slot * rows_,
                                  .rows = rows_,
                                  .first_chunk_page = 0,
                                  .first_query_block = slot * QueryBlocks(rows_)});
  }
  Upload(row_slot_, slot_of_row);
  Upload(row_position_, positions);
  Upload(row_token_, tokens);
  Upload(chunks_, chunks);
  SetCounts(slots, 0);
  forward_.VisitEmbedding(last_token_.As<int32_t>(), RunOn(*stream_));
}

void HeadAblation::SetCounts(int32_t slots, int32_t logit_rows) {
  std::vector<int32_t> counts(kBatchCounts, 0);
  counts[kPrefillRows] = slots * rows_;
  counts[kChunks] = slots;
  counts[kLogitRows] = logit_rows;
  Upload(counts_, counts);
}

void HeadAblation::RunTrunk(const Branch& base) {
  SetCounts(1, 0);
  for (size_t layer = 0; layer < weights_->layers.size(); ++layer) {
    CopyResiduals(trunk_, forward_.residual(), {0}, {static_cast<int32_t>(layer)});
    RunLayer(layer, {&base, 1});
  }
}

void HeadAblation::RunBranches(std::span<const Branch> branches) {
  size_t running = 0;
  for (size_t layer = branches[0].join; layer < weights_->layers.size(); ++layer) {
    std::vector<int32_t> joining;
    for (; running < branches.size() && branches[running].join == layer; ++running) {
      joining.push_back(static_cast<int32_t>(running));
    }
    if (!joining.empty()) {
      CopyResiduals(forward_.residual(), trunk_,
                    std::vector<int32_t>(joining.size(), static_cast<int32_t>(layer)), joining);
      SetCounts(static_cast<int32_t>(running), 0);
    }
    RunLayer(layer, branches.first(running));
  }
}

void HeadAblation::RunLayer(size_t layer, std::span<const Branch> branches) {
  const auto heads = static_cast<size_t>(weights_->config.num_kv_heads);
  std::vector<int32_t> offsets = {0};
  std::vector<int32_t> ids;
  for (const Branch& branch : branches) {
    for (int32_t block = 0; block < QueryBlocks(rows_); ++block) {
      for (size_t head = 0; head < heads; ++head) {
        AppendBlocks(block, rows_, (*branch.streams)[layer * heads + head], options_, &ids);
        offsets.push_back(static_cast<int32_t>(ids.size()));
      }
    }
  }
  Upload(block_offsets_, offsets);
  Upload(block_ids_, ids);
  VisitLayer(layer, RunOn(*stream_));
}

void HeadAblation::CopyResiduals(const Buffer& destination, const Buffer& source,
                                 const std::vector<int32_t>& from, const std::vector<int32_t>& to) {
  std::vector<int32_t> places = from;
  places.insert(places.end(), to.begin(), to.end());
  Upload(places_, places);
  const int64_t row_bytes = weights_->config.hidden_size * DTypeBytes(forward_.dtype());
  backend_.ops().copy_pages.run(*stream_,
                                CopyPagesParams{.destination = destination.data(),
                                                .source = source.data(),
                                                .from = places_.As<int32_t>(),
                                                .to = places_.As<int32_t>() + from.size(),
                                                .count = static_cast<int32_t>(from.size()),
                                                .page_bytes = rows_ * row_bytes});
}

Result<std::vector<double>> HeadAblation::SlotLosses(const ScoredDocument& document, int32_t slot) {
  const std::span<const int32_t> targets(document.targets);
  const auto width = static_cast<size_t>(weights_->config.vocab_size);
  const auto most = static_cast<size_t>(forward_.batch().max_logit_rows);
  std::vector<float> logits;
  std::vector<double> losses;
  for (size_t first = 0; first < targets.size(); first += most) {
    const auto part = targets.subspan(first, std::min(most, targets.size() - first));
    std::vector<int32_t> rows;
    for (const int32_t target : part) {
      rows.push_back(slot * rows_ + target - 1);
    }
    Upload(logit_row_, rows);
    SetCounts(slot + 1, static_cast<int32_t>(rows.size()));
    forward_.VisitLogits(RunOn(*stream_));
    logits.resize(rows.size() * width);
    backend_.CopyToHost(logits.data(), forward_.logits().data(), std::ssize(logits) * 4, *stream_);
    RETURN_IF_ERROR(stream_->Synchronize());
    for (size_t i = 0; i < part.size(); ++i) {
      losses.push_back(NegativeLogLikelihood(std::span(logits).subspan(i * width, width),
                                             document.tokens[static_cast<size_t>(part[i])]));
    }
  }
  return losses;
}

}  // namespace lserve
