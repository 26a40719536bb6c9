// One layer's attention over a cache full of random numbers, for benchmarks: its lanes, one slot at
// the given length, and the arrays of a step. Used by one thread.
#pragma once

#include <cstdint>
#include <memory>

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
  int64_t length = 0;    // tokens in the cache, the decoded one included
  int32_t chunk = 2048;  // prefill rows of one step
};

class RandomLayer {
 public:
  RandomLayer(Backend& backend, const LayerShape& shape);

  // Gives all rows of a step the queries of the first: what one leaves out, all leave out.
  void AlikeQueries();

  // AttendPrefill over a whole prompt of the shape's length.
  struct PrefillRun {
    double seconds = 0;
    PrefillBlocks blocks;
  };
  PrefillRun Prefill(const PrefillPolicy& policy = {});

  // Seconds of the parts of one decode step at the shape's length; policy.token_budget 0: dense.
  struct DecodeTime {
    double select = 0;
    double attend = 0;
  };
  DecodeTime Decode(const SelectionPolicy& policy);

  // Bytes that the selector reads for one token: the statistics of every page, once a KV head.
  int64_t SelectorBytes() const;

 private:
  void Fill(std::byte* data, int64_t bytes);
  void Grow(int64_t bytes);
  void SetStep(int32_t decode_rows, int32_t position, int64_t rows);

  Backend& backend_;
  const LayerShape shape_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;
  int32_t slot_ = 0;
  Buffer q_, output_, step_, units_, counts_, prompt_tokens_, workspace_;
  BatchView batch_{};
};

}  // namespace lserve::bench
