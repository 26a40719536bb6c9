// Sampling.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/random.h"
#include "kernels/ref/operations.h"

namespace lserve::ref {
namespace {

// Repetition penalty (Keskar et al., 2019, as Hugging Face applies it): a token of the prompt or of
// the answer has its logit divided by the penalty if it is positive, else multiplied. Then the
// OpenAI API's penalties: presence once, frequency for each time the answer has the token.
void Penalise(const SlotSampling& settings, const int32_t* counts, const uint8_t* prompt_seen,
              float* logits, int32_t vocab_size) {
  for (int32_t token = 0; token < vocab_size; ++token) {
    float& logit = logits[token];
    if (counts[token] > 0 || prompt_seen[token] != 0) {
      logit =
          logit > 0.0f ? logit / settings.repetition_penalty : logit * settings.repetition_penalty;
    }
    if (counts[token] > 0) {
      logit -= settings.presence_penalty +
               settings.frequency_penalty * static_cast<float>(counts[token]);
    }
  }
}

// The highest logit, ties to the lower id; 0 if every logit is minus infinity.
int32_t Greedy(const float* logits, int32_t vocab_size) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
}

// Draws with u in [0, 1). Candidates are ordered by descending logit, equal logits by id. top_k
// keeps the first k; the softmax of logits / temperature is over those; top_p keeps the shortest
// prefix whose mass reaches p (at least one token); min_p keeps probabilities of at least min_p
// times the highest. Of what is left, the first candidate whose cumulated mass exceeds u times the
// total.
int32_t Draw(const SlotSampling& settings, const float* logits, int32_t vocab_size, float u) {
  std::vector<int32_t> order(static_cast<size_t>(vocab_size));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float highest = logits[order[0]];
  if (std::isinf(highest)) {
    return order[0];  // nothing is possible (token 0), or something is certain
  }
  if (settings.top_k > 0 && settings.top_k < vocab_size) {
    order.resize(static_cast<size_t>(settings.top_k));
  }
  std::vector<float> mass(order.size());  // probability relative to that of the first candidate
  for (size_t i = 0; i < order.size(); ++i) {
    mass[i] = std::exp((logits[order[i]] - highest) / settings.temperature);
  }
  size_t kept = order.size();
  if (settings.top_p < 1.0f) {
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    double prefix = 0.0;
    for (kept = 0; kept < order.size();) {
      prefix += static_cast<double>(mass[kept++]);
      if (prefix >= static_cast<double>(settings.top_p) * total) {
        break;
      }
    }
  }
  while (kept > 1 && mass[kept - 1] < settings.min_p) {
    --kept;
  }
  const double total =
      std::accumulate(mass.begin(), mass.begin() + static_cast<int64_t>(kept), 0.0);
  double cumulated = 0.0;
  for (size_t i = 0; i + 1 < kept; ++i) {
    cumulated += static_cast<double>(mass[i]);
    if (cumulated > static_cast<double>(u) * total) {
      return order[i];
    }
  }
  return order[kept - 1];
}

}  // namespace

void RunSample(const SampleParams& params) {
  CheckBatchLists(params.batch);
  const int32_t vocab_size = params.vocab_size;
  for (int32_t i = 0; i < params.batch.counts[kLogitRows]; ++i) {
    const int32_t row = params.batch.logit_row[i];
    const int32_t slot = params.batch.row_slot[row];
    const SlotSampling& settings = params.sampling[slot];
    float* logits = params.logits + int64_t{i} * vocab_size;
    int32_t* counts = params.token_counts + int64_t{slot} * vocab_size;
    std::replace_if(
        logits, logits + vocab_size, [](float x) { return std::isnan(x); },
        -std::numeric_limits<float>::infinity());
    if (settings.penalties != 0) {
      Penalise(settings, counts, params.prompt_seen + int64_t{slot} * vocab_size, logits,
               vocab_size);
    }
    int32_t token = 0;
    if (settings.temperature == 0.0f) {
      token = Greedy(logits, vocab_size);
    } else {
      const auto position = static_cast<uint64_t>(params.batch.row_position[row]) + 1;
      token = Draw(settings, logits, vocab_size, UniformFloat(Philox(settings.seed, position)[0]));
    }
    if (settings.penalties != 0) {
      ++counts[token];
    }
    params.last_token[slot] = token;
    params.sampled[i] = token;
  }
}

}  // namespace lserve::ref
