// The search on synthetic losses: what a model would do is written down as a function of the set of
// streaming heads.
#include "sparse/head_ranking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/file.h"
#include "base/random.h"
#include "base/testing/test_path.h"

namespace lserve {
namespace {

using ::testing::ElementsAre;

// Calls a loss of one set for all that the search asks, and counts the sets.
class Model {
 public:
  explicit Model(std::function<double(const HeadSet&)> loss) : loss_(std::move(loss)) {}

  HeadRanking Rank(int32_t heads, double tolerance = 1e-3) {
    const auto losses = [this](const HeadSet& base, std::span<const HeadSet> variants) {
      ++sets_;
      std::vector<double> measured = {loss_(base)};
      for (const HeadSet& variant : variants) {
        ++sets_;
        measured.push_back(loss_(variant));
      }
      return Result<std::vector<double>>(measured);
    };
    return RankHeads(heads, tolerance, losses).value();
  }
  int sets() const { return sets_; }

 private:
  std::function<double(const HeadSet&)> loss_;
  int sets_ = 0;
};

double Sum(const HeadSet& streams, const std::vector<double>& weights) {
  double sum = 1.0;
  for (size_t i = 0; i < weights.size(); ++i) {
    sum += streams[i] ? weights[i] : 0.0;
  }
  return sum;
}

TEST(RankHeads, IndependentHeadsComeByWhatTheyAreWorth) {
  std::vector<double> weights(37);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<double>(i * 17 % 37) * 0.01;
  }
  Model model([&](const HeadSet& s) { return Sum(s, weights); });
  const HeadRanking ranking = model.Rank(37);
  for (size_t k = 0; k < 37; ++k) {
    EXPECT_NEAR(weights[static_cast<size_t>(ranking.order[k])], static_cast<double>(k) * 0.01,
                1e-9);
    EXPECT_NEAR(ranking.rises[k], static_cast<double>(k) * 0.01, 1e-9);
    EXPECT_NEAR(ranking.alone[k], weights[k], 1e-9);
  }
  EXPECT_LE(model.sets(), 2 * 37 + 3 * 6) << "halving costs two sets a head and a few a round";
}

TEST(RankHeads, TiesGoToTheLowerHead) {
  Model model([](const HeadSet&) { return 0.25; });
  EXPECT_THAT(model.Rank(7).order, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

TEST(RankHeads, HeadsThatDoBetterStreamingComeFirst) {
  Model model([](const HeadSet& s) { return Sum(s, {0.02, -0.1, 0.01, -0.2}); });
  EXPECT_THAT(model.Rank(4).order, ElementsAre(3, 1, 2, 0));
}

// Either head of a pair is harmless alone, both together are fatal: one may stream at any time, the
// other must be the last, wherever the pair lies among heads without worth.
TEST(RankHeads, RedundantPairKeepsOneHeadToTheEnd) {
  for (size_t a = 0; a < 12; ++a) {
    for (size_t b = a + 1; b < 12; ++b) {
      Model model([&](const HeadSet& s) { return 1.0 + (s[a] && s[b] ? 5.0 : 0.0); });
      const HeadRanking ranking = model.Rank(12);
      const auto last = static_cast<size_t>(ranking.order.back());
      EXPECT_TRUE(last == a || last == b) << a << " " << b << ": last is " << last;
      EXPECT_NEAR(ranking.rises.back(), 5.0, 1e-9);
      EXPECT_EQ(ranking.alone[last], 0.0);
    }
  }
}

// The pair matters more than a head that looks worse alone.
TEST(RankHeads, RedundantPairOutranksAHeadThatIsWorthMoreAlone) {
  Model model([](const HeadSet& s) {
    return 1.0 + (s[2] && s[5] ? 2.0 : 0.0) + (s[7] ? 0.3 : 0.0) + (s[1] ? 0.02 : 0.0);
  });
  const HeadRanking ranking = model.Rank(9);
  EXPECT_THAT(std::vector<int32_t>(ranking.order.end() - 3, ranking.order.end()),
              ::testing::AnyOf(ElementsAre(1, 7, 2), ElementsAre(1, 7, 5)));
}

TEST(RankHeads, OfThreeRedundantHeadsOneStaysToTheEnd) {
  Model model([](const HeadSet& s) { return s[0] && s[1] && s[4] ? 3.0 : 0.0; });
  const int32_t last = model.Rank(16).order.back();
  EXPECT_TRUE(last == 0 || last == 1 || last == 4) << last;
}

// Losses of random sets of redundant pairs and single weights: wherever the ranking stops, dropping
// its next head costs no more than dropping any other head that is left.
TEST(RankHeads, RandomModelsNeverLoseAPairBeforeCheaperHeads) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const int32_t heads = 5 + static_cast<int32_t>(Philox(seed, 0)[0] % 20);
    std::vector<std::pair<size_t, size_t>> pairs;
    for (uint64_t i = 0; i < 3; ++i) {
      const auto words = Philox(seed, 1 + i);
      pairs.emplace_back(words[0] % static_cast<uint32_t>(heads),
                         words[1] % static_cast<uint32_t>(heads));
    }
    const auto loss = [&](const HeadSet& s) {
      double sum = 0;
      for (const auto& [a, b] : pairs) {
        sum += s[a] && s[b] ? 1.0 : 0.0;
      }
      return sum;
    };
    Model model(loss);
    const HeadRanking ranking = model.Rank(heads);
    HeadSet streams(static_cast<size_t>(heads), false);
    for (const int32_t next : ranking.order) {
      double cheapest = std::numeric_limits<double>::infinity();
      for (size_t other = 0; other < streams.size(); ++other) {
        if (!streams[other]) {
          HeadSet with = streams;
          with[other] = true;
          cheapest = std::min(cheapest, loss(with));
        }
      }
      streams[static_cast<size_t>(next)] = true;
      EXPECT_LE(loss(streams), cheapest) << "seed " << seed << ", head " << next;
    }
  }
}

TEST(RankHeads, OneHead) {
  Model model([](const HeadSet& s) { return s[0] ? 0.5 : 0.25; });
  const HeadRanking ranking = model.Rank(1);
  EXPECT_THAT(ranking.order, ElementsAre(0));
  EXPECT_THAT(ranking.rises, ElementsAre(0.25));
}

TEST(RankHeads, ErrorsComeThrough) {
  const auto fails = [](const HeadSet&, std::span<const HeadSet>) {
    return Result<std::vector<double>>(Internal("the device failed"));
  };
  EXPECT_EQ(RankHeads(4, 0, fails).status().message(), "the device failed");
  const auto nan = [](const HeadSet&, std::span<const HeadSet> variants) {
    return Result<std::vector<double>>(std::vector<double>(variants.size() + 1, NAN));
  };
  EXPECT_EQ(RankHeads(4, 0, nan).status().code(), StatusCode::kInternal);
}

// Gates are written and read back; the plan at every share streams the first heads of the order.
TEST(GatesFromRanking, EveryShareStreamsTheFirstHeads) {
  constexpr int32_t kLayers = 5, kHeads = 7;
  HeadRanking ranking;
  for (int32_t k = 0; k < kLayers * kHeads; ++k) {
    ranking.order.push_back(k * 12 % (kLayers * kHeads));
    ranking.rises.push_back(k % 3 == 0 ? -0.5 : k < 20 ? 0.0 : 0.01 * k);
  }
  const HeadGates made = GatesFromRanking(ranking, kLayers, kHeads);
  const std::string path = TestPath("ranked.tsv");
  ASSERT_TRUE(WriteFileAtomically(path, FormatHeadGates(made)).ok());
  const HeadGates gates = ReadHeadGates(path, kLayers, kHeads).value();
  EXPECT_EQ(gates, made);
  for (int32_t count = 0; count <= kLayers * kHeads; ++count) {
    const HeadPlan plan =
        HeadPlan::FromGates(gates, static_cast<double>(count) / (kLayers * kHeads));
    ASSERT_EQ(plan.total_retrieval_heads(), kLayers * kHeads - count);
    for (int32_t k = 0; k < count; ++k) {
      const int32_t head = ranking.order[static_cast<size_t>(k)];
      const std::vector<int32_t>& order = plan.order(head / kHeads);
      const auto place = std::find(order.begin(), order.end(), head % kHeads) - order.begin();
      EXPECT_GE(place, plan.retrieval_heads(head / kHeads)) << "head " << head << " of " << count;
    }
  }
}

TEST(GatesFromRanking, FollowTheFormula) {
  const HeadRanking ranking{.order = {1, 0, 2}, .rises = {-0.25, 0.01, 0.0025}, .alone = {0, 0, 0}};
  EXPECT_THAT(GatesFromRanking(ranking, 1, 3),
              ElementsAre(ElementsAre(0.066667 + 0.45, 0.033333, 0.1 + 0.45)));
}

}  // namespace
}  // namespace lserve
