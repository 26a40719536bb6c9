// TwoLaneCache: the paged key-value cache of one attention mode (design: two-lane paged cache).
//
//   retrieval lane   every page of a sequence; closed pages lie in a pool and are shared between
//                    forks by reference, the newest page is open and lies in the slot
//   streaming lane   sink pages and a ring of recent pages, constant size, owned by the slot
//
// Page ids are common to all layers of a lane; each layer's bytes follow its own head counts. The
// cache owns the device memory and the page tables and hands out views for operations. Not
// thread-safe; the engine's thread owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kv/page_pool.h"

namespace lserve {

struct CacheConfig {
  std::vector<int32_t> retrieval_heads;  // KV heads of the retrieval lane, by layer
  int32_t kv_heads = 0;                  // of both lanes, every layer
  int32_t head_dim = 0;
  KvFormat format = KvFormat::kBFloat16;  // of closed retrieval pages
  PageScore score = PageScore::kNone;
  int32_t sink_tokens = 0;
  int32_t local_tokens = 1;
  int32_t max_slots = 1;
  int64_t max_model_len = 0;    // tokens of one sequence
  int64_t retrieval_pages = 0;  // in the pool
  int32_t max_chunk_pages = 1;  // of the prefill chunks of one step

  // Bytes over all layers of one closed retrieval page, one open page, one streaming page.
  int64_t RetrievalPageBytes() const;
  int64_t OpenPageBytes() const;
  int64_t StreamingPageBytes() const;
  int32_t sink_pages() const { return (sink_tokens + kPageTokens - 1) / kPageTokens; }
  int32_t ring_pages() const { return (local_tokens - 1 + kPageTokens - 1) / kPageTokens + 1; }
  int32_t max_pages() const {
    return static_cast<int32_t>((max_model_len + kPageTokens - 1) / kPageTokens);
  }
  // Bytes that do not depend on retrieval_pages: open pages, rings and the chunk pages.
  int64_t FixedBytes() const;
  // Bytes of the pages that a sequence of `tokens` tokens uses in every pool, statistics included.
  int64_t SequenceBytes(int64_t tokens) const;
  // Bytes of the largest layer's chunk pages of the retrieval lane: boxed formats only.
  int64_t RetrievalChunkBytes() const;
};

class TwoLaneCache {
 public:
  // Errors: kResourceExhausted with what was asked for.
  static Result<std::unique_ptr<TwoLaneCache>> Make(Backend& backend, Stream& stream,
                                                    CacheConfig config);

  const CacheConfig& config() const { return config_; }
  RetrievalLane retrieval(int32_t layer) const;
  StreamingLane streaming(int32_t layer) const;

  // A free slot for an empty sequence. Errors: kResourceExhausted.
  Result<int32_t> OpenSlot();
  void CloseSlot(int32_t slot);

  // Closed pages of a sequence of `tokens` tokens: all but the newest.
  static int64_t PagesFor(int64_t tokens);
  int64_t free_pages() const { return pool_.free(); }

  // Page ids for a sequence of `tokens` tokens. Errors: kResourceExhausted; nothing changes then.
  Status Reserve(int32_t slot, int64_t tokens);

  // The sequence holds `tokens` tokens from here on; they were reserved.
  void SetLength(int32_t slot, int64_t tokens);
  int64_t length(int32_t slot) const { return slots_[static_cast<size_t>(slot)].tokens; }

  // A new slot with the content of `slot`. Errors: kResourceExhausted.
  Result<int32_t> Fork(int32_t slot);

  // Bytes of the pages that the slot's tokens use in every pool, statistics included.
  int64_t KvBytes(int32_t slot) const;

 private:
  struct LayerMemory {
    Buffer closed, open, streaming, chunk;
  };
  struct Slot {
    bool used = false;
    int64_t tokens = 0;
    std::vector<int32_t> pages;  // ids of closed pages, the reserved ones included
  };

  TwoLaneCache(Backend& backend, Stream& stream, CacheConfig config)
      : backend_(backend),
        stream_(stream),
        config_(std::move(config)),
        pool_(config_.retrieval_pages) {}

  // Writes table entries [first, pages.size()) of the slot to the device.
  void UploadTable(int32_t slot, size_t first);
  int32_t streaming_slot_pages() const { return config_.sink_pages() + config_.ring_pages(); }

  Backend& backend_;
  Stream& stream_;
  const CacheConfig config_;
  PagePool pool_;
  std::vector<Slot> slots_;
  std::vector<LayerMemory> layers_;
  Buffer retrieval_table_;  // [max_slots, max_pages]
  Buffer streaming_table_;  // [max_slots, sink_pages + ring_pages], filled once
  Buffer fork_pages_;       // [2, 1 + sink_pages + ring_pages]: from, to
  // Chunk pages of the retrieval lane, needed from a layer's append to its attention: the layers
  // take turns.
  Buffer retrieval_chunk_;
};

}  // namespace lserve
