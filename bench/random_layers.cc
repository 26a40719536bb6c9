#include "random_layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <random>

namespace lserve::bench {
namespace {

// 2^18 - 5 is a prime: copies of the pattern that follow each other meet pages, which are multiples
// of 512 bytes, at ever other places.
constexpr int64_t kPatternBytes = int64_t{16} * 262139;

// Normal bf16 numbers. Their bits are finite as float16 and are any codes.
const std::vector<BFloat16>& Pattern() {
  static const std::vector<BFloat16> pattern = [] {
    std::vector<BFloat16> numbers(kPatternBytes / 2);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::generate(numbers.begin(), numbers.end(), [&] { return ToBFloat16(normal(random)); });
    return numbers;
  }();
  return pattern;
}

int64_t RowBytes(const LayerShape& shape) { return int64_t{shape.q_heads} * shape.head_dim * 2; }

}  // namespace

CacheConfig RandomLayers::Config(const LayerShape& shape) {
  CacheConfig config;
  config.retrieval_heads.assign(static_cast<size_t>(shape.layers), shape.retrieval_heads);
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.score = shape.score;
  config.format = shape.format;
  config.sink_tokens = kSinkTokens;
  config.local_tokens = kLocalTokens;
  config.max_slots = shape.batch;
  config.max_model_len = shape.length;
  config.retrieval_pages = shape.batch * TwoLaneCache::PagesFor(shape.length);
  config.max_chunk_pages = shape.chunk == 0 ? 1 : shape.chunk / kPageTokens + 2;
  return config;
}

KvPageLayout RandomLayers::ClosedLayout(const LayerShape& shape) {
  return MakeKvPageLayout(shape.retrieval_heads, shape.head_dim, shape.format, shape.score);
}

KvPageLayout RandomLayers::StreamingLayout(const LayerShape& shape) {
  return MakeKvPageLayout(shape.kv_heads - shape.retrieval_heads, shape.head_dim,
                          KvFormat::kBFloat16, PageScore::kNone);
}

int64_t RandomLayers::CacheBytes(const LayerShape& shape) {
  LayerShape layer = shape;
  layer.layers = 1;
  const CacheConfig config = Config(layer);
  return config.retrieval_pages * config.RetrievalPageBytes() + config.FixedBytes();
}

int64_t RandomLayers::SelectBytes(const LayerShape& shape) {
  const KvPageLayout layout = ClosedLayout(shape);
  const KvPageLayout open = layout.open();
  const bool sketch = layout.score == PageScore::kSketch;
  const int64_t page = layout.heads * (sketch ? layout.sketch_bytes() : layout.min_max_bytes());
  const int64_t open_page = layout.heads * (sketch ? open.plane_bytes() : open.min_max_bytes());
  return shape.batch * (TwoLaneCache::PagesFor(shape.length) * page + open_page);
}

int64_t RandomLayers::AttendBytes(const LayerShape& shape, const SelectionPolicy& policy) {
  const KvPageLayout layout = ClosedLayout(shape);
  const KvPageLayout streaming = StreamingLayout(shape);
  const int64_t window = std::min<int64_t>(shape.length, kSinkTokens + kLocalTokens);
  const int64_t streamed = streaming.heads * window * 2 * streaming.plane_bytes() / kPageTokens;
  const int64_t open_page = 2 * layout.open().plane_bytes();  // of a head
  const bool all = policy.token_budget == 0 || shape.length <= policy.token_budget;
  // Keys and values of a closed page, the uppermost plane of codes included; its box apart.
  const int64_t box = layout.boxed() ? layout.box_bytes() : 0;
  const int64_t page =
      layout.key_bytes() + layout.value_bytes() + (layout.boxed() ? layout.code_plane_bytes() : 0);
  int64_t retrieved = 0;
  if (all) {
    retrieved = TwoLaneCache::PagesFor(shape.length) * (page + box) + open_page;
  } else {  // units lie scattered, so that each brings its page's box; the newest page is open
    const int64_t closed = policy.token_budget - kPageTokens;
    retrieved = closed * page / kPageTokens + closed / policy.unit_tokens * box + open_page;
  }
  return shape.batch * (streamed + layout.heads * retrieved);
}

RandomLayers::RandomLayers(Backend& backend, const LayerShape& shape)
    : backend_(backend), shape_(shape), stream_(backend.MakeStream()) {
  const CacheConfig config = Config(shape);
  cache_ = TwoLaneCache::Make(backend, *stream_, config).value();
  for (int32_t i = 0; i < shape.batch; ++i) {
    CHECK_OK(cache_->Reserve(cache_->OpenSlot().value(), shape.length));
  }
  pattern_ = backend.Allocate(kPatternBytes).value();
  backend.CopyToDevice(pattern_.data(), Pattern().data(), kPatternBytes, *stream_);
  const int64_t ring = int64_t{shape.batch} * (config.sink_pages() + config.ring_pages());
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    const RetrievalLane lane = cache_->retrieval(layer);
    const StreamingLane streaming = cache_->streaming(layer);
    Fill(lane.pages, config.retrieval_pages * lane.layout.page_bytes());
    Fill(lane.open, shape.batch * lane.layout.open().page_bytes());
    Fill(streaming.pages, ring * streaming.layout.page_bytes());
    Fill(streaming.chunk_pages, config.max_chunk_pages * streaming.layout.page_bytes());
  }
  Fill(cache_->retrieval(0).chunk_pages, config.RetrievalChunkBytes());
  const int64_t rows = std::max(shape.chunk, shape.batch) + kRowSlack;
  q_ = backend.Allocate(rows * RowBytes(shape)).value();
  output_ = backend.Allocate(rows * RowBytes(shape)).value();
  Fill(q_.data(), q_.bytes());
  CHECK_OK(stream_->Synchronize());
}

// ---- Decode

void RandomLayers::StartDecode(const SelectionPolicy& policy) {
  decode_ = MakeStep(shape_.batch, shape_.length - 1, 0);
  select_ = SelectUnitsParams{.batch = decode_.view,
                              .q = q_.data(),
                              .retrieval = cache_->retrieval(0),
                              .lists = {},
                              .prompt_tokens = nullptr,
                              .scores = nullptr,
                              .policy = policy,
                              .dtype = DType::kBFloat16,
                              .q_heads = shape_.q_heads,
                              .group = shape_.q_heads / shape_.kv_heads,
                              .workspace = nullptr};
  attend_ = AttendDecodeParams{.batch = decode_.view,
                               .q = q_.data(),
                               .output = output_.data(),
                               .retrieval = cache_->retrieval(0),
                               .streaming = cache_->streaming(0),
                               .lists = {},
                               .policy = policy,
                               .dtype = DType::kBFloat16,
                               .q_heads = shape_.q_heads,
                               .group = shape_.q_heads / shape_.kv_heads,
                               .workspace = nullptr};
  if (policy.token_budget > 0) {
    const int64_t lists = int64_t{shape_.batch} * shape_.layers * shape_.retrieval_heads;
    units_ = backend_.Allocate(lists * (policy.token_budget / policy.unit_tokens) * 4).value();
    counts_ = backend_.Allocate(lists * 4).value();
    Upload(counts_, std::vector<int32_t>(static_cast<size_t>(lists), -1));
    std::vector<int32_t> prompts;
    for (int32_t phase = 0; phase < policy.reuse_interval; ++phase) {
      for (int32_t slot = 0; slot < shape_.batch; ++slot) {
        const int32_t generated = (phase + slot) % policy.reuse_interval;
        prompts.push_back(static_cast<int32_t>(shape_.length) - 1 - generated);
      }
    }
    prompt_tokens_ = backend_.Allocate(std::ssize(prompts) * 4).value();
    Upload(prompt_tokens_, prompts);
    select_.lists = attend_.lists = Lists(0);
    Grow(backend_.ops().select_units.workspace_bytes(select_));
  }
  Grow(backend_.ops().attend_decode.workspace_bytes(attend_));
  select_.workspace = attend_.workspace = workspace_.data();
  CHECK_OK(stream_->Synchronize());
  if (policy.token_budget > 0) {
    // The first lists, which are due whatever the interval. Where repetitions of one layer follow
    // each other without what lies between them in a step, which lists are due must not change.
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
      Select(layer);
      CHECK_OK(stream_->Synchronize());
    }
  }
}

UnitLists RandomLayers::Lists(int32_t layer) const {
  const SelectionPolicy& policy = select_.policy;
  if (policy.token_budget == 0) {
    return {};
  }
  return {.units = units_.As<int32_t>(),
          .counts = counts_.As<int32_t>(),
          .slot_lists = shape_.layers * shape_.retrieval_heads,
          .first_list = layer * shape_.retrieval_heads,
          .capacity = policy.token_budget / policy.unit_tokens};
}

void RandomLayers::Select(int32_t repetition) {
  const int32_t layer = repetition % shape_.layers;
  const int32_t phase = repetition / shape_.layers % select_.policy.reuse_interval;
  SelectUnitsParams params = select_;
  params.retrieval = cache_->retrieval(layer);
  params.lists = Lists(layer);
  params.prompt_tokens = prompt_tokens_.As<int32_t>() + phase * shape_.batch;
  backend_.ops().select_units.run(*stream_, params);
}

void RandomLayers::AttendDecode(int32_t repetition) {
  const int32_t layer = repetition % shape_.layers;
  AttendDecodeParams params = attend_;
  params.retrieval = cache_->retrieval(layer);
  params.streaming = cache_->streaming(layer);
  params.lists = Lists(layer);
  backend_.ops().attend_decode.run(*stream_, params);
}

// ---- Prefill

void RandomLayers::StartPrefill(int64_t first, const PrefillPolicy& policy) {
  CHECK_GT(shape_.chunk, 0);
  CHECK_EQ(first % kQueryBlockTokens, 0);
  CHECK_EQ(shape_.chunk % kQueryBlockTokens, 0);
  first_position_ = first;
  chunks_.clear();
  for (int64_t at = first; at < shape_.length; at += shape_.chunk) {
    chunks_.push_back(MakeStep(0, at, std::min<int64_t>(shape_.chunk, shape_.length - at)));
  }
  blocks_ = backend_.Allocate(sizeof(PrefillBlocks)).value();
  prefill_ =
      AttendPrefillParams{.batch = chunks_[0].view,
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
                          .blocks = policy.threshold > 0 ? blocks_.As<PrefillBlocks>() : nullptr};
  Grow(backend_.ops().attend_prefill.workspace_bytes(prefill_));
  prefill_.workspace = workspace_.data();
  CHECK_OK(stream_->Synchronize());
}

SkippedBlocks RandomLayers::SkipBlocks(double share) {
  const auto heads = static_cast<int64_t>(shape_.retrieval_heads);
  SkippedBlocks result;
  std::vector<int32_t> offsets = {0};
  std::vector<int32_t> ids, others;
  std::mt19937 random(7);
  for (int64_t q0 = first_position_; q0 < shape_.length; q0 += kQueryBlockTokens) {
    const int64_t end = std::min(q0 + kQueryBlockTokens, shape_.length);
    const auto diagonal = static_cast<int32_t>(q0 / kPageTokens);
    const auto blocks = static_cast<int32_t>((end - 1) / kPageTokens + 1);
    const auto wanted = static_cast<int64_t>(std::lround((1 - share) * blocks));
    const auto extra = std::clamp<int64_t>(wanted - (blocks - diagonal), 0, diagonal);
    others.resize(static_cast<size_t>(diagonal));
    for (int64_t head = 0; head < heads; ++head) {
      for (int32_t i = 0; i < diagonal; ++i) {
        others[static_cast<size_t>(i)] = i;
      }
      std::sample(others.begin(), others.end(), std::back_inserter(ids), extra, random);
      for (int32_t i = diagonal; i < blocks; ++i) {
        ids.push_back(i);
      }
      offsets.push_back(static_cast<int32_t>(ids.size()));
    }
    const auto rows = static_cast<double>(end - q0);
    const int64_t group = shape_.q_heads / shape_.kv_heads;
    result.pairs += static_cast<double>(heads * group) *
                    (rows * static_cast<double>(extra * kPageTokens) + rows * (rows + 1) / 2);
    result.kept += heads * (extra + blocks - diagonal);
    result.total += heads * blocks;
  }
  block_offsets_ = backend_.Allocate(std::ssize(offsets) * 4).value();
  block_ids_ = backend_.Allocate(std::ssize(ids) * 4).value();
  Upload(block_offsets_, offsets);
  Upload(block_ids_, ids);
  prefill_.block_offsets = block_offsets_.As<int32_t>();
  prefill_.block_ids = block_ids_.As<int32_t>();
  CHECK_OK(stream_->Synchronize());
  return result;
}

void RandomLayers::AttendPrefill(int32_t repetition) {
  const int32_t layer = repetition % shape_.layers;
  AttendPrefillParams params = prefill_;
  params.retrieval = cache_->retrieval(layer);
  params.streaming = cache_->streaming(layer);
  const int64_t chunk_lists = int64_t{shape_.chunk} / kQueryBlockTokens * shape_.retrieval_heads;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    params.batch = chunks_[i].view;
    if (prefill_.block_offsets != nullptr) {
      params.block_offsets = prefill_.block_offsets + static_cast<int64_t>(i) * chunk_lists;
    }
    backend_.ops().attend_prefill.run(*stream_, params);
  }
}

PrefillBlocks RandomLayers::ReadBlocks() {
  PrefillBlocks blocks;
  backend_.CopyToHost(&blocks, blocks_.data(), sizeof(blocks), *stream_);
  CHECK_OK(stream_->Synchronize());
  return blocks;
}

void RandomLayers::AlikeQueries() {
  const auto width = static_cast<size_t>(RowBytes(shape_));
  std::vector<std::byte> rows(width * static_cast<size_t>(shape_.chunk));
  for (int32_t row = 0; row < shape_.chunk; ++row) {
    std::memcpy(rows.data() + static_cast<size_t>(row) * width, Pattern().data(), width);
  }
  backend_.CopyToDevice(q_.data(), rows.data(), std::ssize(rows), *stream_);
  CHECK_OK(stream_->Synchronize());
}

// ---- Memory

// Copies the pattern again and again, the last time in part.
void RandomLayers::Fill(std::byte* data, int64_t bytes) {
  const int64_t whole = bytes / kPatternBytes;
  if (copy_to_.bytes() < whole * 4 || copy_from_.bytes() == 0) {
    std::vector<int32_t> places(static_cast<size_t>(std::max<int64_t>(whole, 1)), 0);
    copy_from_ = backend_.Allocate(std::ssize(places) * 4).value();
    Upload(copy_from_, places);
    std::iota(places.begin(), places.end(), 0);
    copy_to_ = backend_.Allocate(std::ssize(places) * 4).value();
    Upload(copy_to_, places);
  }
  const auto copy = [&](std::byte* to, int64_t count, int64_t page_bytes) {
    if (count > 0 && page_bytes > 0) {
      backend_.ops().copy_pages.run(*stream_, CopyPagesParams{.destination = to,
                                                              .source = pattern_.data(),
                                                              .from = copy_from_.As<int32_t>(),
                                                              .to = copy_to_.As<int32_t>(),
                                                              .count = static_cast<int32_t>(count),
                                                              .page_bytes = page_bytes});
    }
  };
  copy(data, whole, kPatternBytes);
  copy(data + whole * kPatternBytes, 1, bytes % kPatternBytes);
}

void RandomLayers::Upload(const Buffer& to, const std::vector<int32_t>& words) {
  backend_.CopyToDevice(to.data(), words.data(), std::ssize(words) * 4, *stream_);
}

void RandomLayers::Grow(int64_t bytes) {
  if (workspace_.bytes() < bytes) {
    workspace_ = backend_.Allocate(bytes).value();
  }
}

// One decode row a slot at `position`, or prefill rows of slot 0 from there on.
RandomLayers::Step RandomLayers::MakeStep(int32_t decode_rows, int64_t position,
                                          int64_t prefill_rows) {
  constexpr int64_t kChunk = 64, kLogitRow = 128, kRow = 256;  // words before them
  const int64_t max_rows = std::max(decode_rows, shape_.chunk) + kRowSlack;
  const auto first = static_cast<int32_t>(position);
  std::vector<int32_t> words(static_cast<size_t>(kRow + 3 * max_rows));
  words[kDecodeRows] = decode_rows;
  words[kPrefillRows] = static_cast<int32_t>(prefill_rows);
  words[kChunks] = prefill_rows > 0 ? 1 : 0;
  const PrefillChunk chunk{.slot = 0,
                           .first_position = first,
                           .first_row = 0,
                           .rows = static_cast<int32_t>(prefill_rows),
                           .first_chunk_page = 0,
                           .first_query_block = 0};
  std::memcpy(&words[kChunk], &chunk, sizeof(chunk));
  for (int64_t row = 0; row < decode_rows + prefill_rows; ++row) {
    const auto i = static_cast<int32_t>(row);
    words[static_cast<size_t>(kRow + row)] = decode_rows > 0 ? i : 0;
    words[static_cast<size_t>(kRow + max_rows + row)] = decode_rows > 0 ? first : first + i;
  }
  Step step{.words = backend_.Allocate(std::ssize(words) * 4).value(), .view = {}};
  Upload(step.words, words);
  const int32_t* data = step.words.As<int32_t>();
  step.view = BatchView{.counts = data,
                        .row_slot = data + kRow,
                        .row_position = data + kRow + max_rows,
                        .row_token = data + kRow + 2 * max_rows,
                        .chunks = reinterpret_cast<const PrefillChunk*>(data + kChunk),
                        .logit_row = data + kLogitRow,
                        .max_rows = std::max(decode_rows, shape_.chunk),
                        .max_decode_rows = decode_rows,
                        .max_chunks = prefill_rows > 0 ? 1 : 0,
                        .max_logit_rows = 0,
                        .max_slots = shape_.batch};
  return step;
}

}  // namespace lserve::bench
