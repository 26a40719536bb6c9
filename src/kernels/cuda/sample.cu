// Sample: a cluster of blocks a logit row, each with a share of it. Candidates are in the order of
// a key, descending logit and then id, and each cut of the distribution (top-k, top-p, the draw
// itself) is the first candidate at which a cumulated weight passes a threshold. A histogram of the
// weights over a digit of the candidates tells the bucket in which that one lies. The first digit
// is the distance from the highest logit, which leaves few in a bucket; they are ranked against
// each other. Where they are many, as among equal logits, digits of their keys go on. Weights are
// integers, so the sums depend neither on the order of the atomics nor on the number of blocks: a
// mass, relative to that of the first candidate, counts in units of 2^-40.
//
// Floor: the chain of the loads, which come from the second-level cache, and the barriers of the
// cluster: one for the highest logit, then a pass over the share and a barrier for the histogram
// and as much for the candidates of the bucket. A cut behind another first tries without the
// histogram, since few may be left.
#include <cmath>

#include "base/random.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/sample.cuh"

namespace lserve::cuda {
namespace {

constexpr float kMassUnits = 1099511627776.0f;  // 2^40
constexpr int32_t kDigitBits = 12;
constexpr int32_t kBuckets = 1 << kDigitBits;
constexpr int32_t kRun = kBuckets / kSampleWarps;  // buckets that a warp sums
constexpr int32_t kBucketThreads = kSampleThreads / kRun;
constexpr int32_t kMostCandidates = 256;
constexpr int32_t kCandidateThreads = kSampleThreads / kMostCandidates;
static_assert(kRun % kWarpLanes == 0);
static_assert(kBucketThreads == 2 && kCandidateThreads == 2);   // neighbouring lanes
static_assert(sizeof(unsigned long long) == sizeof(uint64_t));  // NOLINT: what the atomics take

// Candidates of a block, for the cluster to read.
struct Gathered {
  uint64_t keys[kMostCandidates];
  unsigned long long low;   // NOLINT: what the atomics take
  unsigned long long high;  // NOLINT
  int32_t count;

  __device__ void Clear() {
    low = kLastKey;
    high = 0;
    count = 0;
  }
};

struct Shared {
  uint2 histogram[kBuckets];       // of 64-bit weights: low word, high word; the cluster reads it
  Gathered own[2];                 // in turn, as others may still read the one before
  uint64_t keys[kMostCandidates];  // of the cluster's candidates
  uint64_t weights[kMostCandidates];
  // A line a block, which writes it to all of the cluster.
  uint64_t warp_first[kSampleBlocks][kSampleWarps];
  uint64_t run_sums[kSampleBlocks][kSampleWarps];
  uint64_t warp_sums[kSampleWarps];
  uint64_t threshold;
  uint64_t found;
  int32_t bucket;
  SlotSampling settings;
  float u;  // of the draw, in [0, 1)
};

// ---- The highest logit

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

// The key of the thread's first candidate, or one behind all candidates; writes back what penalties
// and the rule for NaN change, so that each thread reads again only what it wrote.
template <bool kPenalties, int32_t kWidth>
__device__ __forceinline__ uint64_t FirstOfThread(const Share<kWidth>& share,
                                                  const SlotSampling& settings,
                                                  const int32_t* counts, const uint8_t* seen) {
  constexpr int32_t kAtATime = kPenalties ? 2 : 8;  // 8: a share of 16384 at once
  const int32_t step = share.Step();
  float highest = -INFINITY;
  int32_t highest_id = share.FirstId();
#pragma unroll 1
  for (int32_t first = share.FirstId(); first < share.count; first += kAtATime * step) {
    Elements<float, kWidth> logits[kAtATime];
    Elements<int32_t, kWidth> generated[kAtATime];
    Elements<uint8_t, kWidth> in_prompt[kAtATime];
#pragma unroll
    for (int32_t i = 0; i < kAtATime; ++i) {
      logits[i] = share.Load(share.logits, first + i * step);
      if constexpr (kPenalties) {
        generated[i] = share.Load(counts, first + i * step);
        in_prompt[i] = share.Load(seen, first + i * step);
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kAtATime; ++i) {
      const int32_t id = first + i * step;
      if (id >= share.count) {
        break;
      }
      float sum = 0.0f;
#pragma unroll
      for (const float logit : logits[i].x) {
        sum += logit;
      }
      if (isnan(sum)) {  // one may be NaN
#pragma unroll
        for (int32_t k = 0; k < kWidth; ++k) {
          if (isnan(logits[i].x[k])) {
            logits[i].x[k] = -INFINITY;
            share.logits[id + k] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int32_t k = 0; k < kWidth; ++k) {
        float logit = logits[i].x[k];
        if constexpr (kPenalties) {
          logit = Penalise(settings, generated[i].x[k], in_prompt[i].x[k] != 0, logit);
          if (logit != logits[i].x[k]) {
            share.logits[id + k] = logit;
          }
        }
        if (logit > highest) {
          highest = logit;
          highest_id = id + k;
        }
      }
    }
  }
  return KeyOf(highest, highest_id);
}

// The least key of all threads of the cluster, whose blocks must have begun; a barrier.
__device__ uint64_t ClusterMinimum(uint64_t key, const Cluster& cluster, Shared& shared) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
  key = WarpMinimum(key);
  if (lane < cluster.blocks) {
    *OfBlockInCluster(&shared.warp_first[cluster.block][warp], lane) = key;
  }
  cluster.Barrier();
  const uint64_t* keys = shared.warp_first[0];
  key = kLastKey;
#pragma unroll
  for (int32_t i = lane; i < kSampleBlocks * kSampleWarps; i += kWarpLanes) {
    key = i < cluster.blocks * kSampleWarps ? Minimum(key, keys[i]) : key;
  }
  return WarpMinimum(key);
}

// ---- A cut

// What a candidate counts: one, or its mass where that is at least min_p.
struct Weight {
  __device__ uint64_t operator()(float logit) const {
    if (!mass) {
      return 1;
    }
    if (highest - logit > 28.0f * temperature) {
      return 0;  // e^-28 is less than a unit
    }
    const float relative = expf((logit - highest) / temperature);
    return relative >= min_p ? static_cast<uint64_t>(relative * kMassUnits) : 0;
  }

  bool mass;
  float highest;
  float temperature;
  float min_p;
};

// Which bucket a candidate belongs to: all to one, or by its distance from the highest logit, or by
// bits of its key. Each ascends with the key.
struct Digit {
  enum Kind { kNone, kDistance, kKey };

  __device__ int32_t OfDistance(float logit) const {
    // To the nearest 128th, as a float's last bit stands for one at 2^23; all beyond are the last.
    constexpr float kPerUnit = 128.0f;
    constexpr float kOne = 8388608.0f;
    const float distance = fminf(highest - logit, static_cast<float>(kBuckets - 1) / kPerUnit);
    return static_cast<int32_t>(__float_as_uint(__fmaf_rn(distance, kPerUnit, kOne)) - 0x4B000000u);
  }
  __device__ int32_t OfKey(uint64_t key) const {
    return static_cast<int32_t>(key >> shift) & (kBuckets - 1);
  }

  float highest;
  Kind kind;
  int32_t shift;  // of the key
};

// Candidates of a row: those with a key in [low, high].
struct Range {
  // Whether a logit may be in it, before its key is made.
  __device__ bool MayHold(float logit) const { return !(logit < LogitOf(high)); }
  __device__ bool Holds(uint64_t key) const { return low <= key && key <= high; }

  uint64_t low;
  uint64_t high;
};

// The histogram of the block's share. All threads; no block may still read the last one.
template <int32_t kWidth>
__device__ __forceinline__ void FillHistogram(const Share<kWidth>& share, const Weight& weight,
                                              const Range& range, const Digit& digit,
                                              Shared& shared) {
#pragma unroll
  for (int32_t i = 0; i < kBuckets; i += kSampleThreads) {
    shared.histogram[i + threadIdx.x] = {0, 0};
  }
  __syncthreads();
  uint64_t last = 0;  // weight in the last bucket, which takes the bulk of a peaked distribution
  share.ForLogits([&](int32_t id, float logit) {
    if (!range.MayHold(logit)) {
      return;
    }
    const uint64_t key = KeyOf(logit, id);
    const uint64_t w = range.Holds(key) ? weight(logit) : 0;
    if (w == 0) {
      return;
    }
    const int32_t bucket =
        digit.kind == Digit::kDistance ? digit.OfDistance(logit) : digit.OfKey(key);
    if (bucket == kBuckets - 1) {
      last += w;
    } else {
      AddWeight(shared.histogram[bucket], w);
    }
  });
  last = WarpSum(last);
  if (threadIdx.x % kWarpLanes == 0 && last != 0) {
    AddWeight(shared.histogram[kBuckets - 1], last);
  }
}

// In the sum of the cluster's histograms: the bucket in which the cumulated weight exceeds a
// threshold that threshold_of makes of the total goes to shared.bucket, what of the threshold the
// buckets before leave to shared.threshold. All threads; one barrier of the cluster.
template <typename ThresholdOf>
__device__ __forceinline__ void FindBucket(const Cluster& cluster, ThresholdOf threshold_of,
                                           Shared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpLanes;
  const int32_t warp = thread / kWarpLanes;
  __syncthreads();
  uint64_t of_run = 0;
#pragma unroll
  for (int32_t i = lane; i < kRun; i += kWarpLanes) {
    of_run += WeightOf(shared.histogram[warp * kRun + i]);
  }
  of_run = WarpSum(of_run);
  if (lane < cluster.blocks) {
    *OfBlockInCluster(&shared.run_sums[cluster.block][warp], lane) = of_run;
  }
  cluster.Barrier();
  // The run: every warp for itself.
  of_run = 0;
  if (lane < kSampleWarps) {
    for (int32_t block = 0; block < cluster.blocks; ++block) {
      of_run += shared.run_sums[block][lane];
    }
  }
  uint64_t up_to = SumUpToLane(of_run, lane);
  uint64_t threshold = threshold_of(__shfl_sync(kWholeWarp, up_to, kWarpLanes - 1));
  const int32_t run = __ffs(static_cast<int32_t>(__ballot_sync(kWholeWarp, up_to > threshold))) - 1;
  threshold -= __shfl_sync(kWholeWarp, up_to - of_run, run);
  // The bucket: two threads for one, each with every other block.
  const int32_t bucket = run * kRun + thread / kBucketThreads;
  uint64_t weight = 0;
#pragma unroll
  for (int32_t i = 0; i < kSampleBlocks; i += kBucketThreads) {
    if (const int32_t block = i + thread % kBucketThreads; block < cluster.blocks) {
      weight += WeightOf(*OfBlockInCluster(&shared.histogram[bucket], block));
    }
  }
  up_to = SumUpToLane(weight, lane);
  weight += __shfl_xor_sync(kWholeWarp, weight, 1);
  if (lane == kWarpLanes - 1) {
    shared.warp_sums[warp] = up_to;
  }
  __syncthreads();
  for (int32_t other = 0; other < warp; ++other) {
    up_to += shared.warp_sums[other];
  }
  if (const uint64_t before = up_to - weight;
      lane % kBucketThreads == kBucketThreads - 1 && before <= threshold && threshold < up_to) {
    shared.bucket = bucket;
    shared.threshold = threshold - before;
  }
  __syncthreads();
}

// The keys and weights of a bucket's candidates to shared.keys and shared.weights, unless there are
// more than kMostCandidates: the range of their keys then goes to `range`. Those that weigh nothing
// count as none. Returns their number. turn: which of shared.own is clear; goes on to the other.
// All threads; one barrier of the cluster.
template <int32_t kWidth>
__device__ __forceinline__ int32_t Gather(const Share<kWidth>& share, const Weight& weight,
                                          const Digit& digit, int32_t bucket, Range& range,
                                          int32_t& turn, Shared& shared) {
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpLanes;
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpLanes;
  Gathered& own = shared.own[turn];
  uint64_t low = kLastKey;
  uint64_t high = 0;
  share.ForLogits([&](int32_t id, float logit) {
    if (digit.kind == Digit::kDistance ? digit.OfDistance(logit) != bucket
                                       : !range.MayHold(logit)) {
      return;
    }
    const uint64_t key = KeyOf(logit, id);
    if (!range.Holds(key) || (digit.kind == Digit::kKey && digit.OfKey(key) != bucket) ||
        weight(logit) == 0) {
      return;
    }
    if (const int32_t place = atomicAdd(&own.count, 1); place < kMostCandidates) {
      own.keys[place] = key;
    }
    low = Minimum(low, key);
    high = Maximum(high, key);
  });
  if (__any_sync(kWholeWarp, low <= high)) {
    low = WarpMinimum(low);
    high = WarpMaximum(high);
    if (lane == 0) {
      atomicMin(&own.low, low);
      atomicMax(&own.high, high);
    }
  }
  share.cluster.Barrier();
  turn ^= 1;
  if (threadIdx.x == 0) {
    shared.own[turn].Clear();  // which all blocks had read before this barrier
  }
  const int32_t blocks = share.cluster.blocks;
  const Gathered& of_block = *OfBlockInCluster(&own, lane < blocks ? lane : 0);
  const int32_t count = lane < blocks ? of_block.count : 0;
  const int32_t up_to = SumUpToLane(count, lane);
  const int32_t candidates = __shfl_sync(kWholeWarp, up_to, kWarpLanes - 1);
  if (candidates > kMostCandidates) {
    range = {WarpMinimum(of_block.low), WarpMaximum(of_block.high)};
    return candidates;
  }
  if (warp < blocks) {  // a warp brings the candidates of a block
    const uint64_t* keys = OfBlockInCluster(own.keys, warp);
    const int32_t from_block = __shfl_sync(kWholeWarp, count, warp);
    const int32_t first = __shfl_sync(kWholeWarp, up_to, warp) - from_block;
    for (int32_t i = lane; i < from_block; i += kWarpLanes) {
      const uint64_t key = keys[i];
      shared.keys[first + i] = key;
      shared.weights[first + i] = weight(LogitOf(key));
    }
  }
  __syncthreads();
  return candidates;
}

// The sum of shared.weights, for every thread.
__device__ uint64_t WeightGathered(int32_t candidates, const Shared& shared) {
  uint64_t sum = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % kWarpLanes; i < candidates;
       i += kWarpLanes) {
    sum += shared.weights[i];
  }
  return WarpSum(sum);
}

// Of the gathered candidates, the first at which the cumulated weight exceeds `threshold`.
__device__ uint64_t FirstGathered(int32_t candidates, uint64_t threshold, Shared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t candidate = thread / kCandidateThreads;
  const uint64_t key = shared.keys[candidate];  // of no candidate behind the last
  uint64_t before = 0;
#pragma unroll 4
  for (int32_t i = thread % kCandidateThreads; i < candidates; i += kCandidateThreads) {
    before += shared.keys[i] < key ? shared.weights[i] : 0;
  }
  before += __shfl_xor_sync(kWholeWarp, before, 1);
  if (candidate < candidates && thread % kCandidateThreads == 0 && before <= threshold &&
      threshold < before + shared.weights[candidate]) {
    shared.found = key;
  }
  __syncthreads();
  return shared.found;
}

// The key of the first candidate, up to `last`, at which the cumulated weight exceeds the threshold
// that threshold_of makes of the total, and which is less. All threads of the cluster.
template <int32_t kWidth, typename ThresholdOf>
__device__ __forceinline__ uint64_t FirstBeyond(const Share<kWidth>& share, const Weight& weight,
                                                uint64_t last, ThresholdOf threshold_of,
                                                int32_t& turn, Shared& shared) {
  Range range{0, last};
  // An earlier cut may have left few.
  Digit digit{weight.highest, last == kLastKey ? Digit::kDistance : Digit::kNone, 0};
  for (;;) {
    if (digit.kind != Digit::kNone) {
      FillHistogram(share, weight, range, digit, shared);
      FindBucket(
          share.cluster,
          [&](uint64_t total) {
            return digit.kind == Digit::kDistance ? threshold_of(total) : shared.threshold;
          },
          shared);
    }
    const int32_t candidates = Gather(share, weight, digit, shared.bucket, range, turn, shared);
    if (candidates <= kMostCandidates) {
      return FirstGathered(candidates,
                           digit.kind == Digit::kNone
                               ? threshold_of(WeightGathered(candidates, shared))
                               : shared.threshold,
                           shared);
    }
    if (digit.kind == Digit::kNone) {
      digit.kind = Digit::kDistance;
    } else {
      const int32_t differing = 64 - __clzll(static_cast<int64_t>(range.low ^ range.high));
      digit.kind = Digit::kKey;
      digit.shift = max(0, differing - kDigitBits);
    }
  }
}

// One draw with shared.settings and shared.u, as the reference backend defines it. All threads of
// the cluster; its blocks may still read each other's shared memory.
template <int32_t kWidth>
__device__ __forceinline__ uint64_t Draw(const Share<kWidth>& share, float highest,
                                         Shared& shared) {
  const SlotSampling& settings = shared.settings;
  enum Cut { kTopK, kTopP, kDraw, kCuts };
  uint64_t last = kLastKey;
  int32_t turn = 0;
#pragma unroll 1
  for (int32_t cut = kTopK; cut < kCuts; ++cut) {
    if (cut == kTopK ? settings.top_k <= 0 || settings.top_k >= share.count
                     : cut == kTopP && !(settings.top_p < 1.0f)) {
      continue;
    }
    const auto threshold = [&](uint64_t total) {
      if (cut == kTopK) {
        return static_cast<uint64_t>(settings.top_k) - 1;
      }
      const float part = cut == kTopP ? settings.top_p : shared.u;
      const double mass = static_cast<double>(part) * static_cast<double>(total);
      if (cut == kDraw) {
        return static_cast<uint64_t>(mass);
      }
      const auto wanted = static_cast<uint64_t>(ceil(mass));
      return wanted > 0 ? wanted - 1 : 0;
    };
    const Weight weight{cut != kTopK, highest, settings.temperature,
                        cut == kDraw ? settings.min_p : 0.0f};
    last = FirstBeyond(share, weight, last, threshold, turn, shared);
  }
  return last;
}

template <int32_t kWidth>
__global__ void __launch_bounds__(kSampleThreads, 2)
    SampleKernel(const __grid_constant__ SampleParams params) {
  __shared__ Shared shared;
  LetNextKernelStart();
  const int32_t blocks = ClusterBlocks();
  const int32_t index = static_cast<int32_t>(blockIdx.x) / blocks;
  const Cluster cluster{blocks, static_cast<int32_t>(blockIdx.x) - index * blocks};
  if (index >= params.batch.counts[kLogitRows]) {
    WaitForEarlierKernels();
    return;
  }
  const int32_t row = params.batch.logit_row[index];
  const int32_t slot = params.batch.row_slot[row];
  if (threadIdx.x == 0) {  // a copy set the slot's settings up
    const auto position = static_cast<uint64_t>(params.batch.row_position[row]) + 1;
    shared.settings = params.sampling[slot];
    shared.own[0].Clear();
    shared.u = UniformFloat(Philox(shared.settings.seed, position)[0]);
  }
  __syncthreads();
  const SlotSampling& settings = shared.settings;
  const int64_t of_slot = int64_t{slot} * params.vocab_size;
  int32_t* counts = params.token_counts + of_slot;
  const uint8_t* seen = params.prompt_seen + of_slot;
  const Share<kWidth> share{cluster, params.logits + int64_t{index} * params.vocab_size,
                            params.vocab_size};
  // What may still be written is not read, but its way is prepared: the logits' addresses are
  // translated, what penalties look at comes to the second-level cache.
  if (threadIdx.x % kWarpLanes == 0 && share.FirstId() < share.count) {
    PrefetchToL2(share.logits + share.FirstId());
  }
  if (settings.penalties != 0) {
#pragma unroll 1
    for (int32_t id = share.FirstId(); id < share.count; id += share.Step()) {
      PrefetchToL2(counts + id);
      PrefetchToL2(seen + id);
    }
  }
  if (blocks > 1) {  // all have begun before one writes to another
    ArriveInCluster();
    WaitForCluster();
  }
  WaitForEarlierKernels();

  uint64_t first = settings.penalties != 0 ? FirstOfThread<true>(share, settings, counts, seen)
                                           : FirstOfThread<false>(share, settings, counts, seen);
  first = ClusterMinimum(first, cluster, shared);
  const float highest = LogitOf(first);
  const bool draws = settings.temperature != 0.0f && !isinf(highest);
  const uint64_t drawn = draws ? Draw(share, highest, shared) : first;
  if (cluster.block == 0 && threadIdx.x == 0) {
    const int32_t token = IdOf(drawn);
    if (settings.penalties != 0) {
      ++counts[token];
    }
    params.last_token[slot] = token;
    params.sampled[index] = token;
  }
  if (draws) {
    cluster.Barrier();  // no block reads another's shared memory any more
  }
}

// Blocks that share a row: as many as the device has multiprocessors for and the row work, where
// there are clusters. The result does not depend on it.
int32_t BlocksOfRow(const SampleParams& params, int32_t width) {
  int32_t blocks = 1;
  while (HasDependentLaunch() && blocks < kSampleBlocks &&
         params.batch.max_logit_rows * 2 * blocks <= Multiprocessors() &&
         params.vocab_size > blocks * kSampleThreads * width) {
    blocks *= 2;
  }
  return blocks;
}

template <int32_t kWidth>
void Run(const SampleParams& params, cudaStream_t stream) {
  const int32_t blocks = BlocksOfRow(params, kWidth);
  LaunchDependentClusters("sample", SampleKernel<kWidth>, blocks,
                          dim3(static_cast<unsigned>(params.batch.max_logit_rows * blocks)),
                          kSampleThreads, stream, params);
}

}  // namespace

void Sample(const SampleParams& params, cudaStream_t stream) {
  CHECK_LE(params.vocab_size, 1 << kIdBits);
  if (params.batch.max_logit_rows == 0) {
    return;
  }
  // Where all rows begin at a multiple of 16 bytes, four elements come at once.
  const auto aligned = [](const void* data, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  };
  if (params.vocab_size % 4 == 0 && aligned(params.logits, 16) &&
      aligned(params.token_counts, 16) && aligned(params.prompt_seen, 4)) {
    Run<4>(params, stream);
  } else {
    Run<1>(params, stream);
  }
}

}  // namespace lserve::cuda
