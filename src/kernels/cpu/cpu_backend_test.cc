// What is particular to the CPU backend: the team, the queue's memory, the order of elements in a
// page, and that every variant the machine has computes the same.
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_stream.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/page_layout.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/simd.h"
// Highway's targets come after the choice of simd.h.
#include "hwy/targets.h"

namespace {

// Counts allocations of the whole program; tests compare before and after.
std::atomic<int64_t> g_allocations{0};

void* CountedAllocation(size_t size, size_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* data = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (data == nullptr) {
    std::abort();
  }
  return data;
}

}  // namespace

void* operator new(size_t size) { return CountedAllocation(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return CountedAllocation(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return CountedAllocation(size, alignof(std::max_align_t));
}
void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return CountedAllocation(size, static_cast<size_t>(alignment));
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { std::free(data); }

namespace lserve::cpu {
namespace {

std::vector<BFloat16> RandomValues(int64_t count, float range, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-range, range);
  std::vector<BFloat16> values(static_cast<size_t>(count));
  for (BFloat16& value : values) {
    value = ToBFloat16(uniform(random));
  }
  return values;
}

std::unique_ptr<Backend> MakeBackendWithThreads(int32_t threads) {
  return std::move(MakeCpuBackend({.threads = threads})).value();
}

// ---- Team and queue

struct CountParams {
  std::atomic<int64_t>* total;
  std::vector<int64_t>* seen;
  int64_t tasks;
};

void RunCount(const CountParams& params, Team& team) {
  for (int64_t task = team.Next(); task < params.tasks; task = team.Next()) {
    params.total->fetch_add(1);
  }
  team.ResetNext();
  // All of the first phase is visible behind the barrier.
  if (params.total->load() % params.tasks != 0) {
    params.total->fetch_add(1'000'000);
  }
  team.Barrier();
  for (int64_t task = team.Next(); task < params.tasks; task = team.Next()) {
    (*params.seen)[static_cast<size_t>(task)] += 1;
  }
}

TEST(Team, HandsOutEveryTaskOnceInEveryOperation) {
  for (const int32_t threads : {1, 2, 3, 5}) {
    CpuStream stream(threads);
    constexpr int64_t kTasks = 37;
    constexpr int64_t kOperations = 200;
    std::atomic<int64_t> total{0};
    std::vector<int64_t> seen(kTasks, 0);
    for (int64_t i = 0; i < kOperations; ++i) {
      AppendOp<CountParams, RunCount>(stream, {&total, &seen, kTasks});
    }
    ASSERT_TRUE(stream.Synchronize().ok());
    EXPECT_EQ(total.load(), kTasks * kOperations) << threads << " threads";
    EXPECT_EQ(seen, std::vector<int64_t>(kTasks, kOperations)) << threads << " threads";
  }
}

struct SlowParams {
  std::atomic<int64_t>* total;
};

// One thread comes late: the others outlast the spin and must wake again.
void RunSlow(const SlowParams& params, Team& team) {
  if (team.thread() == 0) {
    struct timespec pause = {0, 2'000'000};
    nanosleep(&pause, nullptr);
    params.total->fetch_add(1);
  }
  team.Barrier();
  if (params.total->load() == 0) {
    params.total->fetch_add(1'000'000);
  }
}

TEST(Team, BarrierWakesThreadsThatSleep) {
  CpuStream stream(2);
  std::atomic<int64_t> total{0};
  for (int i = 0; i < 10; ++i) {
    AppendOp<SlowParams, RunSlow>(stream, {&total});
  }
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(total.load(), 10);
}

struct AppendNumberParams {
  std::vector<int>* out;
  int number;
};

void RunAppendNumber(const AppendNumberParams& params, Team& team) {
  if (team.thread() == 0) {
    params.out->push_back(params.number);
  }
}

TEST(Stream, RunsInOrderAndGraphsAgainAndAgain) {
  CpuStream stream(2);
  std::vector<int> out;
  stream.BeginCapture();
  AppendOp<AppendNumberParams, RunAppendNumber>(stream, {&out, 2});
  AppendOp<AppendNumberParams, RunAppendNumber>(stream, {&out, 3});
  const std::unique_ptr<Graph> graph = stream.EndCapture();
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_TRUE(out.empty());
  AppendOp<AppendNumberParams, RunAppendNumber>(stream, {&out, 1});
  stream.Launch(*graph);
  AppendOp<AppendNumberParams, RunAppendNumber>(stream, {&out, 4});
  stream.Launch(*graph);
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(out, (std::vector<int>{1, 2, 3, 4, 2, 3}));
}

TEST(Stream, LaunchedDecodeStepAllocatesNothing) {
  const std::unique_ptr<Backend> backend = MakeBackendWithThreads(2);
  const std::unique_ptr<Stream> stream = backend->MakeStream();
  constexpr int32_t kHidden = 96;
  constexpr int32_t kVocab = 515;
  constexpr int32_t kRows = 3;
  int32_t counts[kBatchCounts] = {kRows, 0, 0, kRows};
  int32_t slots[kRows] = {0, 1, 2};
  int32_t positions[kRows] = {0, 64, 65};
  int32_t tokens[kRows] = {-1, -1, -1};
  int32_t logit_rows[kRows] = {0, 1, 2};
  const BatchView batch{counts, slots, positions, tokens, nullptr, logit_rows,
                        kRows,  kRows, 0,         kRows,  kRows};
  const std::vector<BFloat16> table = RandomValues(kVocab * kHidden, 1.0f, 1);
  const std::vector<BFloat16> norm = RandomValues(kHidden, 1.0f, 2);
  std::vector<BFloat16> x((kRows + kRowSlack) * kHidden);
  std::vector<BFloat16> normed = x;
  std::vector<float> logits(kRows * kVocab);
  std::vector<SlotSampling> sampling(kRows,
                                     SlotSampling{0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 1});
  sampling[1].temperature = 0.7f;
  sampling[1].top_p = 0.9f;
  std::vector<int32_t> token_counts(kRows * kVocab);
  std::vector<uint8_t> seen(kRows * kVocab);
  std::vector<int32_t> last_token(kRows);
  std::vector<int32_t> sampled(kRows);
  const auto head = std::move(backend->PackLinear({table.data(), DType::kBFloat16, kVocab, kHidden},
                                                  DType::kBFloat16, false))
                        .value();
  const Ops& ops = backend->ops();
  stream->BeginCapture();
  ops.embed_rows.run(*stream, {batch, table.data(), DType::kBFloat16, last_token.data(), x.data(),
                               DType::kBFloat16, kVocab, kHidden});
  ops.add_rms_norm.run(*stream, {batch, RowSet::kLogits, x.data(), nullptr, norm.data(),
                                 normed.data(), DType::kBFloat16, kHidden, 1e-5f});
  ops.linear.run(*stream, {batch, RowSet::kLogits, head.get(), normed.data(), logits.data(),
                           nullptr, DType::kBFloat16, DType::kFloat32, Epilogue::kNone, nullptr});
  ops.sample.run(*stream, {batch, logits.data(), sampling.data(), token_counts.data(), seen.data(),
                           last_token.data(), sampled.data(), kVocab, nullptr});
  const std::unique_ptr<Graph> graph = stream->EndCapture();
  const auto step = [&] {
    stream->Launch(*graph);
    ASSERT_TRUE(stream->Synchronize().ok());
  };
  step();  // warm: scratch and arena grow here
  const int64_t before = g_allocations.load();
  for (int i = 0; i < 5; ++i) {
    step();
  }
  EXPECT_EQ(g_allocations.load() - before, 0);
  EXPECT_EQ(last_token, sampled);
}

// ---- Memory and facts

TEST(Memory, IsZeroAlignedAndCounted) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4097}, int64_t{3} << 20}) {
    Result<Buffer> buffer = AllocateZeroed(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    for (int64_t i = 0; i < bytes; i += 997) {
      ASSERT_EQ(buffer->data()[i], std::byte{0});
    }
  }
  EXPECT_EQ(AllocateZeroed(int64_t{1} << 60).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(AllocateZeroed(-1).status().code(), StatusCode::kInvalidArgument);
}

TEST(CpuBackend, FactsAndRefusals) {
  const std::unique_ptr<Backend> backend = MakeBackendWithThreads(0);
  EXPECT_EQ(backend->facts().threads, AvailableCpus());
  EXPECT_GT(backend->facts().memory_bytes, 0);
  EXPECT_GT(backend->facts().free_bytes, 0);
  EXPECT_LE(backend->facts().free_bytes, backend->facts().memory_bytes);
  EXPECT_FALSE(backend->facts().name.empty());
  EXPECT_EQ(backend->SupportsActivations(DType::kFloat32).message(),
            "float32 activations run on --device ref");
  EXPECT_EQ(MakeCpuBackend({.threads = -3}).status().code(), StatusCode::kInvalidArgument);
  const float weight[6] = {};
  EXPECT_EQ(
      backend->PackLinear({weight, DType::kFloat32, 3, 2}, DType::kBFloat16, true).status().code(),
      StatusCode::kInvalidArgument);
}

// ---- Page layout

TEST(PageLayout, EveryElementHasItsOwnPlace) {
  for (const int32_t padded : {32, 64, 96, 128, 256}) {
    std::set<int64_t> keys;
    std::set<int64_t> values;
    for (int32_t token = 0; token < kPageTokens; ++token) {
      for (int32_t d = 0; d < padded; ++d) {
        const int64_t unit = int64_t{token / kUnitTokens} * kUnitTokens * padded;
        const int64_t key = KeyIndex(token, d, padded);
        const int64_t value = ValueIndex(token, d, padded);
        EXPECT_TRUE(key >= unit && key < unit + kUnitTokens * padded);
        EXPECT_TRUE(value >= unit && value < unit + kUnitTokens * padded);
        keys.insert(key);
        values.insert(value);
      }
    }
    EXPECT_EQ(keys.size(), static_cast<size_t>(kPageTokens * padded));
    EXPECT_EQ(values.size(), static_cast<size_t>(kPageTokens * padded));
    std::set<int64_t> stats;
    for (int32_t logical = 0; logical < kPageTokens / kLogicalPageTokens; ++logical) {
      for (int32_t d = 0; d < padded; ++d) {
        stats.insert(StatsIndex(logical, d, padded));
        stats.insert(StatsIndex(logical, d, padded) + 1);
      }
    }
    EXPECT_EQ(stats.size(), static_cast<size_t>(8 * padded));
    EXPECT_EQ(*stats.rbegin(), 8 * padded - 1);
  }
}

// ---- Linear layers

std::unique_ptr<CpuLinear> Packed(const LinearWeight& weight, bool fused_silu) {
  Buffer memory = AllocateZeroed(CpuLinear::PackedBytes(weight, fused_silu)).value();
  return std::make_unique<CpuLinear>(weight, fused_silu, std::move(memory));
}

TEST(CpuLinear, PanelsHoldTheWeightInEveryDType) {
  constexpr int64_t kRows = 37;
  constexpr int64_t kDepth = 45;
  const std::vector<BFloat16> weight = RandomValues(kRows * kDepth, 2.0f, 3);
  std::vector<float> floats;
  for (const BFloat16 value : weight) {
    floats.push_back(ToFloat(value));
  }
  const auto linear = Packed({weight.data(), DType::kBFloat16, kRows, kDepth}, false);
  const auto from_float = Packed({floats.data(), DType::kFloat32, kRows, kDepth}, false);
  ASSERT_EQ(linear->panels(), 3);
  ASSERT_EQ(linear->padded_depth(), 64);
  for (int64_t n = 0; n < 3 * kPanelColumns; ++n) {
    for (int64_t k = 0; k < linear->padded_depth(); ++k) {
      const int64_t index = k / 2 * 32 + n % 16 * 2 + k % 2;
      const uint16_t stored = linear->panel(n / 16)[index].bits;
      const bool real = n < kRows && k < kDepth;
      ASSERT_EQ(stored, real ? weight[static_cast<size_t>(n * kDepth + k)].bits : 0)
          << n << " " << k;
      ASSERT_EQ(stored, from_float->panel(n / 16)[index].bits);
    }
  }
}

TEST(CpuLinear, GateAndUpPanelsAlternate) {
  constexpr int64_t kHalf = 20;
  constexpr int64_t kDepth = 32;
  const std::vector<BFloat16> weight = RandomValues(2 * kHalf * kDepth, 2.0f, 4);
  const auto linear = Packed({weight.data(), DType::kBFloat16, 2 * kHalf, kDepth}, true);
  ASSERT_EQ(linear->panels(), 4);
  for (int64_t n = 0; n < kHalf; ++n) {
    for (const bool up : {false, true}) {
      const BFloat16 expected = weight[static_cast<size_t>((n + (up ? kHalf : 0)) * kDepth)];
      EXPECT_EQ(linear->panel(n / 16 * 2 + (up ? 1 : 0))[n % 16 * 2].bits, expected.bits);
    }
  }
}

struct Shape {
  int64_t columns;
  int64_t depth;
};

// Every kernel of a list against sums in double, and every row with the same bits wherever it
// stands.
void CheckKernels(std::span<const ProductKernel> kernels, int32_t rows) {
  for (const Shape shape : {Shape{16, 32}, Shape{48, 256}, Shape{80, 96}, Shape{208, 4096}}) {
    const std::vector<BFloat16> weight = RandomValues(shape.columns * shape.depth, 1.0f, 5);
    const std::vector<BFloat16> input = RandomValues(2 * rows * shape.depth, 1.0f, 6);
    const auto linear =
        Packed({weight.data(), DType::kBFloat16, shape.columns, shape.depth}, false);
    ThreadScratch scratch;
    const auto width = static_cast<size_t>(linear->slice_panels() * kPanelColumns);
    for (const ProductKernel& kernel : kernels) {
      if (!kernel.supports(*linear)) {
        continue;
      }
      const auto run = [&](int32_t first_row) {
        std::vector<float> output(static_cast<size_t>(rows) * width);
        kernel.run({linear.get(), input.data() + first_row * shape.depth, shape.depth, rows, 0,
                    linear->slice_panels(), output.data(),
                    scratch.Get(KernelScratchBytes(*linear))});
        return output;
      };
      const std::vector<float> base = run(0);
      for (int32_t r = 0; r < rows; r += 3) {
        for (size_t n = 0; n < width; n += 5) {
          double sum = 0.0;
          double size = 0.0;
          for (int64_t k = 0; k < shape.depth; ++k) {
            const double product =
                static_cast<double>(ToFloat(input[static_cast<size_t>(r * shape.depth + k)])) *
                static_cast<double>(
                    ToFloat(weight[n * static_cast<size_t>(shape.depth) + static_cast<size_t>(k)]));
            sum += product;
            size += std::abs(product);
          }
          ASSERT_NEAR(static_cast<double>(base[static_cast<size_t>(r) * width + n]), sum,
                      1e-6 * size)
              << kernel.name << " row " << r << " column " << n << " depth " << shape.depth;
        }
      }
      for (const int32_t shift : {1, 5, 16, 31}) {
        if (shift >= rows) {
          continue;
        }
        const std::vector<float> shifted = run(shift);
        EXPECT_EQ(std::memcmp(shifted.data(), base.data() + static_cast<size_t>(shift) * width,
                              static_cast<size_t>(rows - shift) * width * sizeof(float)),
                  0)
            << kernel.name << ": a row's bits depend on its place, depth " << shape.depth;
      }
    }
  }
}

TEST(CpuLinear, TileKernelsAgreeAndRowsStandAlone) { CheckKernels(TileKernels(), kTileRows); }

TEST(CpuLinear, RowKernelsAgreeAndRowsStandAlone) {
  for (const int32_t rows : {1, 2, 3, 4, 7, 13}) {
    CheckKernels(RowKernels(), rows);
  }
}

// ---- Highway targets

// Runs `check` with each target that this program and this machine have.
template <typename Check>
void ForEachTarget(Check check) {
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSSE3}) {
    if ((hwy::SupportedTargets() & target) == 0) {
      continue;
    }
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    check();
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
}

double MaxDifference(const std::vector<BFloat16>& a, const std::vector<BFloat16>& b) {
  double worst = a.size() == b.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(ToFloat(a[i]) - ToFloat(b[i]))));
  }
  return worst;
}

TEST(HighwayTargets, NormSiluAndKeysAgree) {
  constexpr int32_t kRows = 21;
  constexpr int32_t kHidden = 100;
  int32_t counts[kBatchCounts] = {0, kRows, 1, 0};
  std::vector<int32_t> slots(kRows, 0);
  std::vector<int32_t> positions(kRows);
  for (int32_t i = 0; i < kRows; ++i) {
    positions[static_cast<size_t>(i)] = 7 + i;
  }
  PrefillChunk chunk{0, 7, 0, kRows, 0, 0};
  const BatchView batch{
      counts, slots.data(), positions.data(), nullptr, &chunk, nullptr, kRows, 0, 1, 0, 1};
  const std::vector<BFloat16> input = RandomValues((kRows + kRowSlack) * 320, 2.0f, 8);
  const std::vector<BFloat16> norm = RandomValues(kHidden, 1.0f, 9);
  const std::vector<BFloat16> gate_up = RandomValues(2 * 40 * kHidden, 0.5f, 10);
  const auto linear = Packed({gate_up.data(), DType::kBFloat16, 80, kHidden}, true);
  // One retrieval head of 80 dims with bias and k norm, whose page the chunk enters at token 7.
  constexpr int32_t kDim = 80;
  const std::vector<BFloat16> bias = RandomValues(4 * kDim, 1.0f, 11);
  std::vector<float> angles((kRows + kRowSlack) * kDim);
  for (size_t i = 0; i < angles.size(); i += 2) {
    angles[i] = std::cos(static_cast<float>(i));
    angles[i + 1] = std::sin(static_cast<float>(i));
  }

  std::vector<std::vector<BFloat16>> results;
  ForEachTarget([&] {
    std::vector<BFloat16> residual(input.begin(), input.begin() + kRows * kHidden);
    std::vector<BFloat16> normed(kRows * kHidden);
    std::vector<BFloat16> silu(kRows * 40);
    RetrievalLane lane{};
    lane.layout = MakeKvPageLayout(1, kDim, KvFormat::kBFloat16, PageScore::kMinMax);
    std::vector<std::byte> page(static_cast<size_t>(lane.layout.page_bytes()));
    lane.open = page.data();
    lane.max_pages = 1;
    std::vector<BFloat16> q(kRows * 2 * kDim);
    ThreadScratch scratch;
    TeamBarrier barrier(1);
    std::atomic<int64_t> next{0};
    Team team(0, 1, barrier, next, scratch);
    RunAddRmsNorm({batch, RowSet::kBatch, residual.data(), input.data() + 2000, norm.data(),
                   normed.data(), DType::kBFloat16, kHidden, 1e-5f},
                  team);
    RunLinear({batch, RowSet::kBatch, linear.get(), input.data(), silu.data(), nullptr,
               DType::kBFloat16, DType::kBFloat16, Epilogue::kSiluMul, nullptr},
              team);
    next = 0;
    RunRopeAppend({batch, input.data(), bias.data(), norm.data(), norm.data(), angles.data(),
                   q.data(), lane, StreamingLane{}, DType::kBFloat16, 2, 1, kDim, 1e-5f},
                  team);
    std::vector<BFloat16> all = residual;
    all.insert(all.end(), normed.begin(), normed.end());
    all.insert(all.end(), silu.begin(), silu.end());
    all.insert(all.end(), q.begin(), q.end());
    const auto* stored = reinterpret_cast<const BFloat16*>(page.data());
    all.insert(all.end(), stored, stored + page.size() / sizeof(BFloat16));
    results.push_back(all);
  });
  ASSERT_FALSE(results.empty());
  double largest = 0.0;
  for (const BFloat16 value : results[0]) {
    largest = std::max(largest, std::abs(static_cast<double>(ToFloat(value))));
  }
  for (const std::vector<BFloat16>& result : results) {
    // Sums differ in their order: at most one rounding step of a stored value.
    EXPECT_LE(MaxDifference(result, results[0]), largest / 128.0);
  }
}

}  // namespace
}  // namespace lserve::cpu
