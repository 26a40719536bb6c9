// Sample: a block a logit row. Candidates are in the order of a key, descending logit and then id,
// and each cut of the distribution (top-k, top-p, the draw itself) is the first candidate at which
// a cumulated weight passes a threshold. It is found digit by digit, from a histogram of the
// weights over the next digit of the keys that share the digits found so far. Weights are integers,
// so the sums do not depend on the order of the atomics: a mass, relative to that of the first
// candidate, counts in units of 2^-40.
#include "base/random.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 1024;
constexpr int32_t kWarps = kThreads / kWarpThreads;
constexpr int32_t kIdBits = 22;
constexpr int32_t kKeyBits = 32 + kIdBits;
constexpr int32_t kDigitBits = 11;
constexpr int32_t kDigits = 1 << kDigitBits;
constexpr int32_t kDigitsPerThread = kDigits / kThreads;
constexpr float kMassUnits = 1099511627776.0f;  // 2^40
constexpr uint64_t kLastKey = ~uint64_t{0};
static_assert(kDigitsPerThread == 2);
static_assert(sizeof(unsigned long long) == sizeof(uint64_t));  // NOLINT: what the atomics take

struct Shared {
  unsigned long long histogram[kDigits];  // NOLINT: what the atomics take
  uint64_t partial[kWarps];
  uint64_t before;  // weight of the digits before the one found
  uint32_t digit;
};

__device__ float MinusInfinity() { return -__uint_as_float(0x7F800000u); }

// Ascends in sampling order. Both zeros are one logit.
__device__ uint64_t KeyOf(float logit, int32_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  const uint32_t ascending = bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  return uint64_t{~ascending} << kIdBits | static_cast<uint32_t>(id);
}

__device__ int32_t IdOf(uint64_t key) {
  return static_cast<int32_t>(key & ((uint64_t{1} << kIdBits) - 1));
}

struct Minimum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};
struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

// x of all threads combined, for every thread.
template <typename Combine>
__device__ uint64_t BlockReduce(uint64_t x, Combine combine, Shared& shared) {
#pragma unroll
  for (int32_t offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
  }
  __syncthreads();  // of an earlier use of partial
  if (threadIdx.x % kWarpThreads == 0) {
    shared.partial[threadIdx.x / kWarpThreads] = x;
  }
  __syncthreads();
  x = shared.partial[0];
  for (int32_t warp = 1; warp < kWarps; ++warp) {
    x = combine(x, shared.partial[warp]);
  }
  return x;
}

// The sum of x over the threads before this one.
__device__ uint64_t SumBefore(uint64_t x, Shared& shared) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpThreads;
  uint64_t inclusive = x;
#pragma unroll
  for (int32_t offset = 1; offset < kWarpThreads; offset *= 2) {
    const uint64_t other = __shfl_up_sync(0xFFFFFFFFu, inclusive, offset);
    inclusive += lane >= offset ? other : 0;
  }
  __syncthreads();  // of an earlier use of partial
  if (lane == kWarpThreads - 1) {
    shared.partial[warp] = inclusive;
  }
  __syncthreads();
  uint64_t before = inclusive - x;
  for (int32_t w = 0; w < warp; ++w) {
    before += shared.partial[w];
  }
  return before;
}

// One row's candidates: those with a key up to `last`, with what a weight function says of each.
struct Candidates {
  const float* logits;
  int32_t count;
  uint64_t last;

  template <typename Weight>
  __device__ uint64_t Total(Weight weight, Shared& shared) const {
    uint64_t total = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
      const float logit = logits[i];
      total += KeyOf(logit, i) <= last ? weight(logit) : 0;
    }
    return BlockReduce(total, Sum(), shared);
  }

  // The key of the first candidate at which the cumulated weight exceeds `threshold`, which is less
  // than the total.
  template <typename Weight>
  __device__ uint64_t FirstBeyond(uint64_t threshold, Weight weight, Shared& shared) const {
    uint64_t found = 0;
    for (int32_t below = kKeyBits; below > 0;) {
      const int32_t bits = min(kDigitBits, below);
      const int32_t above = below;
      below -= bits;
      const uint64_t mask = (uint64_t{1} << bits) - 1;
      __syncthreads();  // of an earlier use of the histogram
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kDigits; i += kThreads) {
        shared.histogram[i] = 0;
      }
      __syncthreads();
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
        const float logit = logits[i];
        const uint64_t key = KeyOf(logit, i);
        if (key <= last && key >> above == found) {
          if (const uint64_t w = weight(logit); w != 0) {
            atomicAdd(&shared.histogram[key >> below & mask], w);
          }
        }
      }
      __syncthreads();
      const uint64_t first = shared.histogram[2 * threadIdx.x];
      const uint64_t second = shared.histogram[2 * threadIdx.x + 1];
      const uint64_t before = SumBefore(first + second, shared);
      if (before <= threshold && threshold < before + first + second) {
        const bool in_first = threshold < before + first;
        shared.digit = 2 * threadIdx.x + (in_first ? 0 : 1);
        shared.before = before + (in_first ? 0 : first);
      }
      __syncthreads();
      found = found << bits | shared.digit;
      threshold -= shared.before;
    }
    return found;
  }
};

// Repetition penalty (Keskar et al., 2019), then presence and frequency penalty; rounded after each
// step, as the host's arithmetic does.
__device__ float Penalise(const SlotSampling& settings, int32_t count, bool seen, float logit) {
  if (count == 0 && !seen) {
    return logit;
  }
  logit = logit > 0.0f ? logit / settings.repetition_penalty : logit * settings.repetition_penalty;
  if (count > 0) {
    const float frequency = __fmul_rn(settings.frequency_penalty, static_cast<float>(count));
    logit = __fsub_rn(logit, __fadd_rn(settings.presence_penalty, frequency));
  }
  return logit;
}

// One draw with u in [0, 1), as the reference backend defines it.
__device__ uint64_t Draw(const SlotSampling& settings, const float* logits, int32_t vocab_size,
                         float highest, float u, Shared& shared) {
  Candidates candidates{logits, vocab_size, kLastKey};
  if (settings.top_k > 0 && settings.top_k < vocab_size) {
    candidates.last = candidates.FirstBeyond(
        static_cast<uint64_t>(settings.top_k) - 1, [](float) { return uint64_t{1}; }, shared);
  }
  const auto relative_mass = [&](float logit) {
    return expf((logit - highest) / settings.temperature);
  };
  const auto mass = [&](float logit) {
    return static_cast<uint64_t>(relative_mass(logit) * kMassUnits);
  };
  if (settings.top_p < 1.0f) {
    const auto total = static_cast<double>(candidates.Total(mass, shared));
    const auto wanted = static_cast<uint64_t>(ceil(static_cast<double>(settings.top_p) * total));
    candidates.last = candidates.FirstBeyond(wanted > 0 ? wanted - 1 : 0, mass, shared);
  }
  const auto kept_mass = [&](float logit) {
    const float x = relative_mass(logit);
    return x >= settings.min_p ? static_cast<uint64_t>(x * kMassUnits) : 0;
  };
  const auto total = static_cast<double>(candidates.Total(kept_mass, shared));
  return candidates.FirstBeyond(static_cast<uint64_t>(static_cast<double>(u) * total), kept_mass,
                                shared);
}

__global__ void __launch_bounds__(kThreads)
    SampleKernel(const __grid_constant__ SampleParams params) {
  BeginDependentKernel();
  __shared__ Shared shared;
  const int64_t index = blockIdx.x;
  if (index >= params.batch.counts[kLogitRows]) {
    return;
  }
  const int32_t row = params.batch.logit_row[index];
  const int32_t slot = params.batch.row_slot[row];
  const SlotSampling settings = params.sampling[slot];
  const int32_t vocab_size = params.vocab_size;
  float* logits = params.logits + index * vocab_size;
  int32_t* counts = params.token_counts + int64_t{slot} * vocab_size;
  const uint8_t* seen = params.prompt_seen + int64_t{slot} * vocab_size;

  // Each thread reads again only what it wrote.
  uint64_t first = kLastKey;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < vocab_size; i += kThreads) {
    float logit = logits[i];
    logit = isnan(logit) ? MinusInfinity() : logit;
    if (settings.penalties != 0) {
      logit = Penalise(settings, counts[i], seen[i] != 0, logit);
    }
    logits[i] = logit;
    first = Minimum()(first, KeyOf(logit, i));
  }
  first = BlockReduce(first, Minimum(), shared);
  uint64_t drawn = first;
  const float highest = logits[IdOf(first)];
  if (settings.temperature != 0.0f && !isinf(highest)) {
    const auto position = static_cast<uint64_t>(params.batch.row_position[row]) + 1;
    drawn = Draw(settings, logits, vocab_size, highest,
                 UniformFloat(Philox(settings.seed, position)[0]), shared);
  }
  if (threadIdx.x == 0) {
    const int32_t token = IdOf(drawn);
    if (settings.penalties != 0) {
      ++counts[token];
    }
    params.last_token[slot] = token;
    params.sampled[index] = token;
  }
}

}  // namespace

void Sample(const SampleParams& params, cudaStream_t stream) {
  CHECK_LE(params.vocab_size, 1 << kIdBits);
  if (params.batch.max_logit_rows == 0) {
    return;
  }
  LaunchDependent("sample", SampleKernel, static_cast<uint32_t>(params.batch.max_logit_rows),
                  kThreads, 0, stream, params);
}

}  // namespace lserve::cuda
