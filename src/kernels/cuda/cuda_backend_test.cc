// What is particular to the CUDA backend: memory, the order of copies, recorded steps.
#include <gmock/gmock.h>

#include <cstring>
#include <numeric>

#include "kernels/cuda/test_util.h"
#include "tensor/arena.h"

namespace lserve::cuda {
namespace {

using testing::HasSubstr;

class CudaBackendTest : public CudaTest {};

TEST_F(CudaBackendTest, TellsWhatItRunsOn) {
  EXPECT_STREQ(backend_->name(), "cuda");
  EXPECT_FALSE(backend_->facts().name.empty());
  EXPECT_GT(backend_->facts().free_bytes, 0);
  EXPECT_LE(backend_->facts().free_bytes, backend_->facts().memory_bytes);
  EXPECT_TRUE(backend_->SupportsActivations(DType::kBFloat16).ok());
  EXPECT_THAT(backend_->SupportsActivations(DType::kFloat32).message(), HasSubstr("float32"));
}

TEST_F(CudaBackendTest, MemoryIsZeroAlsoWhenItIsRecycled) {
  constexpr int64_t kBytes = 1 << 20;
  for (int round = 0; round < 3; ++round) {
    const Buffer buffer = backend_->Allocate(kBytes).value();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(Download<uint8_t>(buffer, kBytes), std::vector<uint8_t>(kBytes, 0));
    const std::vector<uint8_t> poison(kBytes, 0xFF);
    backend_->CopyToDevice(buffer.data(), poison.data(), kBytes, *stream_);
    ASSERT_TRUE(stream_->Synchronize().ok());
  }
  EXPECT_EQ(backend_->Allocate(0).value().bytes(), 0);
}

TEST_F(CudaBackendTest, MemoryThatIsNotThereIsAnErrorAndNothingElse) {
  const Result<Buffer> too_much = backend_->Allocate(int64_t{1} << 50);
  EXPECT_EQ(too_much.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(too_much.status().message(), HasSubstr("1125899906842624"));
  EXPECT_EQ(Download<uint8_t>(backend_->Allocate(3).value(), 3), std::vector<uint8_t>(3, 0));
}

// One allocation for several buffers; it stays until the last of them goes.
TEST_F(CudaBackendTest, BuffersOfOneBlockGoInAnyOrder) {
  constexpr int64_t kLarge = int64_t{64} << 20;
  Buffer small, large, last;
  ASSERT_TRUE(AllocateTogether(*backend_, {{&small, 3}, {&large, kLarge}, {&last, 100}}).ok());
  EXPECT_EQ(small.data() - large.data(), kLarge + 256);
  EXPECT_EQ(last.data() - large.data(), kLarge);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.data()) % Arena::kLargeAlignment, 0u);
  EXPECT_EQ(Download<uint8_t>(large, kLarge), std::vector<uint8_t>(kLarge, 0));
  const std::vector<uint8_t> ones(100, 1);
  backend_->CopyToDevice(last.data(), ones.data(), 100, *stream_);
  small = Buffer();
  large = Buffer();
  EXPECT_EQ(Download<uint8_t>(last, 100), ones);

  Buffer huge;
  const Status status = AllocateTogether(*backend_, {{&small, 3}, {&huge, int64_t{1} << 50}});
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("1125899906842880"));
  EXPECT_THAT(status.message(), HasSubstr("are free"));
}

// Small copies are staged and large ones waited for; either way the source is the caller's again.
TEST_F(CudaBackendTest, ASourceMayChangeOnceItsCopyIsAppended) {
  for (const int64_t count : {1, 1000, 60'000, 70'000, 3'000'000}) {
    const Buffer buffer = backend_->Allocate(count * 4 * 10).value();
    std::vector<int32_t> source(static_cast<size_t>(count));
    for (int32_t i = 0; i < 10; ++i) {
      std::iota(source.begin(), source.end(), i);
      backend_->CopyToDevice(buffer.As<int32_t>() + i * count, source.data(), count * 4, *stream_);
    }
    std::fill(source.begin(), source.end(), -1);
    const std::vector<int32_t> got = Download<int32_t>(buffer, count * 10);
    for (int32_t i = 0; i < 10; ++i) {
      const auto first = static_cast<size_t>(i * count);
      EXPECT_EQ(got[first], i);
      EXPECT_EQ(got[first + source.size() - 1], i + static_cast<int32_t>(count) - 1);
    }
  }
}

TEST_F(CudaBackendTest, CopiesAndZerosRunInOrder) {
  std::vector<int32_t> values(100, 7);
  const Buffer buffer = Upload(values);
  backend_->Zero(buffer.data() + 40, 80, *stream_);
  values[15] = 9;
  backend_->CopyToDevice(buffer.data() + 60, &values[15], 4, *stream_);
  const std::vector<int32_t> got = Download<int32_t>(buffer, 100);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i], i < 10 || i >= 30 ? 7 : i == 15 ? 9 : 0) << i;
  }
}

// A graph holds addresses; what the arrays say when it is launched is what it does.
TEST_F(CudaBackendTest, ARecordedStepFollowsTheArrays) {
  constexpr int32_t kHidden = 64;
  constexpr int32_t kMaxRows = 40;
  std::vector<BFloat16> table;
  for (int32_t i = 0; i < kMaxRows * kHidden; ++i) {
    table.push_back(ToBFloat16(static_cast<float>(i / kHidden + 1)));
  }
  const Buffer device_table = Upload(table);
  const Buffer output = backend_->Allocate(int64_t{kMaxRows} * kHidden * 2).value();
  TestBatch batch(*backend_, *stream_, kMaxRows);
  EmbedRowsParams params{};
  params.batch = batch.view();
  params.table = device_table.data();
  params.table_dtype = DType::kBFloat16;
  params.last_token = batch.view().row_slot;
  params.output = output.data();
  params.dtype = DType::kBFloat16;
  params.vocab_size = kMaxRows;
  params.hidden = kHidden;

  stream_->BeginCapture();
  backend_->ops().embed_rows.run(*stream_, params);
  const std::unique_ptr<Graph> graph = stream_->EndCapture();
  EXPECT_EQ(Download<BFloat16>(output, 1)[0].bits, 0) << "recording runs nothing";
  for (const auto& [decode, prefill] :
       std::vector<std::pair<int32_t, int32_t>>{{1, 0}, {3, 30}, {0, 5}, {40, 0}}) {
    batch.Set(decode, prefill);
    backend_->Zero(output.data(), output.bytes(), *stream_);
    stream_->Launch(*graph);
    const std::vector<BFloat16> got = Download<BFloat16>(output, kMaxRows * kHidden);
    for (int32_t row = 0; row < kMaxRows; ++row) {
      EXPECT_EQ(ToFloat(got[static_cast<size_t>(row * kHidden + kHidden - 1)]),
                row < decode + prefill ? static_cast<float>(row + 1) : 0.0f)
          << "row " << row << " of " << decode << " and " << prefill;
    }
  }
}

// In a process of its own, because a device that has failed stays failed in this one.
TEST_F(CudaBackendTest, AFailedDeviceIsToldAndNothingAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto fail = [&] {
    TestBatch batch(*backend_, *stream_, 1);
    batch.Set(1, 0);
    const Buffer output = backend_->Allocate(64).value();
    EmbedRowsParams params{};
    params.batch = batch.view();
    params.table = reinterpret_cast<const void*>(uintptr_t{64});  // nobody's memory
    params.table_dtype = DType::kBFloat16;
    params.last_token = batch.view().row_slot;
    params.output = output.data();
    params.dtype = DType::kBFloat16;
    params.vocab_size = 1;
    params.hidden = 8;
    backend_->ops().embed_rows.run(*stream_, params);
    const Status failed = stream_->Synchronize();
    // What comes after runs nothing and says the same.
    backend_->ops().embed_rows.run(*stream_, params);
    backend_->Zero(output.data(), 64, *stream_);
    const Status still = stream_->Synchronize();
    const bool allocates = backend_->Allocate(1 << 20).ok();
    std::fprintf(stderr, "first: %s; then: %s\n", std::string(failed.message()).c_str(),
                 std::string(still.message()).c_str());
    std::_Exit(failed.code() == StatusCode::kInternal && still.code() == StatusCode::kInternal &&
                       !allocates
                   ? 7
                   : 1);
  };
  EXPECT_EXIT(fail(), testing::ExitedWithCode(7), "first: .*illegal.*then: .*illegal");
}

}  // namespace
}  // namespace lserve::cuda
