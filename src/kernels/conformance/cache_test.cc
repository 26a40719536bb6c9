// What stands in pages: statistics, recycled pages, transfers.
#include <algorithm>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

class Cache : public TargetTest {};

INSTANTIATE_TEST_SUITE_P(Backends, Cache, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

// Minimum and maximum of the page's own keys, logical page by logical page.
std::vector<float> StatsOf(const PageContent& page, int32_t heads, int32_t head_dim) {
  std::vector<float> stats;
  for (int32_t head = 0; head < heads; ++head) {
    for (int32_t first = 0; first < page.tokens; first += kLogicalPageTokens) {
      for (const bool maximum : {false, true}) {
        for (int32_t d = 0; d < head_dim; ++d) {
          const auto key = [&](int32_t token) {
            return page.keys[static_cast<size_t>((head * page.tokens + token) * head_dim + d)];
          };
          float value = key(first);
          for (int32_t t = first; t < std::min(first + kLogicalPageTokens, page.tokens); ++t) {
            value = maximum ? std::max(value, key(t)) : std::min(value, key(t));
          }
          stats.push_back(value);
        }
      }
    }
  }
  return stats;
}

// Pools are poisoned with NaN, so a statistic that starts from what was there shows.
TEST_P(Cache, FreshStatsStartWithTheirFirstToken) {
  const LayerShape shape = LayerShapes()[2];  // head_dim 80: padded
  Layer layer(*backend_, shape, dtype(), RandomData(5));
  layer.Run(Step{{}, {{0, 110}}, true});
  for (int32_t length = 111; length < 150; ++length) {
    layer.Run(Step{{0}, {}, true});
    const PageContent page = layer.RetrievalPage(0, (length - 1) / kPageTokens);
    ASSERT_TRUE(Identical(page.stats, StatsOf(page, shape.retrieval_heads, shape.head_dim)))
        << length << " tokens";
  }
}

TEST_P(Cache, StatsOfPrefillCoverValidTokensOnly) {
  const LayerShape shape = LayerShapes()[1];
  for (const int32_t prompt : {1, 15, 17, 63, 65, 192}) {
    for (const int32_t chunk : {7, 64, 200}) {
      Layer layer(*backend_, shape, dtype(), RandomData(5));
      for (int32_t done = 0; done < prompt; done += chunk) {
        layer.Run(Step{{}, {{0, std::min(chunk, prompt - done)}}, true});
      }
      for (int32_t p = 0; p <= (prompt - 1) / kPageTokens; ++p) {
        const PageContent page = layer.RetrievalPage(0, p);
        EXPECT_TRUE(Identical(page.stats, StatsOf(page, shape.retrieval_heads, shape.head_dim)))
            << "prompt " << prompt << " in chunks of " << chunk << ", page " << p;
      }
    }
  }
}

// A page's sketch against its keys: the box holds them, no wider than float16 makes it, and every
// key is read back within half a cell.
void ExpectSketchOf(const PageContent& page, int32_t heads, int32_t head_dim) {
  const auto dim = static_cast<size_t>(head_dim);
  ASSERT_EQ(page.stats.size(), static_cast<size_t>(heads * StatsRows(PageScore::kSketch)) * dim);
  for (int32_t head = 0; head < heads; ++head) {
    const float* stats =
        page.stats.data() + static_cast<size_t>(head * StatsRows(PageScore::kSketch)) * dim;
    const float* keys = page.keys.data() + static_cast<size_t>(head * kPageTokens) * dim;
    for (size_t d = 0; d < dim; ++d) {
      const float lo = stats[d];
      const float hi = stats[dim + d];
      float lowest = keys[d];
      float highest = keys[d];
      for (size_t t = 0; t < kPageTokens; ++t) {
        const float key = keys[t * dim + d];
        lowest = std::min(lowest, key);
        highest = std::max(highest, key);
        const float code = stats[(2 + t) * dim + d];
        const float read_back = lo + (code + 0.5f) * (hi - lo) / 4.0f;
        ASSERT_LE(std::abs(read_back - key), (hi - lo) / 8.0f * 1.0001f)
            << "token " << t << ", dim " << d << ", box " << lo << " to " << hi;
      }
      ASSERT_LE(lo, lowest);
      ASSERT_GE(hi, highest);
      ASSERT_GE(lo, lowest - std::abs(lowest) / 1024.0f - 6e-8f);
      ASSERT_LE(hi, highest + std::abs(highest) / 1024.0f + 6e-8f);
    }
  }
}

TEST_P(Cache, SketchOfClosedPagesDescribesItsKeys) {
  for (const size_t shape_index : {8u, 9u, 10u}) {
    const LayerShape shape = LayerShapes()[shape_index];
    for (const int32_t chunk : {7, 64, 200}) {
      Layer layer(*backend_, shape, dtype(), RandomData(5, 3.0f));
      for (int32_t done = 0; done < 180; done += chunk) {
        layer.Run(Step{{}, {{0, std::min(chunk, 180 - done)}}, true});
      }
      for (int32_t i = 0; i < 20; ++i) {  // page 2 closes in decode
        layer.Run(Step{{0}, {}, true});
      }
      for (int32_t p = 0; p < 3; ++p) {
        SCOPED_TRACE(testing::Message() << shape << ", chunk " << chunk << ", page " << p);
        ExpectSketchOf(layer.RetrievalPage(0, p), shape.retrieval_heads, shape.head_dim);
      }
    }
  }
}

// A sequence of huge keys and values ends; the next one gets its slot, pages and ring.
TEST_P(Cache, RecycledPageLeaksNothing) {
  for (const size_t shape_index : {0u, 1u, 4u, 8u, 9u}) {
    const LayerShape shape = LayerShapes()[shape_index];
    const TokenData huge = RandomData(5, 1e4f);
    const TokenData normal = RandomData(5);
    const TokenData data = [&](int32_t sequence, int32_t position, std::span<float> qkv) {
      (sequence == 0 ? huge : normal)(sequence, position, qkv);
    };
    Layer recycled(*backend_, shape, dtype(), data, 448);
    recycled.Run(Step{{}, {{0, 400}}, true});
    recycled.Release(0);
    Layer fresh(*backend_, shape, dtype(), data, 448);
    for (Layer* layer : {&recycled, &fresh}) {
      layer->Run(Step{{}, {{1, 290}}});
      for (int32_t i = 0; i < 40; ++i) {
        layer->Run(Step{{1}, {}});
      }
    }
    EXPECT_TRUE(Identical(recycled.record(), fresh.record())) << shape;
    EXPECT_TRUE(Identical(recycled.Pages(1), fresh.Pages(1))) << shape;
  }
}

class Transfer : public TargetTest {
 protected:
  void SetUp() override {
    TargetTest::SetUp();
    if (backend_ != nullptr) {
      stream_ = backend_->MakeStream();
    }
  }

  KvPageLayout Layout(int32_t head_dim, PageScore score) const {
    return MakeKvPageLayout(
        3, head_dim, dtype() == DType::kFloat32 ? KvFormat::kFloat32 : KvFormat::kBFloat16, score);
  }

  struct Canonical {
    Canonical(Backend& backend, const KvPageLayout& layout)
        : keys(backend, int64_t{layout.heads} * kPageTokens * layout.head_dim),
          values(backend, keys.size()),
          stats(backend, int64_t{layout.heads} * StatsRows(layout.score) * layout.head_dim) {
      keys.Poison();
      values.Poison();
      stats.Poison();
    }
    TransferPageParams Params(std::byte* page, const KvPageLayout& layout) const {
      return {page, layout, keys.data(), values.data(),
              layout.score == PageScore::kNone ? nullptr : stats.data()};
    }
    DeviceArray<float> keys, values, stats;
  };

  void Fill(DeviceArray<float>& array, uint64_t seed) const {
    std::vector<float> values = NormalVector(array.size(), seed);
    if (dtype() == DType::kBFloat16) {
      std::transform(values.begin(), values.end(), values.begin(), RoundToBFloat16);
    }
    array.Upload(values);
  }

  // Boxes that float16 holds, and codes.
  void FillSketch(DeviceArray<float>& array, const KvPageLayout& layout) const {
    std::vector<float> values(static_cast<size_t>(array.size()));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto row = i / static_cast<size_t>(layout.head_dim) %
                       static_cast<size_t>(StatsRows(PageScore::kSketch));
      values[i] =
          row < 2 ? 0.25f * static_cast<float>(i % 97) - 12.0f : static_cast<float>(i * i / 7 % 4);
    }
    array.Upload(values);
  }

  std::unique_ptr<Stream> stream_;
};

INSTANTIATE_TEST_SUITE_P(Backends, Transfer, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

TEST_P(Transfer, ImportedPageIsCopiedAndExportedUnchanged) {
  for (const int32_t head_dim : {64, 80, 96, 128}) {
    for (const PageScore score : {PageScore::kNone, PageScore::kMinMax, PageScore::kSketch}) {
      const KvPageLayout layout = Layout(head_dim, score);
      DeviceArray<uint8_t> pool(*backend_, 5 * layout.page_bytes());
      pool.Poison();
      auto* pages = reinterpret_cast<std::byte*>(pool.data());
      Canonical in(*backend_, layout), out(*backend_, layout);
      Fill(in.keys, 1);
      Fill(in.values, 2);
      if (score == PageScore::kSketch) {
        FillSketch(in.stats, layout);
      } else {
        Fill(in.stats, 3);
      }
      const Ops& ops = backend_->ops();
      ops.import_page.run(*stream_, in.Params(pages + 4 * layout.page_bytes(), layout));
      const DeviceArray<int32_t> from(*backend_, std::vector<int32_t>{4, 4});
      const DeviceArray<int32_t> to(*backend_, std::vector<int32_t>{0, 2});
      ops.copy_pages.run(*stream_, {pages, pages, from.data(), to.data(), 2, layout.page_bytes()});
      ops.export_page.run(*stream_, out.Params(pages + 2 * layout.page_bytes(), layout));
      ASSERT_TRUE(stream_->Synchronize().ok());
      EXPECT_TRUE(Identical(out.keys.Download(), in.keys.Download())) << head_dim;
      EXPECT_TRUE(Identical(out.values.Download(), in.values.Download())) << head_dim;
      if (score != PageScore::kNone) {
        EXPECT_TRUE(Identical(out.stats.Download(), in.stats.Download())) << head_dim;
      }
      const std::vector<uint8_t> bytes = pool.Download();
      const auto page = bytes.begin() + layout.page_bytes();
      EXPECT_TRUE(std::all_of(page, page + layout.page_bytes(), [](uint8_t b) {
        return b == 0xFF;
      })) << "a page that was not named changed";
    }
  }
}

}  // namespace
}  // namespace lserve::conformance
