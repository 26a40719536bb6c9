// Page scores in float32 on any CPU. bf16 pairs of the statistics are widened by a shift and a
// mask.

// The targets worth compiling for: the baseline, AVX2 and AVX-512.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_units_highway.cc"
#include "hwy/foreach_target.h"  // must come before highway.h

#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attention_highway-inl.h"
#include "kernels/cpu/select_units_kernel.h"

HWY_BEFORE_NAMESPACE();
namespace lserve::cpu::HWY_NAMESPACE {

void RunPageScores(const PageScoreRun& run) {
  const FloatTag d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const int32_t width = 2 * run.padded_head_dim;  // bf16 of a logical page
  for (int32_t j = 0; j < 4 * run.pages; ++j) {
    const uint16_t* stats = run.stats[j / 4] + j % 4 * width;
    float best = -std::numeric_limits<float>::infinity();
    for (int32_t g = 0; g < run.group; ++g) {
      const uint16_t* q = run.q_pairs + g * width;
      FloatVec low = hn::Zero(d);
      FloatVec high = hn::Zero(d);
      for (int32_t i = 0; i < width; i += 2 * lanes) {
        const WordVec pairs = LoadPairs(stats + i);
        const WordVec signs = LoadPairs(q + i);
        low = hn::MulAdd(First(pairs), First(signs), low);
        high = hn::MulAdd(Second(pairs), Second(signs), high);
      }
      const float score = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high))) * run.scale;
      best = score > best ? score : best;  // false for a NaN
    }
    run.scores[j] = best;
  }
}

}  // namespace lserve::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lserve::cpu {
namespace {

HWY_EXPORT(RunPageScores);

void Run(const PageScoreRun& run) { HWY_DYNAMIC_DISPATCH(RunPageScores)(run); }
bool Always() { return true; }

}  // namespace

SelectVariant HighwaySelectVariant() { return {"highway", Always, Run}; }

}  // namespace lserve::cpu
#endif  // HWY_ONCE
