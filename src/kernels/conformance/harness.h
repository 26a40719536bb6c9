// What the conformance tests run operations with: a synthetic attention layer with its two-lane
// cache on one backend, fed by a schedule of steps, recording what every token got; and tolerant
// comparison. Single-threaded; every buffer is poisoned with NaN patterns before it is written.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace lserve::conformance {

// ---- Backends
// ------------------------------------------------------------------------------------

// Every backend's name; `ref` first.
std::vector<std::string> BackendNames();
// Those that are compared with `ref`.
std::vector<std::string> ComparedBackendNames();

// What a test is parametrised with.
struct Target {
  std::string backend;
  DType dtype;
  PageScore score = PageScore::kMinMax;
  KvFormat format = KvFormat::kBFloat16;  // of closed retrieval pages; float32 holds kFloat32
};
std::vector<Target> Targets(const std::vector<std::string>& backends);
// Each target with either page score.
std::vector<Target> WithEachScore(const std::vector<Target>& targets);
// Each target, and with bf16 activations in each boxed format too.
std::vector<Target> WithEachFormat(const std::vector<Target>& targets);
std::string TargetName(const Target& target);
std::string TargetTestName(const testing::TestParamInfo<Target>& test);

// Makes the target's backend, or skips the test with the reason why there is none.
class TargetTest : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override;
  // One, unless threads are what is tested: a team that shares its cores with other programs waits.
  virtual int32_t threads() const { return 1; }
  DType dtype() const { return GetParam().dtype; }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> ref_;
};

// ---- Device memory
// -------------------------------------------------------------------------------

// An array in a backend's memory.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, int64_t size);
  explicit DeviceArray(Backend& backend, const std::vector<T>& values)
      : DeviceArray(backend, static_cast<int64_t>(values.size())) {
    Upload(values);
  }

  T* data() const { return buffer_.As<T>(); }
  int64_t size() const { return size_; }
  void Upload(std::span<const T> values, int64_t first = 0);
  std::vector<T> Download(int64_t first = 0, int64_t count = -1) const;
  // Every byte from element `first` on 0xFF: NaN as bf16 and float32, -1 as an integer.
  void Poison(int64_t first = 0);

 private:
  Backend* backend_;
  std::unique_ptr<Stream> stream_;
  int64_t size_;
  Buffer buffer_;
};

// An array of activations, seen as float.
class ActivationArray {
 public:
  ActivationArray(Backend& backend, DType dtype, int64_t size)
      : dtype_(dtype), bytes_(backend, size * DTypeBytes(dtype)) {
    bytes_.Poison();
  }
  void* data() const { return bytes_.data(); }
  void Upload(std::span<const float> values, int64_t first = 0);  // rounds
  std::vector<float> Download(int64_t first, int64_t count) const;
  void Poison() { bytes_.Poison(); }

 private:
  DType dtype_;
  DeviceArray<uint8_t> bytes_;
};

// ---- Batches
// -------------------------------------------------------------------------------------

// The rows of a step: first decode rows, then chunks.
struct BatchRow {
  int32_t slot;
  int32_t position;
  int32_t token = 0;
};
struct BatchChunk {
  int32_t slot;
  int32_t first_position;
  int32_t rows;
};

// A BatchView whose arrays lie on a backend.
class Batch {
 public:
  Batch(Backend& backend, int32_t max_rows, int32_t max_slots);
  void Set(const std::vector<BatchRow>& decode, const std::vector<BatchChunk>& chunks,
           const std::vector<int32_t>& logit_rows = {}, const std::vector<int32_t>& tokens = {});
  const BatchView& view() const { return view_; }
  int32_t chunk_pages() const { return chunk_pages_; }

 private:
  BatchView view_;
  int32_t chunk_pages_ = 0;
  DeviceArray<int32_t> counts_, row_slot_, row_position_, row_token_, logit_row_;
  DeviceArray<PrefillChunk> chunks_;
};

// ---- A layer and its schedule
// --------------------------------------------------------------------

struct LayerShape {
  int32_t retrieval_heads = 2;
  int32_t streaming_heads = 2;
  int32_t head_dim = 64;
  int32_t group = 2;
  int32_t sink_tokens = 128;
  int32_t local_tokens = 256;
  SelectionPolicy policy = {0, 64, 1};  // budget 0: dense, no statistics, no lists
  bool bias = false;
  bool norms = false;
  PageScore score = PageScore::kMinMax;   // where there is a budget
  KvFormat format = KvFormat::kBFloat16;  // of closed retrieval pages; float32 holds kFloat32
  bool rope = true;  // false: no rotation, so without norms q and k are in every backend what came

  int32_t kv_heads() const { return retrieval_heads + streaming_heads; }
  int32_t q_heads() const { return kv_heads() * group; }
  int32_t qkv_columns() const { return (q_heads() + 2 * kv_heads()) * head_dim; }
};
std::ostream& operator<<(std::ostream& out, const LayerShape& shape);

// Shapes that differ in every way: heads of either lane, groups, head sizes, units, windows.
std::vector<LayerShape> LayerShapes();

// Fills the q, k, v that a token brings: qkv has qkv_columns elements.
using TokenData = std::function<void(int32_t sequence, int32_t position, std::span<float> qkv)>;

// Normal numbers that depend on (seed, sequence, position) alone.
TokenData RandomData(uint64_t seed, float scale = 1.0f);

// One step: sequences that get a decode row, and (sequence, rows) that get a chunk.
struct Step {
  std::vector<int32_t> decode;
  std::vector<std::pair<int32_t, int32_t>> chunks;
  bool append_only = false;  // no selection, no attention
};

// A sequence's prompt length and final length, for the schedules below.
struct SequenceLengths {
  int32_t prompt;
  int32_t total;
};
// Advances the sequences in random order, chunk sizes and batch mixes.
std::vector<Step> RandomSchedule(const std::vector<SequenceLengths>& sequences, uint64_t seed);
// One sequence after the other: prompt in chunks of `chunk`, then decode rows.
std::vector<Step> PlainSchedule(const std::vector<SequenceLengths>& sequences, int32_t chunk);

// What one row got.
struct RowRecord {
  std::vector<float> output;                // [q_heads, head_dim]
  std::vector<float> log_sums;              // decode rows: [q_heads]
  std::vector<std::vector<int32_t>> lists;  // decode rows with selection: a list each head
  std::vector<bool> all;                    // whether the count was -1
  std::vector<bool> made;                   // whether the list was made for this row
  std::vector<std::vector<float>> scores;   // as in SelectUnitsParams; NaN where not computed
};
// By (sequence, position).
using Record = std::map<std::pair<int32_t, int32_t>, RowRecord>;

// A page in canonical order, cut to the tokens that it holds.
struct PageContent {
  int32_t tokens = 0;
  std::vector<float> keys;    // [heads, tokens, head_dim]
  std::vector<float> values;  // [heads, tokens, head_dim]
  // kMinMax [heads, ceil(tokens / 16), 2, head_dim]; kSketch [heads, StatsRows, head_dim], of
  // closed pages only.
  std::vector<float> stats;
  std::vector<float> boxes;  // boxed pages: [heads, 2, head_dim]
  std::vector<float> grids;  // boxed pages: [heads, 64, 2]
};

class Layer {
 public:
  static constexpr int32_t kMaxRows = 640;
  static constexpr int32_t kSlots = 8;

  // Slots and physical pages are dealt in an order that `placement` decides; no page lies in a
  // pool's first `unused_bytes`.
  Layer(Backend& backend, const LayerShape& shape, DType dtype, TokenData data,
        int32_t max_tokens = 1088, uint64_t placement = 1, int64_t unused_bytes = 0);

  void Run(const Step& step);
  void Run(const std::vector<Step>& schedule);

  // Ends a sequence: its slot and pages are the next to be dealt, bytes untouched.
  void Release(int32_t sequence);

  // From here on every decode row attends with the lists of `record` instead of its own.
  void UseLists(const Record* record) { use_lists_ = record; }

  const Record& record() const { return record_; }
  const RowRecord& row(int32_t sequence, int32_t position) const {
    return record_.at({sequence, position});
  }
  int32_t length(int32_t sequence) const { return sequences_.at(sequence).length; }

  // Pages that a later query may read.
  PageContent RetrievalPage(int32_t sequence, int32_t page) const;
  PageContent StreamingPage(int32_t sequence, int32_t page) const;
  // Every page of the sequence: retrieval pages by page, streaming pages by ~page.
  std::map<int32_t, PageContent> Pages(int32_t sequence) const;

  // Optional block lists, by (sequence, absolute query block, head); null: all causal blocks.
  using BlockList = std::function<std::vector<int32_t>(int32_t, int32_t, int32_t)>;
  void UseBlocks(BlockList blocks) { blocks_ = std::move(blocks); }

  // What prefill rows leave out, from here on; and what they read so far.
  void UsePrefillPolicy(const PrefillPolicy& policy) { prefill_policy_ = policy; }
  PrefillBlocks prefill_blocks() const { return prefill_blocks_.Download()[0]; }

  RetrievalLane retrieval() const;
  StreamingLane streaming() const;

 private:
  struct Sequence {
    int32_t slot = 0;
    int32_t length = 0;
    int32_t prompt = 0;
    std::vector<int32_t> retrieval_pages;
    std::vector<int32_t> ring_pages;
  };

  Sequence& Start(int32_t sequence);
  void Grow(Sequence& sequence, int32_t length);
  void Select(const std::vector<int32_t>& decode);
  void AttendPrefill(const Step& step);
  PageContent Export(std::byte* page, const KvPageLayout& layout, int32_t tokens) const;
  UnitLists lists() const;

  Backend& backend_;
  LayerShape shape_;
  DType dtype_;
  TokenData data_;
  int32_t max_pages_;
  std::unique_ptr<Stream> stream_;
  KvPageLayout retrieval_layout_, streaming_layout_;
  int32_t first_page_, first_ring_page_;                          // of the pools
  std::vector<int32_t> free_slots_, free_retrieval_, free_ring_;  // dealt from the back
  std::map<int32_t, Sequence> sequences_;
  Record record_;
  const Record* use_lists_ = nullptr;
  BlockList blocks_;
  PrefillPolicy prefill_policy_;

  Batch batch_;
  DeviceArray<uint8_t> pages_, open_, ring_, chunk_, retrieval_chunk_;
  DeviceArray<int32_t> table_, ring_table_, prompt_tokens_, units_, unit_counts_;
  DeviceArray<int64_t> lists_made_;
  DeviceArray<PrefillBlocks> prefill_blocks_;
  DeviceArray<float> angles_, scores_, frequencies_, log_sums_;
  ActivationArray qkv_, q_, output_, bias_, norm_, list_queries_;
};

// ---- Comparison
// ----------------------------------------------------------------------------------

// |got - want| <= relative * |want| + absolute * rms(want).
struct Tolerance {
  double relative = 0.0;
  double absolute = 0.0;
};
// For a result of `dtype` that sums `reduction` terms in float32 or better from inputs of dtype.
Tolerance ToleranceOf(DType dtype, int64_t reduction);
// For attention over keys and values of `format`.
Tolerance AttentionTolerance(DType dtype, KvFormat format, int64_t keys);

// NaN and infinities must stand at the same places; the worst element is named.
testing::AssertionResult Near(std::span<const float> got, std::span<const float> want,
                              Tolerance tolerance);
// Bit for bit, NaN included.
testing::AssertionResult Identical(std::span<const float> got, std::span<const float> want);
// Rows of `want` are in `got`, bit for bit.
testing::AssertionResult Identical(const Record& got, const Record& want);
testing::AssertionResult Identical(const std::map<int32_t, PageContent>& got,
                                   const std::map<int32_t, PageContent>& want);

std::vector<float> NormalVector(int64_t size, uint64_t seed, float scale = 1.0f);

}  // namespace lserve::conformance
