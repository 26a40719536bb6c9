#include "kv/two_lane_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "base/random.h"

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
