// Sample. Gives the token that the reference backend gives for the same logits: the same penalties
// in float32, candidates ordered by descending logit and then by id, masses summed in double.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/random.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The highest of n >= 1 logits; NaN counts as minus infinity.
float HighestLogit(const float* logits, int64_t n) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto lowest = hn::Set(df, -std::numeric_limits<float>::infinity());
  auto max0 = lowest;
  auto max1 = lowest;
  const auto take = [&](int64_t i) HWY_ATTR {
    const auto x = hn::LoadU(df, logits + i);
    return hn::IfThenElse(hn::Eq(x, x), x, lowest);
  };
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    max0 = hn::Max(max0, take(i));
    max1 = hn::Max(max1, take(i + lanes));
  }
  float highest = hn::GetLane(hn::MaxOfLanes(df, hn::Max(max0, max1)));
  for (; i < n; ++i) {
    highest = logits[i] > highest ? logits[i] : highest;
  }
  return highest;
}

// The first index whose logit equals `value`; n if there is none.
int64_t FirstEqual(const float* logits, int64_t n, float value) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto wanted = hn::Set(df, value);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    if (!hn::AllFalse(df, hn::Eq(hn::LoadU(df, logits + i), wanted))) {
      break;
    }
  }
  while (i < n && logits[i] != value) {
    ++i;
  }
  return i;
}

}  // namespace HWY_NAMESPACE
}  // namespace lserve::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(HighestLogit);
HWY_EXPORT(FirstEqual);

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Repetition penalty (Keskar et al., 2019), then presence and frequency penalty.
void Penalise(const SlotSampling& settings, const int32_t* counts, const uint8_t* prompt_seen,
              float* logits, int32_t vocab_size) {
  for (int32_t token = 0; token < vocab_size; ++token) {
    const int32_t count = counts[token];
    if (count == 0 && prompt_seen[token] == 0) {
      continue;
    }
    float logit = logits[token];
    logit =
        logit > 0.0f ? logit / settings.repetition_penalty : logit * settings.repetition_penalty;
    if (count > 0) {
      logit -= settings.presence_penalty + settings.frequency_penalty * static_cast<float>(count);
    }
    logits[token] = logit;
  }
}

// The vocabulary in sampling order (descending logit, then id), sorted only as far as it is read.
class Candidates {
 public:
  // keys: [n], scratch. NaN counts as minus infinity.
  Candidates(const float* logits, int64_t n, uint64_t* keys) : keys_(keys), n_(n) {
    for (int64_t i = 0; i < n; ++i) {
      // Adding zero makes one zero of the two; the order of IEEE bits, reversed, ascends.
      const float x = std::isnan(logits[i]) ? kMinusInfinity : logits[i] + 0.0f;
      const auto bits = std::bit_cast<uint32_t>(x);
      const uint32_t ascending = bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
      keys[i] = uint64_t{~ascending} << 32 | static_cast<uint64_t>(i);
    }
  }

  // The id of candidate i.
  int32_t Id(int64_t i) {
    if (i >= sorted_) {
      Sort(i + 1);
    }
    return static_cast<int32_t>(keys_[i] & 0xFFFFFFFFu);
  }

 private:
  void Sort(int64_t at_least) {
    const int64_t end = std::min(n_, std::max({at_least, int64_t{64}, 8 * sorted_}));
    if (end < n_) {
      std::nth_element(keys_ + sorted_, keys_ + end, keys_ + n_);
    }
    std::sort(keys_ + sorted_, keys_ + end);
    sorted_ = end;
  }

  uint64_t* keys_;
  int64_t n_;
  int64_t sorted_ = 0;
};

// One draw with u in [0, 1): top_k keeps the first k candidates, top_p the shortest prefix whose
// mass reaches p, min_p masses of at least min_p times the highest.
int32_t Draw(const SlotSampling& settings, const float* logits, int64_t n, float u,
             uint64_t* keys) {
  const float highest = HWY_DYNAMIC_DISPATCH(HighestLogit)(logits, n);
  Candidates candidates(logits, n, keys);
  if (std::isinf(highest)) {
    return candidates.Id(0);
  }
  // Mass relative to that of the first candidate.
  const auto mass_of_logit = [&](float logit) {
    return std::isnan(logit) ? 0.0f : std::exp((logit - highest) / settings.temperature);
  };
  const auto mass = [&](int64_t i) { return mass_of_logit(logits[candidates.Id(i)]); };
  const auto prefix_mass = [&](int64_t count) {
    double total = 0.0;
    for (int64_t i = 0; i < n && count == n; ++i) {  // all: no need to sort
      total += static_cast<double>(mass_of_logit(logits[i]));
    }
    for (int64_t i = 0; i < count && count != n; ++i) {
      total += static_cast<double>(mass(i));
    }
    return total;
  };
  int64_t kept = settings.top_k > 0 ? std::min<int64_t>(settings.top_k, n) : n;
  if (settings.top_p < 1.0f) {
    const double wanted = static_cast<double>(settings.top_p) * prefix_mass(kept);
    const int64_t limit = kept;
    double prefix = 0.0;
    for (kept = 0; kept < limit;) {
      prefix += static_cast<double>(mass(kept++));
      if (prefix >= wanted) {
        break;
      }
    }
  }
  if (settings.min_p > 0.0f) {
    int64_t above = 0;  // masses descend: the first one below ends the list
    while (above < kept && mass(above) >= settings.min_p) {
      ++above;
    }
    kept = std::max<int64_t>(above, 1);
  }
  const double wanted = static_cast<double>(u) * prefix_mass(kept);
  double cumulated = 0.0;
  for (int64_t i = 0; i + 1 < kept; ++i) {
    cumulated += static_cast<double>(mass(i));
    if (cumulated > wanted) {
      return candidates.Id(i);
    }
  }
  return candidates.Id(kept - 1);
}

int32_t Greedy(const float* logits, int64_t n) {
  const float highest = HWY_DYNAMIC_DISPATCH(HighestLogit)(logits, n);
  if (highest == kMinusInfinity) {
    return 0;
  }
  return static_cast<int32_t>(HWY_DYNAMIC_DISPATCH(FirstEqual)(logits, n, highest));
}

}  // namespace

void RunSample(const SampleParams& params, Team& team) {
  const int32_t vocab_size = params.vocab_size;
  const int32_t rows = params.batch.counts[kLogitRows];
  for (int64_t i = team.Next(); i < rows; i = team.Next()) {
    const int32_t row = params.batch.logit_row[i];
    const int32_t slot = params.batch.row_slot[row];
    const SlotSampling& settings = params.sampling[slot];
    float* logits = params.logits + i * vocab_size;
    int32_t* counts = params.token_counts + int64_t{slot} * vocab_size;
    if (settings.penalties != 0) {
      Penalise(settings, counts, params.prompt_seen + int64_t{slot} * vocab_size, logits,
               vocab_size);
    }
    int32_t token = 0;
    if (settings.temperature == 0.0f) {
      token = Greedy(logits, vocab_size);
    } else {
      const auto position = static_cast<uint64_t>(params.batch.row_position[row]) + 1;
      auto* keys = reinterpret_cast<uint64_t*>(
          team.Scratch(int64_t{vocab_size} * int64_t{sizeof(uint64_t)}));
      token = Draw(settings, logits, vocab_size, UniformFloat(Philox(settings.seed, position)[0]),
                   keys);
    }
    if (settings.penalties != 0) {
      ++counts[token];
    }
    params.last_token[slot] = token;
    params.sampled[i] = token;
  }
}

}  // namespace lserve::cpu
#endif  // HWY_ONCE
