#include "linear_layers.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace lserve::bench {
namespace {

// Normal numbers of this deviation. The first kBlock are made, the others repeat them; since that
// is a prime, rows differ.
std::vector<BFloat16> RandomNumbers(int64_t count, float deviation, uint32_t seed) {
  constexpr int64_t kBlock = 65521;  // a prime
  std::vector<BFloat16> numbers(static_cast<size_t>(count));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  const auto made = numbers.begin() + std::min(count, kBlock);
  std::generate(numbers.begin(), made, [&] { return ToBFloat16(normal(random)); });
  for (int64_t at = kBlock; at < count; at += kBlock) {
    std::copy_n(numbers.begin(), std::min(kBlock, count - at), numbers.begin() + at);
  }
  return numbers;
}

}  // namespace

LinearLayers::LinearLayers(Backend& backend, const LinearShape& shape)
    : backend_(backend), shape_(shape), stream_(backend.MakeStream()) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(shape.in_features));
  const std::vector<BFloat16> weight =
      RandomNumbers(shape.out_features * shape.in_features, deviation, 1);
  for (int32_t copy = 0; copy < shape.copies; ++copy) {
    weights_.push_back(backend
                           .PackLinear({.data = weight.data(),
                                        .dtype = DType::kBFloat16,
                                        .out_features = shape.out_features,
                                        .in_features = shape.in_features},
                                       DType::kBFloat16, shape.epilogue == Epilogue::kSiluMul)
                           .value());
  }
  const int64_t rows = shape.rows + kRowSlack;
  const std::vector<BFloat16> input = RandomNumbers(rows * shape.in_features, 1.0f, 2);
  input_ = backend.Allocate(std::ssize(input) * 2).value();
  backend.CopyToDevice(input_.data(), input.data(), input_.bytes(), *stream_);
  output_ = backend.Allocate(rows * shape.columns() * 4).value();
  words_ = backend.Allocate((kBatchCounts + rows) * 4).value();
  CHECK_OK(stream_->Synchronize());
}

void LinearLayers::Start(RowKind kind, int32_t rows) {
  CHECK_LE(rows, shape_.rows);
  std::vector<int32_t> words(static_cast<size_t>(words_.bytes() / 4), 0);
  words[kDecodeRows] = kind == RowKind::kPrefill ? 0 : rows;
  words[kPrefillRows] = kind == RowKind::kPrefill ? rows : 0;
  words[kChunks] = kind == RowKind::kPrefill ? 1 : 0;
  words[kLogitRows] = kind == RowKind::kLogits ? rows : 0;
  backend_.CopyToDevice(words_.data(), words.data(), words_.bytes(), *stream_);
  const int32_t* data = words_.As<int32_t>();
  const bool prefill = kind == RowKind::kPrefill;
  // No linear layer reads slots, positions or chunks.
  const BatchView batch{.counts = data,
                        .row_slot = data + kBatchCounts,
                        .row_position = data + kBatchCounts,
                        .row_token = data + kBatchCounts,
                        .chunks = nullptr,
                        .logit_row = data + kBatchCounts,
                        .max_rows = rows,
                        .max_decode_rows = prefill ? 0 : rows,
                        .max_chunks = prefill ? 1 : 0,
                        .max_logit_rows = kind == RowKind::kLogits ? rows : 0,
                        .max_slots = std::max(1, prefill ? 1 : rows)};
  params_ =
      LinearParams{.batch = batch,
                   .rows = kind == RowKind::kLogits ? RowSet::kLogits : RowSet::kBatch,
                   .weight = weights_[0].get(),
                   .input = input_.data(),
                   .output = output_.data(),
                   .bias = nullptr,
                   .dtype = DType::kBFloat16,
                   .output_dtype = kind == RowKind::kLogits ? DType::kFloat32 : DType::kBFloat16,
                   .epilogue = shape_.epilogue,
                   .workspace = nullptr};
  const int64_t bytes = backend_.ops().linear.workspace_bytes(params_);
  if (workspace_.bytes() < bytes) {
    workspace_ = backend_.Allocate(bytes).value();
  }
  params_.workspace = workspace_.data();
  CHECK_OK(stream_->Synchronize());
}

void LinearLayers::Run(int32_t repetition, Stream& stream) {
  LinearParams params = params_;
  params.weight = weights_[static_cast<size_t>(repetition % shape_.copies)].get();
  backend_.ops().linear.run(stream, params);
}

const char* LinearLayers::variant() const { return backend_.ops().linear.variant(params_); }

}  // namespace lserve::bench
