// What the tests of the CUDA backend share: the backend, or a skip with the reason why there is
// none, and arrays in its memory. Single-threaded.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace lserve::cuda {

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Backend>> backend = MakeCudaBackend(BackendOptions{});
    if (!backend.ok()) {
      GTEST_SKIP() << backend.status().message();
    }
    backend_ = std::move(backend).value();
    stream_ = backend_->MakeStream();
  }

  template <typename T>
  Buffer Upload(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    Buffer buffer = backend_->Allocate(bytes).value();
    backend_->CopyToDevice(buffer.data(), values.data(), bytes, *stream_);
    return buffer;
  }

  template <typename T>
  std::vector<T> Download(const Buffer& buffer, int64_t count, int64_t first = 0) {
    std::vector<T> values(static_cast<size_t>(count));
    backend_->CopyToHost(values.data(), buffer.As<T>() + first,
                         count * static_cast<int64_t>(sizeof(T)), *stream_);
    EXPECT_EQ(stream_->Synchronize().message(), "");
    return values;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
};

// A batch of decode rows and one chunk of prefill rows on a backend; logits of the first rows.
class TestBatch {
 public:
  TestBatch(Backend& backend, Stream& stream, int32_t max_rows)
      : backend_(backend),
        stream_(stream),
        numbers_(backend.Allocate(int64_t{kArrays} * max_rows * 4 + kBatchCounts * 4).value()),
        chunk_(backend.Allocate(static_cast<int64_t>(sizeof(PrefillChunk))).value()) {
    int32_t* array = numbers_.As<int32_t>();
    const auto next = [&] { return std::exchange(array, array + max_rows); };
    view_ = BatchView{.counts = numbers_.As<int32_t>() + int64_t{kArrays} * max_rows,
                      .row_slot = next(),
                      .row_position = next(),
                      .row_token = next(),
                      .chunks = chunk_.As<PrefillChunk>(),
                      .logit_row = next(),
                      .max_rows = max_rows,
                      .max_decode_rows = max_rows,
                      .max_chunks = 1,
                      .max_logit_rows = max_rows,
                      .max_slots = max_rows};
  }

  // Row i is of slot i, at position i, with token i.
  void Set(int32_t decode, int32_t prefill, int32_t logits = 0) {
    const int32_t max_rows = view_.max_rows;
    std::vector<int32_t> numbers;
    for (int32_t i = 0; i < kArrays * max_rows; ++i) {
      numbers.push_back(i % max_rows);
    }
    numbers.insert(numbers.end(), {decode, prefill, prefill > 0 ? 1 : 0, logits});
    const PrefillChunk chunk{decode, decode, decode, prefill, 0, 0};
    backend_.CopyToDevice(numbers_.data(), numbers.data(), std::ssize(numbers) * 4, stream_);
    backend_.CopyToDevice(chunk_.data(), &chunk, sizeof(chunk), stream_);
  }

  const BatchView& view() const { return view_; }

 private:
  static constexpr int32_t kArrays = 4;
  Backend& backend_;
  Stream& stream_;
  Buffer numbers_, chunk_;
  BatchView view_;
};

}  // namespace lserve::cuda
