#include "kv/two_lane_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "base/random.h"
#include "tensor/arena.h"

namespace lserve {
namespace {

CacheConfig SmallConfig() {
  CacheConfig config;
  config.retrieval_heads = {2, 0, 1, 3};  // a layer without retrieval heads, one without streaming
  config.kv_heads = 3;
  config.head_dim = 80;
  config.score = PageScore::kMinMax;
  config.sink_tokens = 128;
  config.local_tokens = 256;
  config.max_slots = 3;
  config.max_model_len = 2000;
  config.retrieval_pages = 40;
  config.max_chunk_pages = 4;
  return config;
}

// The ref backend, counting what is allocated.
class CountingBackend : public Backend {
 public:
  const char* name() const override { return backend_->name(); }
  const DeviceFacts& facts() const override { return backend_->facts(); }
  const Ops& ops() const override { return backend_->ops(); }
  Status SupportsActivations(DType dtype) const override {
    return backend_->SupportsActivations(dtype);
  }
  Result<Buffer> Allocate(int64_t bytes) override {
    allocated_ += bytes;
    return backend_->Allocate(bytes);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes, Stream& stream) override {
    backend_->CopyToDevice(device, host, bytes, stream);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) override {
    backend_->CopyToHost(host, device, bytes, stream);
  }
  void Zero(void* device, int64_t bytes, Stream& stream) override {
    backend_->Zero(device, bytes, stream);
  }
  std::unique_ptr<Stream> MakeStream() override { return backend_->MakeStream(); }
  int64_t PackedBytes(const LinearWeight& weight, DType activations,
                      bool fused_silu) const override {
    return backend_->PackedBytes(weight, activations, fused_silu);
  }
  Result<std::unique_ptr<PackedLinear>> PackLinear(const LinearWeight& weight, DType activations,
                                                   bool fused_silu, Buffer memory) override {
    return backend_->PackLinear(weight, activations, fused_silu, std::move(memory));
  }

  // Bytes that a cache of this configuration allocates.
  int64_t BytesOf(const CacheConfig& config) {
    allocated_ = 0;
    const std::unique_ptr<Stream> stream = MakeStream();
    const auto cache = TwoLaneCache::Make(*this, *stream, config).value();
    return allocated_;
  }

 private:
  std::unique_ptr<Backend> backend_ = MakeBackend("ref", BackendOptions{}).value();
  int64_t allocated_ = 0;
};

class TwoLaneCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    backend_ = MakeBackend("ref", BackendOptions{}).value();
    stream_ = backend_->MakeStream();
    cache_ = TwoLaneCache::Make(*backend_, *stream_, SmallConfig()).value();
  }

  // The slot's page table as operations see it.
  std::vector<int32_t> Table(int32_t slot, int64_t pages) {
    CHECK_OK(stream_->Synchronize());
    const RetrievalLane lane = cache_->retrieval(0);
    const int32_t* row = lane.table + int64_t{slot} * lane.max_pages;
    return {row, row + pages};
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TwoLaneCache> cache_;
};

TEST_F(TwoLaneCacheTest, PageBytesFollowTheHeadCountsOfEachLayer) {
  const CacheConfig config = SmallConfig();
  // bf16, 80 dims padded to 96: 64 tokens of keys and of values, and min and max of 4 logical
  // pages.
  const int64_t head = 2 * 64 * 96 * 2;
  const int64_t stats = 4 * 2 * 96 * 2;
  EXPECT_EQ(config.RetrievalPageBytes(), 6 * (head + stats));
  EXPECT_EQ(config.StreamingPageBytes(), 6 * head);
  EXPECT_EQ(config.sink_pages(), 2);
  EXPECT_EQ(config.ring_pages(), 5);
  EXPECT_EQ(cache_->retrieval(1).layout.page_bytes(), 0);
  EXPECT_EQ(cache_->streaming(3).layout.page_bytes(), 0);
}

TEST_F(TwoLaneCacheTest, RingHoldsTheWindowWhereverItStraddles) {
  CacheConfig config = SmallConfig();
  for (int32_t local = 1; local <= 700; ++local) {
    config.local_tokens = local;
    for (int64_t position = 0; position < 200; ++position) {
      const int64_t first = std::max<int64_t>(0, position - local + 1);
      const int64_t pages = position / kPageTokens - first / kPageTokens + 1;
      ASSERT_LE(pages, config.ring_pages()) << "local " << local << " position " << position;
    }
  }
}

TEST_F(TwoLaneCacheTest, ReservesAllPagesButTheNewest) {
  EXPECT_EQ(TwoLaneCache::PagesFor(0), 0);
  EXPECT_EQ(TwoLaneCache::PagesFor(1), 0);
  EXPECT_EQ(TwoLaneCache::PagesFor(64), 0);
  EXPECT_EQ(TwoLaneCache::PagesFor(65), 1);
  EXPECT_EQ(TwoLaneCache::PagesFor(128), 1);
  const int32_t slot = cache_->OpenSlot().value();
  ASSERT_TRUE(cache_->Reserve(slot, 65 + 64).ok());
  EXPECT_EQ(cache_->free_pages(), 38);
  ASSERT_TRUE(cache_->Reserve(slot, 10).ok());  // never gives pages back
  EXPECT_EQ(cache_->free_pages(), 38);
  const std::vector<int32_t> table = Table(slot, 2);
  EXPECT_EQ(std::set<int32_t>(table.begin(), table.end()).size(), 2u);
  cache_->CloseSlot(slot);
  EXPECT_EQ(cache_->free_pages(), 40);
}

TEST_F(TwoLaneCacheTest, RefusesWhatDoesNotFitAndKeepsWhatItHad) {
  const int32_t a = cache_->OpenSlot().value();
  ASSERT_TRUE(cache_->Reserve(a, 1500).ok());  // 23 pages
  const int32_t b = cache_->OpenSlot().value();
  ASSERT_TRUE(cache_->Reserve(b, 640).ok());  // 9 pages
  const std::vector<int32_t> before = Table(b, 9);
  const Status refused = cache_->Reserve(b, 1500);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("14 more cache pages are needed, 8 of 40"), std::string::npos)
      << refused.message();
  EXPECT_EQ(cache_->free_pages(), 8);
  EXPECT_EQ(Table(b, 9), before);
}

TEST_F(TwoLaneCacheTest, RefusesASlotTooMany) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(cache_->OpenSlot().ok());
  }
  EXPECT_EQ(cache_->OpenSlot().status().code(), StatusCode::kResourceExhausted);
}

TEST_F(TwoLaneCacheTest, ForkSharesClosedPagesAndCopiesTheRest) {
  const int32_t origin = cache_->OpenSlot().value();
  ASSERT_TRUE(cache_->Reserve(origin, 300).ok());
  cache_->SetLength(origin, 300);
  const RetrievalLane lane = cache_->retrieval(0);
  const StreamingLane ring = cache_->streaming(0);
  const auto open = [&](int32_t slot) { return lane.open + slot * lane.layout.page_bytes(); };
  const auto ring_page = [&](int32_t slot, int32_t i) {
    return ring.pages + ring.table[slot * 7 + i] * ring.layout.page_bytes();
  };
  std::memset(open(origin), 17, static_cast<size_t>(lane.layout.page_bytes()));
  std::memset(ring_page(origin, 3), 23, static_cast<size_t>(ring.layout.page_bytes()));

  const int32_t fork = cache_->Fork(origin).value();
  EXPECT_EQ(cache_->length(fork), 300);
  EXPECT_EQ(Table(fork, 4), Table(origin, 4));
  EXPECT_EQ(cache_->free_pages(), 36);
  EXPECT_EQ(std::memcmp(open(fork), open(origin), 64), 0);
  EXPECT_EQ(std::memcmp(ring_page(fork, 3), ring_page(origin, 3), 64), 0);
  EXPECT_NE(open(fork), open(origin));

  cache_->CloseSlot(origin);
  EXPECT_EQ(cache_->free_pages(), 36);  // the fork still holds them
  cache_->CloseSlot(fork);
  EXPECT_EQ(cache_->free_pages(), 40);
}

TEST_F(TwoLaneCacheTest, KvBytesCountWhatTheTokensUse) {
  const CacheConfig config = SmallConfig();
  const int32_t slot = cache_->OpenSlot().value();
  EXPECT_EQ(cache_->KvBytes(slot), 0);
  const auto at = [&](int64_t tokens) {
    CHECK_OK(cache_->Reserve(slot, tokens));
    cache_->SetLength(slot, tokens);
    return cache_->KvBytes(slot);
  };
  EXPECT_EQ(at(1), config.RetrievalPageBytes() + config.StreamingPageBytes());
  EXPECT_EQ(at(65), 2 * (config.RetrievalPageBytes() + config.StreamingPageBytes()));
  EXPECT_EQ(at(1000), 16 * config.RetrievalPageBytes() + 7 * config.StreamingPageBytes());
}

// What `inspect` calls the bytes of a token, by format and score, is what the pools take for it.
TEST(TwoLaneCacheBytes, BytesOfATokenAreThoseThatItsPagesTake) {
  struct Case {
    KvFormat format;
    PageScore score;
    int64_t bytes;  // of a token and KV head of 80 dims, padded to 96
  };
  CountingBackend backend;
  for (const Case& expected : {Case{KvFormat::kBFloat16, PageScore::kNone, 384},
                               {KvFormat::kBFloat16, PageScore::kMinMax, 384 + 24},
                               {KvFormat::kBFloat16, PageScore::kSketch, 384 + 24 + 6},
                               {KvFormat::kInt8, PageScore::kNone, 96 + 6 + 96 + 4},
                               {KvFormat::kInt8, PageScore::kMinMax, 96 + 6 + 96 + 4 + 24},
                               {KvFormat::kInt8, PageScore::kSketch, 96 + 6 + 96 + 4},
                               {KvFormat::kInt4, PageScore::kNone, 48 + 6 + 48 + 4},
                               {KvFormat::kInt4, PageScore::kMinMax, 48 + 6 + 48 + 4 + 24},
                               {KvFormat::kInt4, PageScore::kSketch, 48 + 6 + 48 + 4}}) {
    CacheConfig config = SmallConfig();
    config.format = expected.format;
    config.score = expected.score;
    const int64_t heads = 2 + 0 + 1 + 3;
    EXPECT_EQ(config.RetrievalPageBytes(), 64 * heads * expected.bytes);

    const int64_t bytes = backend.BytesOf(config);
    config.retrieval_pages += 16;  // no padding more or less
    EXPECT_EQ(backend.BytesOf(config) - bytes, 16 * 64 * heads * expected.bytes);
    // All but the pool's pages is fixed: what is not pages are the two tables and the fork's list.
    const int64_t tables = 4 * (3 * config.max_pages() + 3 * 7 + 2 * 8);
    const int64_t known = config.FixedBytes() + 40 * config.RetrievalPageBytes() + tables;
    EXPECT_GE(bytes, known);
    const int64_t buffers = 4 + 4 * std::ssize(config.retrieval_heads);
    EXPECT_LT(bytes, known + buffers * Arena::kAlignment);

    const std::unique_ptr<Stream> stream = backend.MakeStream();
    const auto cache = TwoLaneCache::Make(backend, *stream, config).value();
    const int32_t slot = cache->OpenSlot().value();
    ASSERT_TRUE(cache->Reserve(slot, 1900).ok());
    cache->SetLength(slot, 1000);
    const int64_t before = cache->KvBytes(slot);
    cache->SetLength(slot, 1000 + 640);
    EXPECT_EQ(cache->KvBytes(slot) - before, 640 * heads * expected.bytes);
    int64_t pages = 0;
    for (int32_t layer = 0; layer < 4; ++layer) {
      pages += cache->retrieval(layer).layout.page_bytes();
    }
    EXPECT_EQ(pages, config.RetrievalPageBytes());
  }
}

TEST_F(TwoLaneCacheTest, NoPageLeaksUnderRandomUse) {
  std::vector<int32_t> open;
  for (uint64_t step = 0; step < 3000; ++step) {
    const auto dice = Philox(5, step);
    const size_t pick = open.empty() ? 0 : dice[1] % open.size();
    switch (dice[0] % 4) {
      case 0:
        if (const Result<int32_t> slot = cache_->OpenSlot(); slot.ok()) {
          open.push_back(*slot);
        }
        break;
      case 1:
        if (!open.empty()) {
          const int64_t tokens = 1 + dice[2] % 1999;
          if (cache_->Reserve(open[pick], tokens).ok()) {
            cache_->SetLength(open[pick], tokens);
          }
        }
        break;
      case 2:
        if (!open.empty()) {
          if (const Result<int32_t> slot = cache_->Fork(open[pick]); slot.ok()) {
            open.push_back(*slot);
          }
        }
        break;
      default:
        if (!open.empty()) {
          cache_->CloseSlot(open[pick]);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(pick));
        }
    }
  }
  for (const int32_t slot : open) {
    cache_->CloseSlot(slot);
  }
  EXPECT_EQ(cache_->free_pages(), 40);
}

}  // namespace
}  // namespace lserve
