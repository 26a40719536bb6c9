// Layer: a synthetic attention layer on one backend (harness.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <ostream>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

// Where this layer's lists lie among those of a slot: others stand before and after.
constexpr int32_t kFirstList = 2;
constexpr int32_t kListsAfter = 1;
constexpr int32_t kUntouched = -12345;

std::vector<int32_t> Shuffled(int32_t size, uint64_t seed, int32_t first = 0) {
  std::vector<int32_t> values(static_cast<size_t>(size));
  std::iota(values.begin(), values.end(), first);
  std::mt19937_64 generator(seed);
  std::shuffle(values.begin(), values.end(), generator);
  return values;
}

int32_t SinkPages(const LayerShape& shape) {
  return (shape.sink_tokens + kPageTokens - 1) / kPageTokens;
}
int32_t RingPages(const LayerShape& shape) {
  return (shape.local_tokens - 1 + kPageTokens - 1) / kPageTokens + 1;
}
int32_t RingEntries(const LayerShape& shape) { return SinkPages(shape) + RingPages(shape); }

int32_t ListStride(const LayerShape& shape) {
  return kFirstList + shape.retrieval_heads + kListsAfter;
}
int32_t Capacity(const LayerShape& shape) {
  return shape.policy.token_budget / shape.policy.unit_tokens;
}

std::vector<float> Frequencies(const LayerShape& shape) {
  std::vector<float> frequencies(static_cast<size_t>(shape.head_dim / 2), 0.0f);
  for (size_t d = 0; shape.rope && d < frequencies.size(); ++d) {
    frequencies[d] = static_cast<float>(
        std::pow(10000.0, -2.0 * static_cast<double>(d) / static_cast<double>(shape.head_dim)));
  }
  return frequencies;
}

KvFormat FormatOf(const LayerShape& shape, DType dtype) {
  return dtype == DType::kFloat32 ? KvFormat::kFloat32 : shape.format;
}

// The first page behind `bytes`; lanes without heads have pages without bytes.
int32_t PageBehind(int64_t bytes, const KvPageLayout& layout) {
  return layout.heads == 0
             ? 0
             : static_cast<int32_t>((bytes + layout.page_bytes() - 1) / layout.page_bytes());
}

int64_t MaxChunkPages() { return Layer::kMaxRows / kPageTokens + 2 * Layer::kSlots; }

}  // namespace

std::ostream& operator<<(std::ostream& out, const LayerShape& shape) {
  return out << shape.retrieval_heads << " retrieval and " << shape.streaming_heads
             << " streaming heads of " << shape.head_dim << ", group " << shape.group << ", window "
             << shape.sink_tokens << " + " << shape.local_tokens << ", budget "
             << shape.policy.token_budget << " in units of " << shape.policy.unit_tokens
             << ", reuse interval " << shape.policy.reuse_interval << ", reuse distance "
             << shape.policy.reuse_distance << ", dense tokens " << shape.policy.dense_tokens
             << (shape.score == PageScore::kSketch ? ", sketch" : "")
             << (shape.format == KvFormat::kInt8   ? ", int8"
                 : shape.format == KvFormat::kInt4 ? ", int4"
                                                   : "");
}

std::vector<LayerShape> LayerShapes() {
  return {
      {2, 2, 64, 2, 128, 256, {256, 64, 1}, false, false},
      {1, 3, 128, 4, 64, 100, {160, 32, 4}, true, false},
      {3, 0, 80, 3, 128, 256, {112, 16, 3}, false, true},
      {0, 2, 96, 1, 0, 1, {256, 64, 1}, true, true},
      {1, 1, 64, 8, 100, 65, {128, 16, 1}, false, true},
      {2, 1, 128, 1, 200, 64, {320, 64, 2, 0.0f, 400}, false, false},
      {1, 2, 80, 4, 3, 17, {160, 32, 1}, true, false},
      {1, 1, 96, 2, 1000, 66, {0, 64, 1}, false, false},
      {2, 1, 64, 2, 128, 256, {128, 16, 1}, false, false, PageScore::kSketch},
      {1, 1, 80, 3, 64, 100, {160, 32, 2}, true, true, PageScore::kSketch},
      {1, 0, 128, 7, 128, 256, {256, 64, 1}, false, false, PageScore::kSketch},
  };
}

TokenData RandomData(uint64_t seed, float scale) {
  // Drawn once a token: the tests ask again and again.
  auto drawn = std::make_shared<std::map<std::pair<int32_t, int32_t>, std::vector<float>>>();
  return [=](int32_t sequence, int32_t position, std::span<float> qkv) {
    std::vector<float>& values = (*drawn)[{sequence, position}];
    if (values.size() != qkv.size()) {
      values = NormalVector(static_cast<int64_t>(qkv.size()),
                            seed * 1000003 + static_cast<uint64_t>(sequence) * 65537 +
                                static_cast<uint64_t>(position),
                            scale);
    }
    std::copy(values.begin(), values.end(), qkv.begin());
  };
}

std::vector<Step> RandomSchedule(const std::vector<SequenceLengths>& sequences, uint64_t seed) {
  std::mt19937_64 generator(seed);
  const auto pick = [&](int32_t count) {
    return static_cast<int32_t>(generator() % static_cast<uint64_t>(count));
  };
  constexpr int32_t kChunks[] = {1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129};
  std::vector<int32_t> done(sequences.size(), 0);
  std::vector<Step> steps;
  for (bool more = true; more;) {
    more = false;
    Step step;
    int32_t rows = 0;
    for (const int32_t s : Shuffled(static_cast<int32_t>(sequences.size()), generator())) {
      const auto [prompt, total] = sequences[static_cast<size_t>(s)];
      int32_t& length = done[static_cast<size_t>(s)];
      more = more || length < total;
      if (length == total || pick(4) == 0) {
        continue;
      }
      if (length < prompt) {
        const int32_t chunk = std::min(prompt - length, kChunks[pick(std::size(kChunks))]);
        if (rows + chunk > Layer::kMaxRows - Layer::kSlots) {
          continue;
        }
        step.chunks.emplace_back(s, chunk);
        length += chunk;
        rows += chunk;
      } else {
        step.decode.push_back(s);
        ++length;
      }
    }
    if (!step.decode.empty() || !step.chunks.empty()) {
      steps.push_back(step);
    }
  }
  return steps;
}

std::vector<Step> PlainSchedule(const std::vector<SequenceLengths>& sequences, int32_t chunk) {
  std::vector<Step> steps;
  for (int32_t s = 0; s < static_cast<int32_t>(sequences.size()); ++s) {
    const auto [prompt, total] = sequences[static_cast<size_t>(s)];
    for (int32_t length = 0; length < prompt; length += chunk) {
      steps.push_back({{}, {{s, std::min(chunk, prompt - length)}}});
    }
    for (int32_t length = prompt; length < total; ++length) {
      steps.push_back({{s}, {}});
    }
  }
  return steps;
}

Layer::Layer(Backend& backend, const LayerShape& shape, DType dtype, TokenData data,
             int32_t max_tokens, uint64_t placement, int64_t unused_bytes)
    : backend_(backend),
      shape_(shape),
      dtype_(dtype),
      data_(std::move(data)),
      max_pages_((max_tokens + kPageTokens - 1) / kPageTokens),
      stream_(backend.MakeStream()),
      retrieval_layout_(
          MakeKvPageLayout(shape.retrieval_heads, shape.head_dim, FormatOf(shape, dtype),
                           shape.policy.token_budget > 0 ? shape.score : PageScore::kNone)),
      streaming_layout_(MakeKvPageLayout(shape.streaming_heads, shape.head_dim,
                                         OpenFormat(FormatOf(shape, dtype)), PageScore::kNone)),
      first_page_(PageBehind(unused_bytes, retrieval_layout_)),
      first_ring_page_(PageBehind(unused_bytes, streaming_layout_)),
      free_slots_(Shuffled(kSlots, placement)),
      free_retrieval_(Shuffled(kSlots * max_pages_ + 3, placement + 1, first_page_)),
      free_ring_(Shuffled(kSlots * RingEntries(shape) + 3, placement + 2, first_ring_page_)),
      batch_(backend, kMaxRows, kSlots),
      pages_(backend, (first_page_ + kSlots * max_pages_ + 3) * retrieval_layout_.page_bytes()),
      open_(backend, kSlots * retrieval_layout_.open().page_bytes()),
      ring_(backend,
            (first_ring_page_ + kSlots * RingEntries(shape) + 3) * streaming_layout_.page_bytes()),
      chunk_(backend, MaxChunkPages() * streaming_layout_.page_bytes()),
      retrieval_chunk_(backend, MaxChunkPages() * retrieval_layout_.open().page_bytes()),
      table_(backend, int64_t{kSlots} * max_pages_),
      ring_table_(backend, int64_t{kSlots} * RingEntries(shape)),
      prompt_tokens_(backend, kSlots),
      units_(backend, int64_t{kSlots} * ListStride(shape) * Capacity(shape)),
      unit_counts_(backend, int64_t{kSlots} * ListStride(shape)),
      lists_made_(backend, int64_t{kSlots} * ListStride(shape)),
      prefill_blocks_(backend, 1),
      angles_(backend, int64_t{kMaxRows + kRowSlack} * shape.head_dim),
      scores_(backend, int64_t{kMaxRows} * shape.retrieval_heads * max_pages_ *
                           (kPageTokens / shape.policy.unit_tokens)),
      frequencies_(backend, Frequencies(shape)),
      log_sums_(backend, int64_t{kMaxRows + kRowSlack} * shape.q_heads()),
      qkv_(backend, dtype, int64_t{kMaxRows + kRowSlack} * shape.qkv_columns()),
      q_(backend, dtype, int64_t{kMaxRows + kRowSlack} * shape.q_heads() * shape.head_dim),
      output_(backend, dtype, int64_t{kMaxRows + kRowSlack} * shape.q_heads() * shape.head_dim),
      bias_(backend, dtype, shape.qkv_columns()),
      norm_(backend, dtype, 2 * shape.head_dim),
      list_queries_(backend, dtype,
                    int64_t{kSlots} * ListStride(shape) * shape.group * shape.head_dim) {
  pages_.Poison(first_page_ * retrieval_layout_.page_bytes());
  ring_.Poison(first_ring_page_ * streaming_layout_.page_bytes());
  open_.Poison();
  chunk_.Poison();
  unit_counts_.Upload(std::vector<int32_t>(static_cast<size_t>(unit_counts_.size()), kUntouched));
  units_.Upload(std::vector<int32_t>(static_cast<size_t>(units_.size()), kUntouched));
  lists_made_.Upload(std::vector<int64_t>(static_cast<size_t>(lists_made_.size()), 0));
  bias_.Upload(NormalVector(shape.qkv_columns(), 77, 0.5f));
  std::vector<float> norm = NormalVector(2 * int64_t{shape.head_dim}, 78, 0.1f);
  for (float& weight : norm) {
    weight += 1.0f;
  }
  norm_.Upload(norm);
}

RetrievalLane Layer::retrieval() const {
  return {
      reinterpret_cast<std::byte*>(pages_.data()),
      reinterpret_cast<std::byte*>(open_.data()),
      table_.data(),
      max_pages_,
      retrieval_layout_,
      retrieval_layout_.boxed() ? reinterpret_cast<std::byte*>(retrieval_chunk_.data()) : nullptr};
}

StreamingLane Layer::streaming() const {
  return {reinterpret_cast<std::byte*>(ring_.data()),
          ring_table_.data(),
          reinterpret_cast<std::byte*>(chunk_.data()),
          shape_.sink_tokens,
          shape_.local_tokens,
          SinkPages(shape_),
          RingPages(shape_),
          streaming_layout_};
}

UnitLists Layer::lists() const {
  if (shape_.policy.token_budget == 0) {
    return {};
  }
  return {units_.data(),      unit_counts_.data(),
          ListStride(shape_), kFirstList,
          Capacity(shape_),   shape_.policy.reuse_distance > 0.0f ? list_queries_.data() : nullptr,
          lists_made_.data()};
}

Layer::Sequence& Layer::Start(int32_t sequence) {
  const auto [found, fresh] = sequences_.try_emplace(sequence);
  Sequence& state = found->second;
  if (fresh) {
    CHECK(!free_slots_.empty());
    state.slot = free_slots_.back();
    free_slots_.pop_back();
    const int32_t entries = RingEntries(shape_);
    state.ring_pages.assign(free_ring_.end() - entries, free_ring_.end());
    free_ring_.resize(free_ring_.size() - static_cast<size_t>(entries));
    ring_table_.Upload(state.ring_pages, int64_t{state.slot} * entries);
    unit_counts_.Upload(std::vector<int32_t>(static_cast<size_t>(shape_.retrieval_heads), -1),
                        int64_t{state.slot} * ListStride(shape_) + kFirstList);
  }
  return state;
}

// Closed pages are dealt when they are needed; the rest of the table stays what it was.
void Layer::Grow(Sequence& sequence, int32_t length) {
  sequence.length = length;
  while (static_cast<int32_t>(sequence.retrieval_pages.size()) < (length - 1) / kPageTokens) {
    CHECK(!free_retrieval_.empty());
    sequence.retrieval_pages.push_back(free_retrieval_.back());
    free_retrieval_.pop_back();
  }
  CHECK_LE((length - 1) / kPageTokens, max_pages_);
  table_.Upload(sequence.retrieval_pages, int64_t{sequence.slot} * max_pages_);
}

void Layer::Release(int32_t sequence) {
  const Sequence& state = sequences_.at(sequence);
  free_slots_.push_back(state.slot);
  // In reverse, so that the next sequence gets the same pages in the same order.
  free_retrieval_.insert(free_retrieval_.end(), state.retrieval_pages.rbegin(),
                         state.retrieval_pages.rend());
  free_ring_.insert(free_ring_.end(), state.ring_pages.begin(), state.ring_pages.end());
  sequences_.erase(sequence);
}

template <typename Params>
void RunOp(Backend& backend, Stream& stream, const Op<Params>& op, Params params) {
  const int64_t bytes = op.workspace_bytes(params);
  DeviceArray<uint8_t> workspace(backend, bytes);
  workspace.Poison();
  if constexpr (requires { params.workspace; }) {
    params.workspace = workspace.data();
  }
  if constexpr (requires { Validate(params); }) {
    CHECK_OK(Validate(params));
  }
  op.run(stream, params);
  CHECK_OK(stream.Synchronize());
}

void Layer::Run(const std::vector<Step>& schedule) {
  for (const Step& step : schedule) {
    Run(step);
  }
}

void Layer::Run(const Step& step) {
  std::vector<BatchRow> decode;
  std::vector<BatchChunk> chunks;
  std::vector<std::pair<int32_t, int32_t>> rows;  // (sequence, position)
  for (const int32_t s : step.decode) {
    Sequence& sequence = Start(s);
    decode.push_back({sequence.slot, sequence.length});
    rows.emplace_back(s, sequence.length);
    Grow(sequence, sequence.length + 1);
  }
  for (const auto& [s, count] : step.chunks) {
    Sequence& sequence = Start(s);
    chunks.push_back({sequence.slot, sequence.length, count});
    for (int32_t i = 0; i < count; ++i) {
      rows.emplace_back(s, sequence.length + i);
    }
    Grow(sequence, sequence.length + count);
    sequence.prompt = sequence.length;
    prompt_tokens_.Upload(std::vector<int32_t>{sequence.prompt}, sequence.slot);
  }
  batch_.Set(decode, chunks);
  std::vector<float> qkv;
  for (const auto& [s, position] : rows) {
    std::vector<float> row(static_cast<size_t>(shape_.qkv_columns()));
    data_(s, position, row);
    qkv.insert(qkv.end(), row.begin(), row.end());
  }
  qkv_.Upload(qkv);
  q_.Poison();
  output_.Poison();
  log_sums_.Poison();
  chunk_.Poison();
  retrieval_chunk_.Poison();

  const Ops& ops = backend_.ops();
  RunOp(
      backend_, *stream_, ops.rope_angles,
      RopeAnglesParams{batch_.view(), frequencies_.data(), angles_.data(), 1.0f, shape_.head_dim});
  RopeAppendParams append{};
  append.batch = batch_.view();
  append.qkv = qkv_.data();
  append.bias = shape_.bias ? bias_.data() : nullptr;
  append.q_norm = shape_.norms ? norm_.data() : nullptr;
  append.k_norm = shape_.norms
                      ? static_cast<std::byte*>(norm_.data()) + shape_.head_dim * DTypeBytes(dtype_)
                      : nullptr;
  append.angles = angles_.data();
  append.q = q_.data();
  append.retrieval = retrieval();
  append.streaming = streaming();
  append.dtype = dtype_;
  append.q_heads = shape_.q_heads();
  append.kv_heads = shape_.kv_heads();
  append.head_dim = shape_.head_dim;
  append.norm_epsilon = 1e-5f;
  RunOp(backend_, *stream_, ops.rope_append, append);
  if (!step.append_only) {
    Select(step.decode);
    AttendDecodeParams attend{};
    attend.batch = batch_.view();
    attend.q = q_.data();
    attend.output = output_.data();
    attend.retrieval = retrieval();
    attend.streaming = streaming();
    attend.lists = lists();
    attend.policy = shape_.policy;
    attend.dtype = dtype_;
    attend.q_heads = shape_.q_heads();
    attend.group = shape_.group;
    attend.log_sums = log_sums_.data();
    RunOp(backend_, *stream_, ops.attend_decode, attend);
    AttendPrefill(step);
    const int64_t columns = int64_t{shape_.q_heads()} * shape_.head_dim;
    const std::vector<float> output =
        output_.Download(0, static_cast<int64_t>(rows.size()) * columns);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto first = output.begin() + static_cast<int64_t>(i) * columns;
      record_[rows[i]].output.assign(first, first + columns);
    }
    for (size_t i = 0; i < decode.size(); ++i) {
      record_[rows[i]].log_sums =
          log_sums_.Download(static_cast<int64_t>(i) * shape_.q_heads(), shape_.q_heads());
    }
  }
  RunOp(backend_, *stream_, ops.append_streaming,
        AppendStreamingParams{batch_.view(), streaming()});
}

void Layer::Select(const std::vector<int32_t>& decode) {
  if (shape_.policy.token_budget == 0 || shape_.retrieval_heads == 0) {
    return;
  }
  scores_.Poison();
  SelectUnitsParams select{};
  select.batch = batch_.view();
  select.q = q_.data();
  select.retrieval = retrieval();
  select.lists = lists();
  select.prompt_tokens = prompt_tokens_.data();
  select.scores = scores_.data();
  select.policy = shape_.policy;
  select.dtype = dtype_;
  select.q_heads = shape_.q_heads();
  select.group = shape_.group;
  const std::vector<int64_t> made_before = lists_made_.Download();
  RunOp(backend_, *stream_, backend_.ops().select_units, select);
  const std::vector<int64_t> made_after = lists_made_.Download();

  const int64_t max_units = int64_t{max_pages_} * kPageTokens / shape_.policy.unit_tokens;
  for (size_t row = 0; row < decode.size(); ++row) {
    const Sequence& sequence = sequences_.at(decode[row]);
    const std::pair<int32_t, int32_t> key{decode[row], sequence.length - 1};
    RowRecord& record = record_[key];
    record = RowRecord{};
    for (int32_t head = 0; head < shape_.retrieval_heads; ++head) {
      const int64_t index = int64_t{sequence.slot} * ListStride(shape_) + kFirstList + head;
      const int32_t count = unit_counts_.Download(index, 1)[0];
      const int64_t made = made_after[static_cast<size_t>(index)];
      record.all.push_back(count < 0);
      record.made.push_back(made != made_before[static_cast<size_t>(index)]);
      EXPECT_EQ(made, made_before[static_cast<size_t>(index)] + (record.made.back() ? 1 : 0));
      record.lists.push_back(count <= 0 ? std::vector<int32_t>{}
                                        : units_.Download(index * Capacity(shape_), count));
      record.scores.push_back(scores_.Download(
          (static_cast<int64_t>(row) * shape_.retrieval_heads + head) * max_units, max_units));
      if (use_lists_ != nullptr) {
        const RowRecord& other = use_lists_->at(key);
        const std::vector<int32_t>& list = other.lists[static_cast<size_t>(head)];
        units_.Upload(list, index * Capacity(shape_));
        unit_counts_.Upload(std::vector<int32_t>{other.all[static_cast<size_t>(head)]
                                                     ? -1
                                                     : static_cast<int32_t>(list.size())},
                            index);
      }
    }
    for (const int32_t other : {0, 1, kFirstList + shape_.retrieval_heads}) {
      const int64_t index = int64_t{sequence.slot} * ListStride(shape_) + other;
      EXPECT_EQ(unit_counts_.Download(index, 1)[0], kUntouched)
          << "the lists of another layer were written";
      EXPECT_EQ(made_after[static_cast<size_t>(index)], 0)
          << "the lists of another layer were counted";
    }
  }
}

void Layer::AttendPrefill(const Step& step) {
  AttendPrefillParams attend{};
  attend.batch = batch_.view();
  attend.q = q_.data();
  attend.output = output_.data();
  attend.retrieval = retrieval();
  attend.streaming = streaming();
  attend.dtype = dtype_;
  attend.q_heads = shape_.q_heads();
  attend.group = shape_.group;
  attend.policy = prefill_policy_;
  attend.blocks = prefill_blocks_.data();
  std::vector<int32_t> offsets = {0};
  std::vector<int32_t> ids;
  for (const auto& [s, rows] : step.chunks) {
    const int32_t last = length(s) - 1;
    for (int32_t block = (length(s) - rows) / kQueryBlockTokens;
         blocks_ && block <= last / kQueryBlockTokens; ++block) {
      for (int32_t head = 0; head < shape_.retrieval_heads; ++head) {
        const std::vector<int32_t> list = blocks_(s, block, head);
        // A list may name blocks that the sequence has only later.
        for (const int32_t id : list) {
          if (id * kPageTokens <= last) {
            ids.push_back(id);
          }
        }
        offsets.push_back(static_cast<int32_t>(ids.size()));
      }
    }
  }
  const DeviceArray<int32_t> device_offsets(backend_, offsets);
  const DeviceArray<int32_t> device_ids(backend_, ids);
  if (blocks_) {
    attend.block_offsets = device_offsets.data();
    attend.block_ids = device_ids.data();
  }
  RunOp(backend_, *stream_, backend_.ops().attend_prefill, attend);
}

PageContent Layer::Export(std::byte* page, const KvPageLayout& layout, int32_t tokens) const {
  const int64_t dim = layout.head_dim;
  const int64_t elements = int64_t{layout.heads} * kPageTokens * dim;
  const int64_t stats_rows = StatsRows(layout.score);
  const int64_t boxed_heads = layout.boxed() ? layout.heads : 0;
  // Export runs on the host's side of a page transfer; its canonical arrays are device memory.
  DeviceArray<float> device_keys(backend_, elements), device_values(backend_, elements),
      device_stats(backend_, layout.heads * stats_rows * dim),
      device_boxes(backend_, boxed_heads * 2 * dim),
      device_grids(backend_, boxed_heads * kPageTokens * 2);
  RunOp(backend_, *stream_, backend_.ops().export_page,
        TransferPageParams{page, layout, device_keys.data(), device_values.data(),
                           layout.score == PageScore::kNone ? nullptr : device_stats.data(),
                           layout.boxed() ? device_boxes.data() : nullptr,
                           layout.boxed() ? device_grids.data() : nullptr});
  const std::vector<float> keys = device_keys.Download();
  const std::vector<float> values = device_values.Download();
  const std::vector<float> stats = device_stats.Download();
  PageContent content;
  content.tokens = tokens;
  content.boxes = device_boxes.Download();
  content.grids = device_grids.Download();
  const int32_t logical_pages = (tokens + kLogicalPageTokens - 1) / kLogicalPageTokens;
  const int64_t valid_rows = layout.score == PageScore::kMinMax ? 2 * logical_pages : stats_rows;
  for (int32_t head = 0; head < layout.heads; ++head) {
    const auto take = [&](const std::vector<float>& from, int64_t first, int64_t count,
                          std::vector<float>& to) {
      to.insert(to.end(), from.begin() + first, from.begin() + first + count);
    };
    take(keys, head * kPageTokens * dim, tokens * dim, content.keys);
    take(values, head * kPageTokens * dim, tokens * dim, content.values);
    take(stats, head * stats_rows * dim, valid_rows * dim, content.stats);
  }
  return content;
}

PageContent Layer::RetrievalPage(int32_t sequence, int32_t page) const {
  const Sequence& state = sequences_.at(sequence);
  const RetrievalLane lane = retrieval();
  if (page == (state.length - 1) / kPageTokens) {
    const KvPageLayout open = lane.layout.open();
    return Export(lane.open + state.slot * open.page_bytes(), open,
                  state.length - page * kPageTokens);
  }
  const int32_t id = state.retrieval_pages[static_cast<size_t>(page)];
  return Export(lane.pages + id * lane.layout.page_bytes(), lane.layout, kPageTokens);
}

PageContent Layer::StreamingPage(int32_t sequence, int32_t page) const {
  const Sequence& state = sequences_.at(sequence);
  const StreamingLane lane = streaming();
  const auto entry = static_cast<size_t>(StreamingRingSlot(lane, page));
  return Export(lane.pages + state.ring_pages[entry] * lane.layout.page_bytes(), lane.layout,
                std::min(kPageTokens, state.length - page * kPageTokens));
}

std::map<int32_t, PageContent> Layer::Pages(int32_t sequence) const {
  std::map<int32_t, PageContent> pages;
  const int32_t newest = (length(sequence) - 1) / kPageTokens;
  for (int32_t page = 0; page <= newest; ++page) {
    if (shape_.retrieval_heads > 0) {
      pages[page] = RetrievalPage(sequence, page);
    }
    const bool held = page < SinkPages(shape_) || page > newest - RingPages(shape_);
    if (shape_.streaming_heads > 0 && held) {
      pages[~page] = StreamingPage(sequence, page);
    }
  }
  return pages;
}

}  // namespace lserve::conformance
