#include "sparse/head_ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace lserve {
namespace {

constexpr double kGateNats = 0.01;
constexpr double kPlaceShare = 0.1;  // of a gate that comes from the place alone

HeadSet With(HeadSet set, std::span<const int32_t> heads) {
  for (const int32_t head : heads) {
    set[static_cast<size_t>(head)] = true;
  }
  return set;
}

Status CheckFinite(const std::vector<double>& losses) {
  for (const double loss : losses) {
    if (!std::isfinite(loss)) {
      return Internal("a loss is {}: the model's logits are not usable", loss);
    }
  }
  return OkStatus();
}

// What the loss gains from each head beside those of `base`.
struct Round {
  double base_loss = 0;
  std::vector<std::pair<double, int32_t>> rises;  // (rise, head), ascending
};

Result<Round> MeasureRound(const HeadSet& base, const LossFunction& losses) {
  std::vector<int32_t> left;
  std::vector<HeadSet> variants;
  for (int32_t head = 0; head < std::ssize(base); ++head) {
    if (!base[static_cast<size_t>(head)]) {
      left.push_back(head);
      variants.push_back(With(base, {&head, 1}));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<double> measured, losses(base, variants));
  CHECK_EQ(measured.size(), left.size() + 1);
  RETURN_IF_ERROR(CheckFinite(measured));
  Round round;
  round.base_loss = measured[0];
  for (size_t i = 0; i < left.size(); ++i) {
    round.rises.emplace_back(measured[i + 1] - measured[0], left[i]);
  }
  std::sort(round.rises.begin(), round.rises.end());
  return round;
}

// How many of the round's lowest heads may be ranked together.
Result<size_t> BatchSize(const HeadSet& base, const Round& round, double tolerance,
                         const LossFunction& losses) {
  for (size_t size = round.rises.size() / 2; size > 1; size /= 2) {
    std::vector<int32_t> batch;
    double explained = tolerance;
    for (size_t i = 0; i < size; ++i) {
      batch.push_back(round.rises[i].second);
      explained += 2 * std::max(0.0, round.rises[i].first);
    }
    ASSIGN_OR_RETURN(const std::vector<double> joint, losses(With(base, batch), {}));
    RETURN_IF_ERROR(CheckFinite(joint));
    if (joint[0] - round.base_loss <= explained) {
      return size;
    }
  }
  return 1;
}

}  // namespace

Result<HeadRanking> RankHeads(int32_t heads, double tolerance, const LossFunction& losses) {
  CHECK_GT(heads, 0);
  HeadRanking ranking;
  ranking.alone.resize(static_cast<size_t>(heads));
  HeadSet streams(static_cast<size_t>(heads), false);
  while (std::ssize(ranking.order) < heads) {
    ASSIGN_OR_RETURN(const Round round, MeasureRound(streams, losses));
    if (ranking.order.empty()) {
      for (const auto& [rise, head] : round.rises) {
        ranking.alone[static_cast<size_t>(head)] = rise;
      }
    }
    ASSIGN_OR_RETURN(const size_t size, BatchSize(streams, round, tolerance, losses));
    for (size_t i = 0; i < size; ++i) {
      const auto& [rise, head] = round.rises[i];
      ranking.order.push_back(head);
      ranking.rises.push_back(rise);
      streams[static_cast<size_t>(head)] = true;
    }
  }
  return ranking;
}

HeadGates GatesFromRanking(const HeadRanking& ranking, int32_t layers, int32_t kv_heads) {
  CHECK_EQ(std::ssize(ranking.order), int64_t{layers} * kv_heads);
  HeadGates gates(static_cast<size_t>(layers), std::vector<double>(static_cast<size_t>(kv_heads)));
  double largest = 0;
  for (size_t k = 0; k < ranking.order.size(); ++k) {
    largest = std::max(largest, ranking.rises[k]);
    const double place = static_cast<double>(k + 1) / static_cast<double>(ranking.order.size());
    const double gate = kPlaceShare * place + (1 - kPlaceShare) * largest / (largest + kGateNats);
    const int32_t head = ranking.order[k];
    gates[static_cast<size_t>(head / kv_heads)][static_cast<size_t>(head % kv_heads)] =
        std::round(gate * 1e6) / 1e6;
  }
  return gates;
}

}  // namespace lserve
