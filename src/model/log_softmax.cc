#include "model/log_softmax.h"

#include <algorithm>
#include <cmath>

namespace lserve {

double LogSumExp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(logit - largest);
  }
  return std::log(sum) + largest;
}

double NegativeLogLikelihood(std::span<const float> logits, int32_t token) {
  return LogSumExp(logits) - logits[static_cast<size_t>(token)];
}

}  // namespace lserve
