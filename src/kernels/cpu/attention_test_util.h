// What the attention tests stand on: a layer's cache filled with random tokens, page ids shuffled,
// memory behind the tokens poisoned with NaN; the attention of one query written out plainly; and a
// team of threads. Header of tests only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/page_codes.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/team.h"
#include "kernels/ops.h"

namespace lserve::cpu::testing {

struct CacheShape {
  int32_t retrieval_heads = 1;
  int32_t streaming_heads = 1;
  int32_t head_dim = 64;
  int32_t group = 2;
  int32_t sink_tokens = 128;
  int32_t local_tokens = 256;
  int32_t max_pages = 16;
  PageScore score = PageScore::kMinMax;

  int32_t kv_heads() const { return retrieval_heads + streaming_heads; }
  int32_t q_heads() const { return kv_heads() * group; }
};

// A chunk of a slot: positions [first, first + rows).
struct TestChunk {
  int32_t slot;
  int32_t first;
  int32_t rows;
};

class TestCache {
 public:
  // Slot s holds lengths[s] tokens, the last of which is the newest.
  TestCache(const CacheShape& shape, const std::vector<int32_t>& lengths, uint32_t seed)
      : shape_(shape), lengths_(lengths), random_(seed) {
    const auto slots = static_cast<int32_t>(lengths.size());
    retrieval_.layout =
        MakeKvPageLayout(shape.retrieval_heads, shape.head_dim, KvFormat::kBFloat16, shape.score);
    streaming_.layout = MakeKvPageLayout(shape.streaming_heads, shape.head_dim, KvFormat::kBFloat16,
                                         PageScore::kNone);
    retrieval_.max_pages = shape.max_pages;
    streaming_.sink_tokens = shape.sink_tokens;
    streaming_.local_tokens = shape.local_tokens;
    streaming_.sink_pages = (shape.sink_tokens + 63) / 64;
    streaming_.ring_pages = (shape.local_tokens + 62) / 64 + 1;
    const int32_t ring = streaming_.sink_pages + streaming_.ring_pages;
    table_ = Shuffled(slots * shape.max_pages);
    ring_table_ = Shuffled(slots * ring);
    Poison(pages_, slots * shape.max_pages * retrieval_.layout.page_bytes());
    Poison(open_, slots * retrieval_.layout.open().page_bytes());
    Poison(ring_, slots * ring * streaming_.layout.page_bytes());
    retrieval_.pages = Aligned(pages_);
    retrieval_.open = Aligned(open_);
    retrieval_.table = table_.data();
    streaming_.pages = Aligned(ring_);
    streaming_.table = ring_table_.data();
    for (int32_t slot = 0; slot < slots; ++slot) {
      const int64_t size =
          int64_t{lengths[static_cast<size_t>(slot)]} * shape.kv_heads() * shape.head_dim;
      keys_.push_back(RandomBf16(size));
      values_.push_back(RandomBf16(size));
      FillRetrieval(slot);
    }
  }

  const CacheShape& shape() const { return shape_; }
  const RetrievalLane& retrieval() const { return retrieval_; }
  const StreamingLane& streaming() const { return streaming_; }
  int32_t slots() const { return static_cast<int32_t>(lengths_.size()); }

  uint16_t Key(int32_t slot, int32_t head, int32_t token, int32_t dim) const {
    return keys_[static_cast<size_t>(slot)][Index(head, token, dim)];
  }
  uint16_t Value(int32_t slot, int32_t head, int32_t token, int32_t dim) const {
    return values_[static_cast<size_t>(slot)][Index(head, token, dim)];
  }

  // Takes over the tokens of a longer cache of the same shape, slot by slot.
  void CopyTokens(const TestCache& from) {
    for (size_t slot = 0; slot < keys_.size(); ++slot) {
      std::copy_n(from.keys_[slot].begin(), keys_[slot].size(), keys_[slot].begin());
      std::copy_n(from.values_[slot].begin(), values_[slot].size(), values_[slot].begin());
      FillRetrieval(static_cast<int32_t>(slot));
    }
  }

  // A batch of one decode row a slot, at its newest token. Fills the rings.
  BatchView DecodeBatch() {
    StartBatch();
    for (int32_t slot = 0; slot < slots(); ++slot) {
      row_slot_.push_back(slot);
      row_position_.push_back(lengths_[static_cast<size_t>(slot)] - 1);
      FillRing(slot, lengths_[static_cast<size_t>(slot)]);
    }
    counts_[kDecodeRows] = slots();
    return View(slots());
  }

  // A batch of chunks, each ending at its slot's newest token. The rings stand before the chunks.
  BatchView PrefillBatch(const std::vector<TestChunk>& chunks) {
    StartBatch();
    int32_t pages = 0;
    int32_t query_block = 0;
    for (const TestChunk& chunk : chunks) {
      chunks_.push_back({chunk.slot, chunk.first, static_cast<int32_t>(row_slot_.size()),
                         chunk.rows, pages, query_block});
      for (int32_t i = 0; i < chunk.rows; ++i) {
        row_slot_.push_back(chunk.slot);
        row_position_.push_back(chunk.first + i);
      }
      pages += (chunk.first + chunk.rows - 1) / 64 - chunk.first / 64 + 1;
      query_block += (chunk.first + chunk.rows - 1) / 128 - chunk.first / 128 + 1;
      FillRing(chunk.slot, chunk.first);
    }
    Poison(chunk_pages_, pages * streaming_.layout.page_bytes());
    streaming_.chunk_pages = Aligned(chunk_pages_);
    for (const PrefillChunk& chunk : chunks_) {
      const int32_t end = chunk.first_position + chunk.rows;
      for (int32_t p = chunk.first_position / 64; p * 64 < end; ++p) {
        FillPage(streaming_.layout, shape_.retrieval_heads, chunk.slot, p, end,
                 streaming_.chunk_pages + (chunk.first_chunk_page + p - chunk.first_position / 64) *
                                              streaming_.layout.page_bytes());
      }
    }
    counts_[kPrefillRows] = static_cast<int32_t>(row_slot_.size());
    counts_[kChunks] = static_cast<int32_t>(chunks_.size());
    return View(0);
  }

  // Softmax attention of query head `head` of a row over the tokens that `sees` names.
  std::vector<double> Attend(const uint16_t* q, int32_t slot, int32_t q_head, int32_t position,
                             const std::function<bool(int32_t token)>& sees) const {
    const int32_t head = q_head / shape_.group;
    std::vector<double> weights;
    std::vector<int32_t> tokens;
    double max = -INFINITY;
    for (int32_t t = 0; t <= position; ++t) {
      if (!sees(t)) {
        continue;
      }
      double score = 0.0;
      for (int32_t d = 0; d < shape_.head_dim; ++d) {
        score += double{ToFloat(BFloat16{q[d]})} * ToFloat(BFloat16{Key(slot, head, t, d)});
      }
      score /= std::sqrt(double{static_cast<float>(shape_.head_dim)});
      max = std::max(max, score);
      weights.push_back(score);
      tokens.push_back(t);
    }
    double sum = 0.0;
    std::vector<double> output(static_cast<size_t>(shape_.head_dim));
    for (size_t i = 0; i < tokens.size(); ++i) {
      const double p = std::exp(weights[i] - max);
      sum += p;
      for (int32_t d = 0; d < shape_.head_dim; ++d) {
        output[static_cast<size_t>(d)] += p * ToFloat(BFloat16{Value(slot, head, tokens[i], d)});
      }
    }
    for (double& x : output) {
      x /= sum;
    }
    return output;
  }

  // Whether a streaming head's query at `position` sees the token.
  bool Streams(int32_t position, int32_t token) const {
    return token <= position &&
           (token < shape_.sink_tokens || position - token < shape_.local_tokens);
  }

  std::vector<uint16_t> RandomBf16(int64_t size) {
    std::vector<uint16_t> values(static_cast<size_t>(size));
    for (uint16_t& value : values) {
      // The sum of uniform numbers: near enough to normal.
      const auto r = static_cast<uint32_t>(random_());
      const float sum =
          static_cast<float>((r & 0xFF) + (r >> 8 & 0xFF) + (r >> 16 & 0xFF) + (r >> 24 & 0xFF));
      value = ToBFloat16((sum - 510.0f) / 148.0f).bits;
    }
    return values;
  }

 private:
  size_t Index(int32_t head, int32_t token, int32_t dim) const {
    return static_cast<size_t>((int64_t{token} * shape_.kv_heads() + head) * shape_.head_dim + dim);
  }

  std::vector<int32_t> Shuffled(int32_t size) {
    std::vector<int32_t> ids(static_cast<size_t>(size));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    return ids;
  }

  static void Poison(std::vector<std::byte>& memory, int64_t bytes) {
    memory.assign(static_cast<size_t>(bytes) + 64, std::byte{0xFF});
  }
  static std::byte* Aligned(std::vector<std::byte>& memory) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + ((64 - address % 64) % 64);
  }

  // The tokens of the page below `end`; what lies behind them stays.
  void FillPage(const KvPageLayout& layout, int32_t first_head, int32_t slot, int32_t page,
                int32_t end, std::byte* data) const {
    const int32_t dims = layout.padded_head_dim;
    for (int32_t head = 0; head < layout.heads; ++head) {
      auto* keys = reinterpret_cast<uint16_t*>(data + layout.key_offset(head));
      auto* values = reinterpret_cast<uint16_t*>(data + layout.value_offset(head));
      auto* stats = reinterpret_cast<uint16_t*>(data + layout.stats_offset(head));
      for (int32_t t = 0; t < 64 && page * 64 + t < end; ++t) {
        for (int32_t d = 0; d < dims; ++d) {
          const bool padding = d >= layout.head_dim;
          const int32_t token = page * 64 + t;
          const uint16_t key = padding ? uint16_t{0} : Key(slot, first_head + head, token, d);
          keys[KeyIndex(t, d, dims)] = key;
          values[ValueIndex(t, d, dims)] =
              padding ? uint16_t{0} : Value(slot, first_head + head, token, d);
          if (layout.score != PageScore::kMinMax) {
            continue;
          }
          uint16_t* range = stats + StatsIndex(t / 16, d, dims);
          const float k = ToFloat(BFloat16{key});
          if (t % 16 == 0 || k < ToFloat(BFloat16{range[0]})) {
            range[0] = key;
          }
          if (t % 16 == 0 || k > ToFloat(BFloat16{range[1]})) {
            range[1] = key;
          }
        }
      }
    }
  }

  void FillRetrieval(int32_t slot) {
    const int32_t length = lengths_[static_cast<size_t>(slot)];
    const int64_t bytes = retrieval_.layout.page_bytes();
    for (int32_t p = 0; p * 64 < length; ++p) {
      const bool newest = p == (length - 1) / 64;
      const int64_t id = table_[static_cast<size_t>(slot * shape_.max_pages + p)];
      if (newest) {
        const KvPageLayout open = retrieval_.layout.open();
        FillPage(open, 0, slot, p, length, retrieval_.open + slot * open.page_bytes());
        continue;
      }
      std::byte* closed = retrieval_.pages + id * bytes;
      FillPage(retrieval_.layout, 0, slot, p, length, closed);
      for (int32_t head = 0; shape_.score == PageScore::kSketch && head < retrieval_.layout.heads;
           ++head) {
        const auto* keys =
            reinterpret_cast<const uint16_t*>(closed + retrieval_.layout.key_offset(head));
        WriteKeyCodes(retrieval_.layout, keys, HeadCodes(retrieval_.layout, head, closed));
      }
    }
  }

  // The ring as it stands with `tokens` tokens.
  void FillRing(int32_t slot, int32_t tokens) {
    const int32_t ring = streaming_.sink_pages + streaming_.ring_pages;
    for (int32_t p = 0; p * 64 < tokens; ++p) {
      const int64_t id =
          ring_table_[static_cast<size_t>(slot * ring + StreamingRingSlot(streaming_, p))];
      FillPage(streaming_.layout, shape_.retrieval_heads, slot, p, tokens,
               streaming_.pages + id * streaming_.layout.page_bytes());
    }
  }

  void StartBatch() {
    counts_.assign(kBatchCounts, 0);
    row_slot_.clear();
    row_position_.clear();
    chunks_.clear();
  }
  BatchView View(int32_t max_decode_rows) const {
    BatchView view{};
    view.counts = counts_.data();
    view.row_slot = row_slot_.data();
    view.row_position = row_position_.data();
    view.chunks = chunks_.data();
    view.max_rows = static_cast<int32_t>(row_slot_.size());
    view.max_decode_rows = max_decode_rows;
    view.max_chunks = static_cast<int32_t>(chunks_.size());
    view.max_slots = slots();
    return view;
  }

  CacheShape shape_;
  std::vector<int32_t> lengths_;
  std::mt19937 random_;
  std::vector<std::vector<uint16_t>> keys_, values_;  // by slot: [token, KV head, head_dim]
  std::vector<std::byte> pages_, open_, ring_, chunk_pages_;
  std::vector<int32_t> table_, ring_table_;
  RetrievalLane retrieval_{};
  StreamingLane streaming_{};
  std::vector<int32_t> counts_, row_slot_, row_position_;
  std::vector<PrefillChunk> chunks_;
};

// Runs body(team) on a team of threads.
inline void RunTeam(int32_t threads, const std::function<void(Team&)>& body) {
  TeamBarrier barrier(threads);
  std::atomic<int64_t> next{0};
  std::vector<ThreadScratch> scratch(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int32_t i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] {
      Team team(i, threads, barrier, next, scratch[static_cast<size_t>(i)]);
      body(team);
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
}

// 64-byte aligned workspace, poisoned.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : memory_(static_cast<size_t>(bytes) + 64, std::byte{0xFF}) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + ((64 - address % 64) % 64);
  }

 private:
  std::vector<std::byte> memory_;
};

// The largest |got - want| over the root mean square of want.
inline double RelativeError(const uint16_t* got, const std::vector<double>& want) {
  double worst = 0.0;
  double squares = 0.0;
  for (size_t d = 0; d < want.size(); ++d) {
    const double error = std::abs(ToFloat(BFloat16{got[d]}) - want[d]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    squares += want[d] * want[d];
  }
  return worst / std::sqrt(squares / static_cast<double>(want.size()));
}

}  // namespace lserve::cpu::testing
