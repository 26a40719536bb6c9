#include "kv/two_lane_cache.h"

#include <algorithm>
#include <utility>

namespace lserve {
namespace {

KvPageLayout RetrievalLayout(const CacheConfig& config, int32_t layer) {
  return MakeKvPageLayout(config.retrieval_heads[static_cast<size_t>(layer)], config.head_dim,
                          config.format, config.score);
}

KvPageLayout StreamingLayout(const CacheConfig& config, int32_t layer) {
  return MakeKvPageLayout(config.kv_heads - config.retrieval_heads[static_cast<size_t>(layer)],
                          config.head_dim, OpenFormat(config.format), PageScore::kNone);
}

// layout_of(config, layer).page_bytes() over all layers.
template <typename LayoutOf>
int64_t PageBytes(const CacheConfig& config, LayoutOf layout_of) {
  int64_t bytes = 0;
  for (size_t layer = 0; layer < config.retrieval_heads.size(); ++layer) {
    bytes += layout_of(config, static_cast<int32_t>(layer)).page_bytes();
  }
  return bytes;
}

KvPageLayout OpenLayout(const CacheConfig& config, int32_t layer) {
  return RetrievalLayout(config, layer).open();
}

}  // namespace

int64_t CacheConfig::RetrievalPageBytes() const { return PageBytes(*this, RetrievalLayout); }

int64_t CacheConfig::OpenPageBytes() const { return PageBytes(*this, OpenLayout); }

int64_t CacheConfig::StreamingPageBytes() const { return PageBytes(*this, StreamingLayout); }

int64_t CacheConfig::RetrievalChunkBytes() const {
  int64_t page_bytes = 0;
  for (size_t layer = 0; IsBoxed(format) && layer < retrieval_heads.size(); ++layer) {
    page_bytes = std::max(page_bytes, OpenLayout(*this, static_cast<int32_t>(layer)).page_bytes());
  }
  return max_chunk_pages * page_bytes;
}

int64_t CacheConfig::FixedBytes() const {
  const int64_t ring = int64_t{sink_pages()} + ring_pages();
  return max_slots * (OpenPageBytes() + ring * StreamingPageBytes()) +
         max_chunk_pages * StreamingPageBytes() + RetrievalChunkBytes();
}

int64_t CacheConfig::SequenceBytes(int64_t tokens) const {
  if (tokens == 0) {
    return 0;
  }
  const int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
  const int64_t ring = int64_t{sink_pages()} + ring_pages();
  return (pages - 1) * RetrievalPageBytes() + OpenPageBytes() +
         std::min(pages, ring) * StreamingPageBytes();
}

Result<std::unique_ptr<TwoLaneCache>> TwoLaneCache::Make(Backend& backend, Stream& stream,
                                                         CacheConfig config) {
  CHECK_GT(config.max_slots, 0);
  CHECK_GT(config.max_model_len, 0);
  CHECK_GE(config.local_tokens, 1);
  auto cache = std::unique_ptr<TwoLaneCache>(new TwoLaneCache(backend, stream, std::move(config)));
  const CacheConfig& c = cache->config_;
  cache->slots_.resize(static_cast<size_t>(c.max_slots));
  const int32_t ring = cache->streaming_slot_pages();
  BufferSizes wanted = {
      {&cache->retrieval_table_, int64_t{c.max_slots} * c.max_pages() * 4},
      {&cache->streaming_table_, int64_t{c.max_slots} * ring * 4},
      {&cache->fork_pages_, 2 * (1 + ring) * 4},
      {&cache->retrieval_chunk_, c.RetrievalChunkBytes()},
  };
  cache->layers_.resize(c.retrieval_heads.size());
  for (size_t i = 0; i < cache->layers_.size(); ++i) {
    const auto layer = static_cast<int32_t>(i);
    const int64_t streaming_bytes = StreamingLayout(c, layer).page_bytes();
    LayerMemory& memory = cache->layers_[i];
    wanted.insert(wanted.end(),
                  {{&memory.closed, c.retrieval_pages * RetrievalLayout(c, layer).page_bytes()},
                   {&memory.open, c.max_slots * OpenLayout(c, layer).page_bytes()},
                   {&memory.streaming, c.max_slots * ring * streaming_bytes},
                   {&memory.chunk, c.max_chunk_pages * streaming_bytes}});
  }
  RETURN_IF_ERROR(AllocateTogether(backend, wanted));

  // A slot owns its ring for good, so the table never changes.
  std::vector<int32_t> ring_ids(static_cast<size_t>(c.max_slots) * static_cast<size_t>(ring));
  for (size_t i = 0; i < ring_ids.size(); ++i) {
    ring_ids[i] = static_cast<int32_t>(i);
  }
  backend.CopyToDevice(cache->streaming_table_.data(), ring_ids.data(),
                       static_cast<int64_t>(ring_ids.size()) * 4, stream);
  return cache;
}

RetrievalLane TwoLaneCache::retrieval(int32_t layer) const {
  const LayerMemory& memory = layers_[static_cast<size_t>(layer)];
  return RetrievalLane{.pages = memory.closed.data(),
                       .open = memory.open.data(),
                       .table = retrieval_table_.As<int32_t>(),
                       .max_pages = config_.max_pages(),
                       .layout = RetrievalLayout(config_, layer),
                       .chunk_pages = retrieval_chunk_.data()};
}

StreamingLane TwoLaneCache::streaming(int32_t layer) const {
  const LayerMemory& memory = layers_[static_cast<size_t>(layer)];
  return StreamingLane{.pages = memory.streaming.data(),
                       .table = streaming_table_.As<int32_t>(),
                       .chunk_pages = memory.chunk.data(),
                       .sink_tokens = config_.sink_tokens,
                       .local_tokens = config_.local_tokens,
                       .sink_pages = config_.sink_pages(),
                       .ring_pages = config_.ring_pages(),
                       .layout = StreamingLayout(config_, layer)};
}

Result<int32_t> TwoLaneCache::OpenSlot() {
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!slots_[slot].used) {
      slots_[slot].used = true;
      return static_cast<int32_t>(slot);
    }
  }
  return ResourceExhausted("all {} sequence slots are in use", slots_.size());
}

void TwoLaneCache::CloseSlot(int32_t slot) {
  Slot& entry = slots_.at(static_cast<size_t>(slot));
  CHECK(entry.used);
  for (const int32_t page : entry.pages) {
    pool_.Release(page);
  }
  entry = Slot();
}

int64_t TwoLaneCache::PagesFor(int64_t tokens) {
  return std::max<int64_t>(0, (tokens + kPageTokens - 1) / kPageTokens - 1);
}

Status TwoLaneCache::Reserve(int32_t slot, int64_t tokens) {
  Slot& entry = slots_.at(static_cast<size_t>(slot));
  CHECK(entry.used);
  CHECK_LE(tokens, config_.max_model_len);
  const auto wanted = static_cast<size_t>(PagesFor(tokens));
  const size_t held = entry.pages.size();
  if (wanted <= held) {
    return OkStatus();
  }
  if (static_cast<int64_t>(wanted - held) > pool_.free()) {
    return ResourceExhausted("{} more cache pages are needed, {} of {} are free", wanted - held,
                             pool_.free(), pool_.total());
  }
  while (entry.pages.size() < wanted) {
    ASSIGN_OR_RETURN(const int32_t page, pool_.Allocate());
    entry.pages.push_back(page);
  }
  UploadTable(slot, held);
  return OkStatus();
}

void TwoLaneCache::SetLength(int32_t slot, int64_t tokens) {
  Slot& entry = slots_.at(static_cast<size_t>(slot));
  CHECK_LE(PagesFor(tokens), static_cast<int64_t>(entry.pages.size()));
  entry.tokens = tokens;
}

Result<int32_t> TwoLaneCache::Fork(int32_t slot) {
  ASSIGN_OR_RETURN(const int32_t copy, OpenSlot());
  const Slot& source = slots_.at(static_cast<size_t>(slot));
  Slot& target = slots_[static_cast<size_t>(copy)];
  target.tokens = source.tokens;
  const auto closed = static_cast<size_t>(PagesFor(source.tokens));
  target.pages.assign(source.pages.begin(),
                      source.pages.begin() + static_cast<std::ptrdiff_t>(closed));
  for (const int32_t page : target.pages) {
    pool_.Retain(page);
  }
  UploadTable(copy, 0);

  const int32_t ring = streaming_slot_pages();
  std::vector<int32_t> pages;  // from: open page, ring; to: the same of the copy
  for (const int32_t s : {slot, copy}) {
    pages.push_back(s);
    for (int32_t i = 0; i < ring; ++i) {
      pages.push_back(s * ring + i);
    }
  }
  backend_.CopyToDevice(fork_pages_.data(), pages.data(), static_cast<int64_t>(pages.size()) * 4,
                        stream_);
  const int32_t* from = fork_pages_.As<int32_t>();
  const int32_t* to = from + 1 + ring;
  for (int32_t layer = 0; layer < static_cast<int32_t>(layers_.size()); ++layer) {
    const LayerMemory& memory = layers_[static_cast<size_t>(layer)];
    const auto copy_pages = [&](const Buffer& pool, int32_t first, int32_t count, int64_t bytes) {
      if (bytes > 0) {
        backend_.ops().copy_pages.run(stream_, CopyPagesParams{.destination = pool.data(),
                                                               .source = pool.data(),
                                                               .from = from + first,
                                                               .to = to + first,
                                                               .count = count,
                                                               .page_bytes = bytes});
      }
    };
    copy_pages(memory.open, 0, 1, OpenLayout(config_, layer).page_bytes());
    copy_pages(memory.streaming, 1, ring, StreamingLayout(config_, layer).page_bytes());
  }
  return copy;
}

int64_t TwoLaneCache::KvBytes(int32_t slot) const {
  return config_.SequenceBytes(slots_.at(static_cast<size_t>(slot)).tokens);
}

void TwoLaneCache::UploadTable(int32_t slot, size_t first) {
  const Slot& entry = slots_[static_cast<size_t>(slot)];
  const auto count = static_cast<int64_t>(entry.pages.size() - first);
  if (count > 0) {
    int32_t* row = retrieval_table_.As<int32_t>() + int64_t{slot} * config_.max_pages();
    backend_.CopyToDevice(row + first, entry.pages.data() + first, count * 4, stream_);
  }
}

}  // namespace lserve
