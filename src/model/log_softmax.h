// What a distribution of logits says about a token. Free functions, in double precision.
#pragma once

#include <cstdint>
#include <span>

namespace lserve {

// log sum exp(logits), without overflow; at least one logit.
double LogSumExp(std::span<const float> logits);

// -log softmax(logits)[token] in nats.
double NegativeLogLikelihood(std::span<const float> logits, int32_t token);

}  // namespace lserve
