// Attention of layers whose caches are full of random numbers, for benchmarks: the lanes of a few
// equal layers, one slot a sequence at the given length, and the arrays of a step. Repetition i of
// an operation works on layer i % layers, so that no repetition finds in a cache what the one
// before it read. Used by one thread.
//
// The numbers are not what RopeAppend would have written (a box's bounds are as random as the
// keys), but finite, and no two pages are alike. Which units are kept is random, too.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kv/two_lane_cache.h"

namespace lserve::bench {

struct LayerShape {
  int32_t q_heads = 8;
  int32_t kv_heads = 4;
  int32_t retrieval_heads = 4;  // of kv_heads; the others stream
  int32_t head_dim = 64;
  PageScore score = PageScore::kMinMax;
  KvFormat format = KvFormat::kBFloat16;
  int64_t length = 0;  // tokens of a sequence in the cache, the decoded one included
  int32_t batch = 1;   // sequences; of prefill only the first has rows
  int32_t layers = 1;
  int32_t chunk = 0;  // prefill rows of one step; 0: decode only
};

// A share of each query block's causal KV blocks that retrieval heads skip in prefill, drawn from a
// seed for every head; the diagonal ones stay.
struct SkippedBlocks {
  int64_t kept = 0;   // blocks over all query blocks of a list and retrieval heads
  int64_t total = 0;  // that a causal walk would visit
  double pairs = 0;   // visible pairs of a query head and key in what is kept
};

class RandomLayers {
 public:
  static constexpr int32_t kSinkTokens = 128;
  static constexpr int32_t kLocalTokens = 256;

  // CHECKs that the memory suffices: see Bytes.
  RandomLayers(Backend& backend, const LayerShape& shape);

  // Device memory of one layer's cache, and bytes that its operations read of it in a decode step:
  // statistics of every page (selector), pages or units in their format, sinks and local windows
  // (attention). Queries, outputs, lists and page tables are not counted.
  static int64_t CacheBytes(const LayerShape& shape);
  static int64_t SelectBytes(const LayerShape& shape);
  static int64_t AttendBytes(const LayerShape& shape, const SelectionPolicy& policy);

  Stream& stream() { return *stream_; }

  // ---- Decode: one row a sequence, the newest token
  // token_budget 0: dense. No list is made yet.
  void StartDecode(const SelectionPolicy& policy);
  // The steps of a reuse interval come one after the other, each over all layers; the sequences of
  // a batch are at different places of it.
  void Select(int32_t repetition);
  void AttendDecode(int32_t repetition);
  int32_t decode_cycle() const { return shape_.layers * select_.policy.reuse_interval; }

  // ---- Prefill: rows [first, length) of one sequence, chunk by chunk
  void StartPrefill(int64_t first, const PrefillPolicy& policy);
  // From here on retrieval heads walk lists without a share of the blocks; 0: everything.
  SkippedBlocks SkipBlocks(double share);
  void AttendPrefill(int32_t repetition);
  // What retrieval heads read since StartPrefill; counted under a policy with a threshold.
  PrefillBlocks ReadBlocks();
  // Gives all rows of a step the queries of the first: what one leaves out, all leave out.
  void AlikeQueries();

 private:
  struct Step {
    Buffer words;
    BatchView view;
  };

  static CacheConfig Config(const LayerShape& shape);
  static KvPageLayout ClosedLayout(const LayerShape& shape);
  static KvPageLayout StreamingLayout(const LayerShape& shape);

  void Fill(std::byte* data, int64_t bytes);
  void Upload(const Buffer& to, const std::vector<int32_t>& words);
  void Grow(int64_t bytes);
  Step MakeStep(int32_t decode_rows, int64_t position, int64_t prefill_rows);
  UnitLists Lists(int32_t layer) const;

  Backend& backend_;
  const LayerShape shape_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;
  Buffer pattern_, copy_from_, copy_to_;  // of Fill
  Buffer q_, output_, workspace_;
  // Decode
  Step decode_;
  Buffer units_, counts_;
  Buffer prompt_tokens_;  // [reuse interval, batch]
  SelectUnitsParams select_{};
  AttendDecodeParams attend_{};
  // Prefill
  int64_t first_position_ = 0;
  std::vector<Step> chunks_;
  Buffer block_offsets_, block_ids_, blocks_;
  AttendPrefillParams prefill_{};
};

}  // namespace lserve::bench
