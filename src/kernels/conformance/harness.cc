#include "kernels/conformance/harness.h"

#include <cmath>
#include <cstring>

namespace lserve::conformance {

std::vector<std::string> BackendNames() { return {"ref", "cpu", "cuda"}; }
std::vector<std::string> ComparedBackendNames() { return {"cpu", "cuda"}; }

std::vector<Target> Targets(const std::vector<std::string>& backends) {
  std::vector<Target> targets;
  for (const std::string& backend : backends) {
    targets.push_back({backend, DType::kBFloat16});
    targets.push_back({backend, DType::kFloat32});
  }
  return targets;
}

std::vector<Target> WithEachScore(const std::vector<Target>& targets) {
  std::vector<Target> with_scores;
  for (Target target : targets) {
    for (const PageScore score : {PageScore::kMinMax, PageScore::kSketch}) {
      target.score = score;
      with_scores.push_back(target);
    }
  }
  return with_scores;
}

std::vector<Target> WithEachFormat(const std::vector<Target>& targets) {
  std::vector<Target> with_formats;
  for (Target target : targets) {
    with_formats.push_back(target);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kInt4}) {
      target.format = format;
      if (target.dtype == DType::kBFloat16) {
        with_formats.push_back(target);
      }
    }
  }
  return with_formats;
}

std::string TargetName(const Target& target) {
  return target.backend + "_" + DTypeName(target.dtype) +
         (target.score == PageScore::kSketch ? "_sketch" : "") +
         (target.format == KvFormat::kInt8   ? "_int8"
          : target.format == KvFormat::kInt4 ? "_int4"
                                             : "");
}

std::string TargetTestName(const testing::TestParamInfo<Target>& test) {
  return TargetName(test.param);
}

void TargetTest::SetUp() {
  BackendOptions options;
  options.threads = threads();
  Result<std::unique_ptr<Backend>> backend = MakeBackend(GetParam().backend, options);
  if (!backend.ok()) {
    GTEST_SKIP() << backend.status().message();
  }
  if (const Status status = (*backend)->SupportsActivations(dtype()); !status.ok()) {
    GTEST_SKIP() << status.message();
  }
  backend_ = std::move(backend).value();
  ref_ = MakeRefBackend(BackendOptions{}).value();
}

// ---- Device memory
// -------------------------------------------------------------------------------

template <typename T>
DeviceArray<T>::DeviceArray(Backend& backend, int64_t size)
    : backend_(&backend),
      stream_(backend.MakeStream()),
      size_(size),
      buffer_(
          backend.Allocate(std::max<int64_t>(size, 1) * static_cast<int64_t>(sizeof(T))).value()) {}

template <typename T>
void DeviceArray<T>::Upload(std::span<const T> values, int64_t first) {
  CHECK_LE(first + static_cast<int64_t>(values.size()), size_);
  backend_->CopyToDevice(data() + first, values.data(), static_cast<int64_t>(values.size_bytes()),
                         *stream_);
  CHECK_OK(stream_->Synchronize());
}

template <typename T>
std::vector<T> DeviceArray<T>::Download(int64_t first, int64_t count) const {
  std::vector<T> values(static_cast<size_t>(count < 0 ? size_ - first : count));
  CHECK_LE(first + static_cast<int64_t>(values.size()), size_);
  backend_->CopyToHost(values.data(), data() + first,
                       static_cast<int64_t>(values.size() * sizeof(T)), *stream_);
  CHECK_OK(stream_->Synchronize());
  return values;
}

template <typename T>
void DeviceArray<T>::Poison(int64_t first) {
  if (size_ == first) {
    return;
  }
  std::vector<T> poison(static_cast<size_t>(size_ - first));
  std::memset(static_cast<void*>(poison.data()), 0xFF, poison.size() * sizeof(T));
  Upload(poison, first);
}

template class DeviceArray<float>;
template class DeviceArray<int64_t>;
template class DeviceArray<int32_t>;
template class DeviceArray<uint8_t>;
template class DeviceArray<PrefillBlocks>;
template class DeviceArray<PrefillChunk>;
template class DeviceArray<SlotSampling>;

void ActivationArray::Upload(std::span<const float> values, int64_t first) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(DTypeBytes(dtype_)));
  if (dtype_ == DType::kFloat32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      const BFloat16 stored = ToBFloat16(values[i]);
      std::memcpy(bytes.data() + 2 * i, &stored, 2);
    }
  }
  bytes_.Upload(bytes, first * DTypeBytes(dtype_));
}

std::vector<float> ActivationArray::Download(int64_t first, int64_t count) const {
  const std::vector<uint8_t> bytes =
      bytes_.Download(first * DTypeBytes(dtype_), count * DTypeBytes(dtype_));
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype_ == DType::kFloat32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      BFloat16 stored;
      std::memcpy(&stored, bytes.data() + 2 * i, 2);
      values[i] = ToFloat(stored);
    }
  }
  return values;
}

// ---- Batches
// -------------------------------------------------------------------------------------

Batch::Batch(Backend& backend, int32_t max_rows, int32_t max_slots)
    : counts_(backend, kBatchCounts),
      row_slot_(backend, max_rows),
      row_position_(backend, max_rows),
      row_token_(backend, max_rows),
      logit_row_(backend, max_rows),
      chunks_(backend, max_rows) {
  view_ = BatchView{counts_.data(),    row_slot_.data(), row_position_.data(),
                    row_token_.data(), chunks_.data(),   logit_row_.data(),
                    max_rows,          max_rows,         max_rows,
                    max_rows,          max_slots};
}

void Batch::Set(const std::vector<BatchRow>& decode, const std::vector<BatchChunk>& chunks,
                const std::vector<int32_t>& logit_rows, const std::vector<int32_t>& tokens) {
  std::vector<int32_t> slots, positions, ids;
  std::vector<PrefillChunk> device_chunks;
  for (const BatchRow& row : decode) {
    slots.push_back(row.slot);
    positions.push_back(row.position);
    ids.push_back(row.token);
  }
  chunk_pages_ = 0;
  int32_t query_blocks = 0;
  for (const BatchChunk& chunk : chunks) {
    const int32_t last = chunk.first_position + chunk.rows - 1;
    device_chunks.push_back({chunk.slot, chunk.first_position, static_cast<int32_t>(slots.size()),
                             chunk.rows, chunk_pages_, query_blocks});
    chunk_pages_ += last / kPageTokens - chunk.first_position / kPageTokens + 1;
    query_blocks += last / kQueryBlockTokens - chunk.first_position / kQueryBlockTokens + 1;
    for (int32_t i = 0; i < chunk.rows; ++i) {
      slots.push_back(chunk.slot);
      positions.push_back(chunk.first_position + i);
      ids.push_back(0);
    }
  }
  if (!tokens.empty()) {
    ids = tokens;
  }
  CHECK_LE(slots.size(), static_cast<size_t>(view_.max_rows));
  row_slot_.Poison();
  row_slot_.Upload(slots);
  row_position_.Upload(positions);
  row_token_.Upload(ids);
  chunks_.Upload(device_chunks);
  logit_row_.Upload(logit_rows);
  const auto decode_rows = static_cast<int32_t>(decode.size());
  counts_.Upload(std::vector<int32_t>{decode_rows, static_cast<int32_t>(slots.size()) - decode_rows,
                                      static_cast<int32_t>(device_chunks.size()),
                                      static_cast<int32_t>(logit_rows.size())});
}

// ---- Comparison
// ----------------------------------------------------------------------------------

// Of bf16 results one unit in the last place is 2^-8 to 2^-7 of the value; inputs that a backend
// made itself (q, k, P) may be off by as much, which averages out over the sum.
Tolerance ToleranceOf(DType dtype, int64_t reduction) {
  const double terms = std::sqrt(static_cast<double>(std::max<int64_t>(reduction, 1)));
  if (dtype == DType::kBFloat16) {
    return {1.0 / 100.0, 1.0 / 100.0 + terms * 0x1p-20};
  }
  return {0x1p-20, terms * 0x1p-20};
}

// What is read back of a boxed page may be rounded to bf16 or not, so that keys and values of the
// two sides differ as well, by half a unit in the last place each, where bf16 pages are the same on
// both.
Tolerance AttentionTolerance(DType dtype, KvFormat format, int64_t keys) {
  const Tolerance same_inputs = ToleranceOf(dtype, keys);
  const double factor = IsBoxed(format) ? 2.0 : 1.0;
  return {factor * same_inputs.relative, factor * same_inputs.absolute};
}

testing::AssertionResult Near(std::span<const float> got, std::span<const float> want,
                              Tolerance tolerance) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << got.size() << " elements, want " << want.size();
  }
  double squares = 0.0;
  int64_t finite = 0;
  for (const float value : want) {
    if (std::isfinite(value)) {
      squares += static_cast<double>(value) * static_cast<double>(value);
      ++finite;
    }
  }
  const double rms = finite == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(finite));
  double worst = 1.0;
  size_t worst_index = 0;
  int64_t wrong = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    double excess = 0.0;
    if (std::isnan(want[i]) || std::isnan(got[i])) {
      excess = std::isnan(want[i]) == std::isnan(got[i]) ? 0.0 : INFINITY;
    } else if (std::isinf(want[i]) || std::isinf(got[i])) {
      excess = want[i] == got[i] ? 0.0 : INFINITY;
    } else {
      const double difference =
          std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
      const double allowed =
          tolerance.relative * std::abs(static_cast<double>(want[i])) + tolerance.absolute * rms;
      excess = difference == 0.0 ? 0.0 : difference / allowed;
    }
    wrong += excess > 1.0 ? 1 : 0;
    if (excess > worst) {
      worst = excess;
      worst_index = i;
    }
  }
  if (wrong == 0) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << wrong << " of " << want.size() << " elements differ; worst at " << worst_index
         << ": got " << got[worst_index] << ", want " << want[worst_index] << " (" << worst
         << " times the tolerance, rms " << rms << ")";
}

testing::AssertionResult Identical(std::span<const float> got, std::span<const float> want) {
  if (got.size() != want.size()) {
    return testing::AssertionFailure() << got.size() << " elements, want " << want.size();
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(float)) != 0) {
      return testing::AssertionFailure()
             << "element " << i << ": got " << got[i] << ", want " << want[i];
    }
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult Identical(const Record& got, const Record& want) {
  for (const auto& [key, row] : want) {
    const auto found = got.find(key);
    if (found == got.end()) {
      return testing::AssertionFailure()
             << "no row for sequence " << key.first << ", position " << key.second;
    }
    if (testing::AssertionResult same = Identical(found->second.output, row.output); !same) {
      return same << " in sequence " << key.first << ", position " << key.second;
    }
    if (testing::AssertionResult same = Identical(found->second.log_sums, row.log_sums); !same) {
      return same << " in the log sums of sequence " << key.first << ", position " << key.second;
    }
    if (found->second.lists != row.lists || found->second.all != row.all ||
        found->second.made != row.made) {
      return testing::AssertionFailure()
             << "other units in sequence " << key.first << ", position " << key.second;
    }
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult Identical(const std::map<int32_t, PageContent>& got,
                                   const std::map<int32_t, PageContent>& want) {
  for (const auto& [page, content] : want) {
    const auto found = got.find(page);
    if (found == got.end()) {
      return testing::AssertionFailure() << "no page " << page;
    }
    const PageContent& other = found->second;
    for (const auto& [a, b, what] : {std::tuple{&other.keys, &content.keys, "keys"},
                                     std::tuple{&other.values, &content.values, "values"},
                                     std::tuple{&other.stats, &content.stats, "statistics"},
                                     std::tuple{&other.boxes, &content.boxes, "boxes"},
                                     std::tuple{&other.grids, &content.grids, "grids"}}) {
      if (testing::AssertionResult same = Identical(*a, *b); !same) {
        return same << " in the " << what << " of page " << page;
      }
    }
  }
  return testing::AssertionSuccess();
}

std::vector<float> NormalVector(int64_t size, uint64_t seed, float scale) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

}  // namespace lserve::conformance
