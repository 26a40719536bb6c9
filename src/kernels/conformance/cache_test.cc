// What stands in pages: statistics, recycled pages, transfers.
#include <algorithm>
#include <cmath>

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

// Closed boxed pages beside the pages of a cache that holds the same tokens in bf16.
class BoxedCache : public TargetTest {
 protected:
  // Whether every key and value is read back within half a cell and half a step of its grid.
  static void ExpectReadsBack(const PageContent& page, const PageContent& full, size_t dim,
                              float cells) {
    for (size_t i = 0; i < full.keys.size(); ++i) {
      const float* box = page.boxes.data() + i / (kPageTokens * dim) * 2 * dim + i % dim;
      const float cell = (box[dim] - box[0]) / cells;
      ASSERT_LE(box[0], full.keys[i]);
      ASSERT_GE(box[dim], full.keys[i]);
      ASSERT_LE(std::abs(page.keys[i] - full.keys[i]), 0.5001f * cell) << "key " << i;
      const float zero = page.grids[i / dim * 2];
      const float scale = page.grids[i / dim * 2 + 1];
      ASSERT_LE(zero, full.values[i]);
      ASSERT_GE(zero + (cells - 1.0f) * scale, full.values[i] - 1e-4f * std::abs(full.values[i]));
      ASSERT_LE(std::abs(page.values[i] - full.values[i]), 0.5001f * scale) << "value " << i;
    }
  }
};

// The boxed formats, with each score.
std::vector<Target> BoxedTargets() {
  std::vector<Target> targets = WithEachFormat(WithEachScore(Targets(BackendNames())));
  std::erase_if(targets, [](const Target& target) { return !IsBoxed(target.format); });
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Backends, BoxedCache, testing::ValuesIn(BoxedTargets()), TargetTestName);

TEST_P(BoxedCache, ClosedPagesHoldWhatWasAppended) {
  for (const size_t shape_index : {2u, 1u, 10u}) {  // head_dim 80, 128 and bias, 128 and 7 heads
    LayerShape full_shape = LayerShapes()[shape_index];
    full_shape.score = GetParam().score;
    LayerShape shape = full_shape;
    shape.format = GetParam().format;
    for (const int32_t chunk : {7, 64, 200}) {
      Layer layer(*backend_, shape, dtype(), RandomData(5, 3.0f));
      Layer full(*backend_, full_shape, dtype(), RandomData(5, 3.0f));
      for (Layer* each : {&layer, &full}) {
        for (int32_t done = 0; done < 180; done += chunk) {
          each->Run(Step{{}, {{0, std::min(chunk, 180 - done)}}, true});
        }
        for (int32_t i = 0; i < 20; ++i) {  // page 2 closes in decode
          each->Run(Step{{0}, {}, true});
        }
      }
      for (int32_t p = 0; p < 3; ++p) {
        SCOPED_TRACE(testing::Message() << shape << ", chunk " << chunk << ", page " << p);
        const PageContent page = layer.RetrievalPage(0, p);
        const PageContent want = full.RetrievalPage(0, p);
        ExpectReadsBack(page, want, static_cast<size_t>(shape.head_dim),
                        shape.format == KvFormat::kInt8 ? 256.0f : 16.0f);
        // The sketch is the upper bits of the codes, minima and maxima those of the keys in full.
        EXPECT_TRUE(Identical(page.stats, want.stats));
      }
      const PageContent open = layer.RetrievalPage(0, 3);
      const PageContent want = full.RetrievalPage(0, 3);
      EXPECT_TRUE(Identical(open.keys, want.keys));
      EXPECT_TRUE(Identical(open.values, want.values));
      EXPECT_TRUE(Identical(open.stats, want.stats));
    }
  }
}

class RecycledCache : public TargetTest {};

INSTANTIATE_TEST_SUITE_P(Backends, RecycledCache,
                         testing::ValuesIn(WithEachFormat(Targets(BackendNames()))),
                         TargetTestName);

// A sequence of huge keys and values ends; the next one gets its slot, pages and ring.
TEST_P(RecycledCache, LeaksNothing) {
  for (const size_t shape_index : {0u, 1u, 4u, 8u, 9u}) {
    LayerShape shape = LayerShapes()[shape_index];
    shape.format = GetParam().format;
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
        3, head_dim, dtype() == DType::kFloat32 ? KvFormat::kFloat32 : GetParam().format, score);
  }

  // Exported keys and values of a boxed page: what codes read back as in boxes and on grids.
  template <typename CanonicalPage>
  static void FillBoxed(CanonicalPage& page, const KvPageLayout& layout) {
    const auto dim = static_cast<size_t>(layout.head_dim);
    const int32_t codes = 1 << layout.key_bits();
    std::vector<float> boxes(static_cast<size_t>(page.boxes.size()));
    std::vector<float> grids(static_cast<size_t>(page.grids.size()));
    std::vector<float> keys(static_cast<size_t>(page.keys.size()));
    std::vector<float> values(keys.size());
    for (size_t i = 0; i < boxes.size(); ++i) {
      const bool upper = i / dim % 2 == 1;
      boxes[i] = upper ? boxes[i - dim] + 0.125f * static_cast<float>(i % 7)  // some have no width
                       : 0.25f * static_cast<float>(i % 97) - 12.0f;
    }
    for (size_t row = 0; row < grids.size() / 2; ++row) {
      grids[2 * row] = 0.5f * static_cast<float>(row % 31) - 9.0f;
      grids[2 * row + 1] = 0.0625f * static_cast<float>(row % 5);
    }
    for (size_t i = 0; i < keys.size(); ++i) {
      const float* box = boxes.data() + i / (kPageTokens * dim) * 2 * dim + i % dim;
      const float step = (box[dim] - box[0]) / static_cast<float>(codes);
      const auto code =
          static_cast<float>(step == 0.0f ? 0 : static_cast<int32_t>(i * i / 7) % codes);
      keys[i] = box[0] + (code + 0.5f) * step;
      const float* grid = grids.data() + i / dim * 2;
      values[i] = grid[0] + static_cast<float>(static_cast<int32_t>(i * i / 5) % codes) * grid[1];
    }
    page.boxes.Upload(boxes);
    page.grids.Upload(grids);
    page.keys.Upload(keys);
    page.values.Upload(values);
  }

  struct Canonical {
    Canonical(Backend& backend, const KvPageLayout& layout)
        : keys(backend, int64_t{layout.heads} * kPageTokens * layout.head_dim),
          values(backend, keys.size()),
          stats(backend, int64_t{layout.heads} * StatsRows(layout.score) * layout.head_dim),
          boxes(backend, int64_t{layout.heads} * 2 * layout.head_dim),
          grids(backend, int64_t{layout.heads} * kPageTokens * 2) {
      for (DeviceArray<float>* array : {&keys, &values, &stats, &boxes, &grids}) {
        array->Poison();
      }
    }
    TransferPageParams Params(std::byte* page, const KvPageLayout& layout) const {
      return {page,
              layout,
              keys.data(),
              values.data(),
              layout.score == PageScore::kNone ? nullptr : stats.data(),
              layout.boxed() ? boxes.data() : nullptr,
              layout.boxed() ? grids.data() : nullptr};
    }
    DeviceArray<float> keys, values, stats, boxes, grids;
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

INSTANTIATE_TEST_SUITE_P(Backends, Transfer,
                         testing::ValuesIn(WithEachFormat(Targets(BackendNames()))),
                         TargetTestName);

TEST_P(Transfer, ImportedPageIsCopiedAndExportedUnchanged) {
  for (const int32_t head_dim : {64, 80, 96, 128}) {
    for (const PageScore score : {PageScore::kNone, PageScore::kMinMax, PageScore::kSketch}) {
      const KvPageLayout layout = Layout(head_dim, score);
      DeviceArray<uint8_t> pool(*backend_, 5 * layout.page_bytes());
      pool.Poison();
      auto* pages = reinterpret_cast<std::byte*>(pool.data());
      Canonical in(*backend_, layout), out(*backend_, layout);
      if (layout.boxed()) {
        FillBoxed(in, layout);
      } else {
        Fill(in.keys, 1);
        Fill(in.values, 2);
      }
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
      if (layout.boxed()) {
        EXPECT_TRUE(Identical(out.boxes.Download(), in.boxes.Download())) << head_dim;
        EXPECT_TRUE(Identical(out.grids.Download(), in.grids.Download())) << head_dim;
      }
      if (score == PageScore::kMinMax || (score == PageScore::kSketch && !layout.boxed())) {
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
