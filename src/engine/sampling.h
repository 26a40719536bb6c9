// From a request's sampling parameters to what the sampler reads. Free functions, thread-safe.
// Validate(SamplingParams) is declared in engine/request.h and defined beside these.
#pragma once

#include "checkpoint/model_config.h"
#include "engine/request.h"
#include "kernels/ops.h"

namespace lserve {

// A temperature below this is greedy: logits divided by it would leave float32's range, and a
// difference of 0.01 in a logit already decides.
inline constexpr double kGreedyTemperature = 1e-4;

// What a model's generation_config.json recommends, within the ranges of SamplingParams; greedy
// where do_sample is false. What it does not say keeps its plain default.
SamplingParams DefaultSampling(const GenerationDefaults& recommended);

// The slot's settings for validated parameters. Doubles that float32 would round out of their
// range (top_p = 1e-50) keep its smallest normal number.
SlotSampling ToSlotSampling(const SamplingParams& params);

}  // namespace lserve
