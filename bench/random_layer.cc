#include "random_layer.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "base/clock.h"

namespace lserve::bench {

RandomLayer::RandomLayer(Backend& backend, const LayerShape& shape)
    : backend_(backend), shape_(shape), stream_(backend.MakeStream()) {
  CacheConfig config;
  config.retrieval_heads = {shape.retrieval_heads};
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.score = shape.score;
  config.format = shape.format;
  config.sink_tokens = 128;
  config.local_tokens = 256;
  config.max_model_len = shape.length;
  config.retrieval_pages = TwoLaneCache::PagesFor(shape.length);
  config.max_chunk_pages = shape.chunk / kPageTokens + 2;
  cache_ = TwoLaneCache::Make(backend, *stream_, config).value();
  slot_ = cache_->OpenSlot().value();
  CHECK_OK(cache_->Reserve(slot_, shape.length));
  const RetrievalLane lane = cache_->retrieval(0);
  const StreamingLane ring = cache_->streaming(0);
  Fill(lane.pages, config.retrieval_pages * lane.layout.page_bytes());
  Fill(lane.open, lane.layout.open().page_bytes());
  Fill(ring.pages, (ring.sink_pages + ring.ring_pages) * ring.layout.page_bytes());
  Fill(ring.chunk_pages, config.max_chunk_pages * ring.layout.page_bytes());

  const int64_t rows = shape.chunk + kRowSlack;
  const int64_t width = int64_t{shape.q_heads} * shape.head_dim * 2;
  q_ = backend.Allocate(rows * width).value();
  output_ = backend.Allocate(rows * width).value();
  Fill(q_.data(), rows * width);
  step_ = backend.Allocate(4096 + 3 * rows * 4).value();
  int32_t* words = step_.As<int32_t>();
  batch_ = BatchView{.counts = words,
                     .row_slot = words + 256,
                     .row_position = words + 256 + rows,
                     .row_token = words + 256 + 2 * rows,
                     .chunks = reinterpret_cast<const PrefillChunk*>(words + 64),
                     .logit_row = words + 128,
                     .max_rows = shape.chunk,
                     .max_decode_rows = 1,
                     .max_chunks = 1,
                     .max_logit_rows = 1,
                     .max_slots = 1};
  counts_ = backend.Allocate(4096).value();
  prompt_tokens_ = backend.Allocate(64).value();
}

void RandomLayer::AlikeQueries() {
  const int64_t width = int64_t{shape_.q_heads} * shape_.head_dim * 2;
  for (int64_t row = 1; row < shape_.chunk; ++row) {
    std::memcpy(q_.data() + row * width, q_.data(), static_cast<size_t>(width));
  }
}

RandomLayer::PrefillRun RandomLayer::Prefill(const PrefillPolicy& policy) {
  PrefillRun run;
  AttendPrefillParams params{.batch = batch_,
                             .q = q_.data(),
                             .output = output_.data(),
                             .retrieval = cache_->retrieval(0),
                             .streaming = cache_->streaming(0),
                             .block_offsets = nullptr,
                             .block_ids = nullptr,
                             .dtype = DType::kBFloat16,
                             .q_heads = shape_.q_heads,
                             .group = shape_.q_heads / shape_.kv_heads,
                             .workspace = nullptr,
                             .policy = policy,
                             .blocks = &run.blocks};
  Grow(backend_.ops().attend_prefill.workspace_bytes(params));
  params.workspace = workspace_.data();
  for (int64_t first = 0; first < shape_.length; first += shape_.chunk) {
    SetStep(0, static_cast<int32_t>(first), std::min<int64_t>(shape_.chunk, shape_.length - first));
    const double start = NowSeconds();
    backend_.ops().attend_prefill.run(*stream_, params);
    CHECK_OK(stream_->Synchronize());
    run.seconds += NowSeconds() - start;
  }
  return run;
}

RandomLayer::DecodeTime RandomLayer::Decode(const SelectionPolicy& policy) {
  const bool dense = policy.token_budget == 0;
  SetStep(1, static_cast<int32_t>(shape_.length - 1), 0);
  const RetrievalLane lane = cache_->retrieval(0);
  UnitLists lists{};
  if (!dense) {
    const int64_t lists_bytes = int64_t{shape_.kv_heads} * policy.token_budget * 4;
    if (units_.bytes() < lists_bytes) {
      units_ = backend_.Allocate(lists_bytes).value();
    }
    lists = UnitLists{.units = units_.As<int32_t>(),
                      .counts = counts_.As<int32_t>(),
                      .slot_lists = std::max(lane.layout.heads, 1),
                      .first_list = 0,
                      .capacity = policy.token_budget / policy.unit_tokens};
  }
  SelectUnitsParams select{.batch = batch_,
                           .q = q_.data(),
                           .retrieval = lane,
                           .lists = lists,
                           .prompt_tokens = prompt_tokens_.As<int32_t>(),
                           .scores = nullptr,
                           .policy = policy,
                           .dtype = DType::kBFloat16,
                           .q_heads = shape_.q_heads,
                           .group = shape_.q_heads / shape_.kv_heads,
                           .workspace = nullptr};
  AttendDecodeParams attend{.batch = batch_,
                            .q = q_.data(),
                            .output = output_.data(),
                            .retrieval = lane,
                            .streaming = cache_->streaming(0),
                            .lists = lists,
                            .policy = policy,
                            .dtype = DType::kBFloat16,
                            .q_heads = shape_.q_heads,
                            .group = shape_.q_heads / shape_.kv_heads,
                            .workspace = nullptr};
  Grow(std::max(backend_.ops().select_units.workspace_bytes(select),
                backend_.ops().attend_decode.workspace_bytes(attend)));
  select.workspace = attend.workspace = workspace_.data();
  DecodeTime time;
  if (!dense && lane.layout.heads > 0) {
    const double start = NowSeconds();
    backend_.ops().select_units.run(*stream_, select);
    CHECK_OK(stream_->Synchronize());
    time.select = NowSeconds() - start;
  }
  const double start = NowSeconds();
  backend_.ops().attend_decode.run(*stream_, attend);
  CHECK_OK(stream_->Synchronize());
  time.attend = NowSeconds() - start;
  return time;
}

int64_t RandomLayer::SelectorBytes() const {
  const KvPageLayout& layout = cache_->retrieval(0).layout;
  return TwoLaneCache::PagesFor(shape_.length) * layout.heads *
         (layout.score == PageScore::kSketch ? layout.sketch_bytes() : layout.min_max_bytes());
}

void RandomLayer::Fill(std::byte* data, int64_t bytes) {
  std::mt19937 random(static_cast<uint32_t>(bytes));
  std::normal_distribution<float> normal;
  std::vector<BFloat16> block(1 << 14);
  for (BFloat16& element : block) {
    element = ToBFloat16(normal(random));
  }
  for (int64_t i = 0; i < bytes / 2; ++i) {
    // Another order each time around: equal keys would score equal.
    const int64_t place = i * 7919 + i / (1 << 14) * 6427;
    reinterpret_cast<BFloat16*>(data)[i] = block[static_cast<size_t>(place % (1 << 14))];
  }
}

void RandomLayer::Grow(int64_t bytes) {
  if (workspace_.bytes() < bytes) {
    workspace_ = backend_.Allocate(bytes).value();
  }
}

void RandomLayer::SetStep(int32_t decode_rows, int32_t position, int64_t rows) {
  int32_t* words = step_.As<int32_t>();
  words[kDecodeRows] = decode_rows;
  words[kPrefillRows] = static_cast<int32_t>(rows);
  words[kChunks] = rows > 0 ? 1 : 0;
  words[kLogitRows] = 0;
  *reinterpret_cast<PrefillChunk*>(words + 64) = PrefillChunk{.slot = slot_,
                                                              .first_position = position,
                                                              .first_row = 0,
                                                              .rows = static_cast<int32_t>(rows),
                                                              .first_chunk_page = 0,
                                                              .first_query_block = 0};
  for (int32_t row = 0; row < std::max<int32_t>(decode_rows, static_cast<int32_t>(rows)); ++row) {
    const_cast<int32_t*>(batch_.row_slot)[row] = slot_;
    const_cast<int32_t*>(batch_.row_position)[row] = position + row;
  }
}

}  // namespace lserve::bench
