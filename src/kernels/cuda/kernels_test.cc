// Linear layers, sampling and lists of units at sizes that the conformance tests, which run them on
// the scalar backend too, are too slow for.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/cuda/test_util.h"
#include "kernels/sketch.h"

namespace lserve::cuda {
namespace {

class CudaKernelsTest : public CudaTest {};

// A value in [-1, 1] that depends on its index alone, cheap enough for millions.
float ValueAt(uint64_t seed, int64_t index) {
  uint64_t x = seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(index);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<float>(static_cast<int32_t>(x >> 40)) * 0x1p-23f - 1.0f;
}

std::vector<BFloat16> Values(uint64_t seed, int64_t count) {
  std::vector<BFloat16> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = ToBFloat16(ValueAt(seed, i));
  }
  return values;
}

struct LinearCase {
  int32_t n, k;
  Epilogue epilogue;
  DType output_dtype;
};

// Shapes of real layers, of which a sample of the outputs is computed in double.
TEST_F(CudaKernelsTest, LinearLayersOfRealShapes) {
  constexpr int32_t kMaxRows = 700;
  for (const LinearCase& c : {LinearCase{1536, 4096, Epilogue::kBias, DType::kBFloat16},
                              LinearCase{4096, 2056, Epilogue::kResidual, DType::kBFloat16},
                              LinearCase{2 * 3000, 1024, Epilogue::kSiluMul, DType::kBFloat16},
                              LinearCase{32003, 264, Epilogue::kNone, DType::kFloat32},
                              LinearCase{520, 1030, Epilogue::kNone, DType::kBFloat16}}) {
    const int32_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
    const std::vector<BFloat16> weight = Values(1, int64_t{c.n} * c.k);
    const std::vector<BFloat16> input = Values(2, int64_t{kMaxRows} * c.k);
    const std::vector<BFloat16> bias = Values(3, c.n);
    const std::vector<BFloat16> before = Values(4, int64_t{kMaxRows} * columns);
    const std::unique_ptr<PackedLinear> packed =
        backend_
            ->PackLinear({weight.data(), DType::kBFloat16, c.n, c.k}, DType::kBFloat16,
                         c.epilogue == Epilogue::kSiluMul)
            .value();
    const Buffer device_input = Upload(input);
    const Buffer device_bias = Upload(bias);
    const auto as_double = [](BFloat16 x) { return static_cast<double>(ToFloat(x)); };
    // What there is room for decides about the kernel.
    for (const auto& [room, decode, prefill] : std::vector<std::tuple<int32_t, int32_t, int32_t>>{
             {kMaxRows, 1, 0}, {kMaxRows, 19, 681}, {200, 45, 0}, {200, 0, 129}, {200, 45, 155}}) {
      TestBatch batch(*backend_, *stream_, room);
      batch.Set(decode, prefill);
      const Buffer output = Upload(std::vector<uint8_t>(
          static_cast<size_t>((int64_t{kMaxRows} + kRowSlack) * columns * 4), 0xFF));
      if (c.epilogue == Epilogue::kResidual) {
        backend_->CopyToDevice(output.data(), before.data(), std::ssize(before) * 2, *stream_);
      }
      LinearParams params{};
      params.batch = batch.view();
      params.rows = RowSet::kBatch;
      params.weight = packed.get();
      params.input = device_input.data();
      params.output = output.data();
      params.bias = c.epilogue == Epilogue::kBias ? device_bias.data() : nullptr;
      params.dtype = DType::kBFloat16;
      params.output_dtype = c.output_dtype;
      params.epilogue = c.epilogue;
      const Buffer workspace =
          backend_->Allocate(backend_->ops().linear.workspace_bytes(params)).value();
      params.workspace = workspace.data();
      ASSERT_EQ(Validate(params).message(), "");
      backend_->ops().linear.run(*stream_, params);

      std::mt19937 random(5);
      const auto product = [&](int64_t row, int64_t column) {
        double sum = 0.0;
        for (int64_t i = 0; i < c.k; ++i) {
          sum += as_double(input[static_cast<size_t>(row * c.k + i)]) *
                 as_double(weight[static_cast<size_t>(column * c.k + i)]);
        }
        return sum;
      };
      for (int32_t row = 0; row < decode + prefill; row += row < decode ? 1 : 37) {
        std::vector<float> got;
        if (c.output_dtype == DType::kFloat32) {
          got = Download<float>(output, columns, int64_t{row} * columns);
        } else {
          for (const BFloat16 x : Download<BFloat16>(output, columns, int64_t{row} * columns)) {
            got.push_back(ToFloat(x));
          }
        }
        for (const float x : got) {
          ASSERT_TRUE(std::isfinite(x)) << "row " << row;
        }
        for (int32_t sample = 0; sample < 12; ++sample) {
          const int32_t column = sample == 0   ? 0
                                 : sample == 1 ? columns - 1
                                               : static_cast<int32_t>(random() % columns);
          const double sum = product(row, column);
          double want = sum;
          double rounded_first = 0.0;  // what rounding the product may move, over the rounding
          if (c.epilogue == Epilogue::kSiluMul) {
            const double up = product(row, columns + column);
            want = sum / (1.0 + std::exp(-sum)) * up;
            rounded_first = std::abs(want) + 1.1 * std::abs(sum * up);  // |silu'| < 1.1
          } else if (c.epilogue == Epilogue::kBias) {
            want += as_double(bias[static_cast<size_t>(column)]);
          } else if (c.epilogue == Epilogue::kResidual) {
            want += as_double(before[static_cast<size_t>(int64_t{row} * columns + column)]);
            rounded_first = std::abs(sum);
          }
          const double bound = std::abs(want) + (row < decode ? 0.0 : rounded_first);
          // A sum of k products of uniform numbers is sqrt(k) / 3 or so.
          const double scale = std::sqrt(static_cast<double>(c.k)) / 3.0;
          const double rounding = c.output_dtype == DType::kFloat32 ? 0x1p-18 : 0x1p-8;
          const double size = c.epilogue == Epilogue::kSiluMul ? scale * scale : scale;
          EXPECT_NEAR(static_cast<double>(got[static_cast<size_t>(column)]), want,
                      rounding * bound + 0x1p-17 * size)
              << c.n << " x " << c.k << ", epilogue " << static_cast<int>(c.epilogue) << ", row "
              << row << " of " << decode << " and " << prefill << ", column " << column;
        }
      }
    }
  }
}

// A weight whose offsets do not fit into 32 bits: its last rows are computed, not others.
TEST_F(CudaKernelsTest, LinearLayerOfMoreThan31BitsOfElements) {
  constexpr int64_t kDepth = 16400;
  constexpr int64_t kOutputs = 131'072;
  static_assert(kDepth * kOutputs > int64_t{1} << 31);
  const std::vector<BFloat16> period = Values(1, 1'000'003);  // so that no two rows are alike
  std::vector<BFloat16> weight(static_cast<size_t>(kDepth * kOutputs));
  for (size_t i = 0; i < weight.size(); i += period.size()) {
    std::copy_n(period.begin(), std::min(period.size(), weight.size() - i),
                weight.begin() + static_cast<std::ptrdiff_t>(i));
  }
  const std::unique_ptr<PackedLinear> packed =
      backend_
          ->PackLinear({weight.data(), DType::kBFloat16, kOutputs, kDepth}, DType::kBFloat16, false)
          .value();
  const std::vector<BFloat16> input = Values(2, 300 * kDepth);
  const Buffer device_input = Upload(input);
  for (const int32_t room : {8, 200, 300}) {  // each has a kernel for prefill rows
    TestBatch batch(*backend_, *stream_, room);
    batch.Set(3, room - 3);
    const Buffer output =
        backend_->Allocate((room + kRowSlack) * kOutputs * static_cast<int64_t>(sizeof(BFloat16)))
            .value();
    LinearParams params{};
    params.batch = batch.view();
    params.weight = packed.get();
    params.input = device_input.data();
    params.output = output.data();
    params.dtype = params.output_dtype = DType::kBFloat16;
    const Buffer workspace =
        backend_->Allocate(backend_->ops().linear.workspace_bytes(params)).value();
    params.workspace = workspace.data();
    backend_->ops().linear.run(*stream_, params);
    for (const int64_t row : {0, 2, room - 1}) {
      const auto got = Download<BFloat16>(output, kOutputs, row * kOutputs);
      for (const int64_t column : {int64_t{0}, kOutputs / 2, kOutputs - 9, kOutputs - 1}) {
        double want = 0.0;
        for (int64_t i = 0; i < kDepth; ++i) {
          want += static_cast<double>(ToFloat(input[static_cast<size_t>(row * kDepth + i)])) *
                  static_cast<double>(ToFloat(weight[static_cast<size_t>(column * kDepth + i)]));
        }
        EXPECT_NEAR(static_cast<double>(ToFloat(got[static_cast<size_t>(column)])), want,
                    0x1p-8 * std::abs(want) + 0x1p-17 * std::sqrt(kDepth))
            << "row " << row << ", column " << column << ", room for " << room;
      }
    }
  }
}

// Steps of different sizes are recorded apart, so the room of a step must not show in its rows.
TEST_F(CudaKernelsTest, DecodeRowsAreTheSameWhateverTheRoom) {
  constexpr int32_t kOutputs = 4000;
  constexpr int32_t kDepth = 1100;
  const std::vector<BFloat16> weight = Values(1, int64_t{kOutputs} * kDepth);
  const std::unique_ptr<PackedLinear> packed =
      backend_
          ->PackLinear({weight.data(), DType::kBFloat16, kOutputs, kDepth}, DType::kBFloat16, false)
          .value();
  const Buffer input = Upload(Values(2, int64_t{400} * kDepth));
  std::vector<float> first;
  for (const int32_t room : {1, 2, 8, 9, 16, 17, 32, 33, 300}) {
    TestBatch batch(*backend_, *stream_, room);
    batch.Set(std::min(room, 40), 0);
    const Buffer output = backend_->Allocate((room + kRowSlack) * int64_t{kOutputs} * 4).value();
    LinearParams params{};
    params.batch = batch.view();
    params.weight = packed.get();
    params.input = input.data();
    params.output = output.data();
    params.dtype = DType::kBFloat16;
    params.output_dtype = DType::kFloat32;
    const Buffer workspace =
        backend_->Allocate(backend_->ops().linear.workspace_bytes(params)).value();
    params.workspace = workspace.data();
    backend_->ops().linear.run(*stream_, params);
    const std::vector<float> row = Download<float>(output, kOutputs);
    if (first.empty()) {
      first = row;
      EXPECT_NE(row, std::vector<float>(kOutputs, 0.0f));
    }
    EXPECT_EQ(row, first) << "room for " << room;
  }
}

// The tokens that `ref` draws, from a vocabulary of a real size.
TEST_F(CudaKernelsTest, SamplesFromALargeVocabulary) {
  constexpr int32_t kRows = 16;
  constexpr int32_t kVocabulary = 128'256;
  const std::unique_ptr<Backend> ref = MakeRefBackend(BackendOptions{}).value();
  const std::unique_ptr<Stream> ref_stream = ref->MakeStream();
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(size_t{kRows} * kVocabulary);
  for (float& logit : logits) {
    logit = std::round(normal(random) * 64.0f) / 64.0f;  // many are equal
  }
  std::vector<SlotSampling> settings;
  for (int32_t slot = 0; slot < kRows; ++slot) {
    SlotSampling s{};
    s.temperature = slot == 0 ? 0.0f : slot % 4 == 1 ? 0.3f : 1.0f;
    s.top_p = slot % 2 == 0 ? 0.9f : 1.0f;
    s.min_p = slot % 5 == 2 ? 0.02f : 0.0f;
    s.top_k = slot % 3 == 0 ? 50 : 0;
    s.repetition_penalty = slot > 8 ? 1.2f : 1.0f;
    s.penalties = slot > 8 ? 1 : 0;
    s.seed = random();
    settings.push_back(s);
  }
  std::vector<uint8_t> seen(logits.size());
  for (size_t i = 0; i < seen.size(); ++i) {
    seen[i] = i % 11 == 0;
  }
  std::vector<int32_t> tokens[2];
  for (int i = 0; i < 2; ++i) {
    Backend& backend = i == 0 ? *ref : *backend_;
    Stream& stream = i == 0 ? *ref_stream : *stream_;
    TestBatch batch(backend, stream, kRows);
    batch.Set(kRows, 0, kRows);
    const auto upload = [&](const auto& values) {
      const auto bytes = static_cast<int64_t>(values.size() * sizeof(values[0]));
      Buffer buffer = backend.Allocate(bytes).value();
      backend.CopyToDevice(buffer.data(), values.data(), bytes, stream);
      return buffer;
    };
    const Buffer device_logits = upload(logits);
    const Buffer device_settings = upload(settings);
    const Buffer device_seen = upload(seen);
    const Buffer counts = upload(std::vector<int32_t>(logits.size(), 0));
    const Buffer last_token = upload(std::vector<int32_t>(kRows, -1));
    const Buffer sampled = upload(std::vector<int32_t>(kRows, -1));
    SampleParams params{};
    params.batch = batch.view();
    params.logits = device_logits.As<float>();
    params.sampling = device_settings.As<SlotSampling>();
    params.token_counts = counts.As<int32_t>();
    params.prompt_seen = device_seen.As<uint8_t>();
    params.last_token = last_token.As<int32_t>();
    params.sampled = sampled.As<int32_t>();
    params.vocab_size = kVocabulary;
    backend.ops().sample.run(stream, params);
    tokens[i].resize(kRows);
    backend.CopyToHost(tokens[i].data(), sampled.data(), kRows * 4, stream);
    ASSERT_EQ(stream.Synchronize().message(), "");
  }
  // A draw may fall on the other side of a rounded sum.
  int32_t differing = 0;
  for (size_t i = 0; i < kRows; ++i) {
    differing += tokens[0][i] == tokens[1][i] ? 0 : 1;
  }
  EXPECT_LE(differing, 1);
  EXPECT_EQ(tokens[0][0], tokens[1][0]) << "greedy";
}

// The list that the scores of `tokens` tokens ask for.
std::vector<int32_t> BestUnits(const std::vector<float>& scores, int32_t tokens,
                               const SelectionPolicy& policy) {
  const int32_t newest = FirstForcedNewestUnit(tokens, policy.unit_tokens);
  const int32_t units = (tokens + policy.unit_tokens - 1) / policy.unit_tokens;
  std::vector<int32_t> list(static_cast<size_t>(newest - 1));
  std::iota(list.begin(), list.end(), 1);
  std::stable_sort(list.begin(), list.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  list.resize(static_cast<size_t>(policy.token_budget / policy.unit_tokens - 1 - (units - newest)));
  list.push_back(0);
  for (int32_t unit = newest; unit < units; ++unit) {
    list.push_back(unit);
  }
  std::sort(list.begin(), list.end());
  return list;
}

// Contexts around those that a block's one look at the scores holds, and longer ones. Few pages lie
// behind many places, so that scores are equal, or one behind all; rows score alike alone and among
// others, and lists are the same for who does not ask for scores.
TEST_F(CudaKernelsTest, ListsOfLongContextsAreTheBestOfTheirScores) {
  constexpr KvPageLayout kLayout = {2, 64, 64, KvFormat::kInt4, PageScore::kSketch};
  constexpr int32_t kPool = 251;
  constexpr int32_t kMaxPages = 16384;
  constexpr int32_t kMaxUnits = kMaxPages * 4;
  constexpr int32_t kMaxGroup = 9;
  constexpr int32_t kRows = 4;
  const std::vector<int32_t> tokens = {1048570, 131152, 131168, 300003};
  std::mt19937 random(11);
  std::vector<uint8_t> pages(static_cast<size_t>(kPool * kLayout.page_bytes()));
  std::generate(pages.begin(), pages.end(), [&] { return static_cast<uint8_t>(random()); });
  for (int32_t page = 0; page < kPool; ++page) {
    for (int32_t head = 0; head < kLayout.heads; ++head) {
      std::vector<Float16> box;
      for (int32_t i = 0; i < 2 * kLayout.head_dim; ++i) {
        const float middle = ValueAt(21, (page * 2 + head) * 64 + i % 64);
        box.push_back(RoundDownToFloat16(i < kLayout.head_dim ? middle - 1.0f : middle + 1.0f));
      }
      std::memcpy(pages.data() + page * kLayout.page_bytes() + kLayout.box_offset(head), box.data(),
                  static_cast<size_t>(kLayout.box_bytes()));
    }
  }
  std::vector<int32_t> table(static_cast<size_t>(kRows * kMaxPages));
  const Buffer device_pages = Upload(pages);
  const Buffer open = Upload(Values(22, kRows * kLayout.open().page_bytes() / 2));
  const Buffer q =
      Upload(Values(23, int64_t{kRows} * kLayout.heads * kMaxGroup * kLayout.head_dim));
  const Buffer prompts = Upload(std::vector<int32_t>(kRows, 0));
  struct Run {
    int32_t rows;
    int32_t interval;
    bool asks;  // for scores
  };
  struct Lists {
    int32_t budget;
    int32_t used_pages;
    int32_t group;
  };
  for (const auto& [budget, used_pages, group] :
       {Lists{512, kPool, 3}, Lists{512, kPool, kMaxGroup}, Lists{1024, 1, 3},
        Lists{8192, kPool, 3}}) {
    const int32_t capacity = budget / 16;
    for (int32_t& place : table) {
      place = static_cast<int32_t>(random() % static_cast<uint32_t>(used_pages));
    }
    const Buffer device_table = Upload(table);
    std::vector<std::vector<float>> scores(static_cast<size_t>(kRows * kLayout.heads));
    for (const auto& [rows, interval, asks] :
         {Run{kRows, 1, true}, Run{1, 1, true}, Run{kRows, 1, false}, Run{kRows, 1 << 30, false}}) {
      TestBatch batch(*backend_, *stream_, kRows);
      batch.Set(rows, 0);
      std::vector<int32_t> positions = tokens;
      for (int32_t& position : positions) {
        --position;
      }
      const Buffer row_position = Upload(positions);
      const Buffer units =
          Upload(std::vector<int32_t>(static_cast<size_t>(kRows * kLayout.heads * capacity), -7));
      const Buffer counts =
          Upload(std::vector<int32_t>(static_cast<size_t>(kRows * kLayout.heads), -1));
      const Buffer device_scores =
          Upload(std::vector<float>(static_cast<size_t>(kRows * kLayout.heads * kMaxUnits), NAN));
      SelectUnitsParams params{};
      params.batch = batch.view();
      params.batch.row_position = row_position.As<int32_t>();
      params.q = q.data();
      params.retrieval = {device_pages.As<std::byte>(),
                          open.As<std::byte>(),
                          device_table.As<int32_t>(),
                          kMaxPages,
                          kLayout,
                          open.As<std::byte>()};
      params.lists = {units.As<int32_t>(), counts.As<int32_t>(), kLayout.heads, 0, capacity};
      params.prompt_tokens = prompts.As<int32_t>();
      params.scores = asks ? device_scores.As<float>() : nullptr;
      params.policy = {budget, 16, interval};
      params.dtype = DType::kBFloat16;
      params.q_heads = kLayout.heads * group;
      params.group = group;
      const Buffer workspace =
          backend_->Allocate(backend_->ops().select_units.workspace_bytes(params)).value();
      params.workspace = workspace.data();
      ASSERT_EQ(Validate(params).message(), "");
      backend_->ops().select_units.run(*stream_, params);
      for (int32_t list = 0; list < rows * kLayout.heads; ++list) {
        const auto index = static_cast<size_t>(list);
        const int32_t n = tokens[index / 2];
        SCOPED_TRACE(testing::Message()
                     << n << " tokens, head " << list % 2 << ", budget " << budget << ", rows "
                     << rows << ", interval " << interval << (asks ? "" : ", without scores"));
        if (asks) {
          const std::vector<float> got =
              Download<float>(device_scores, kMaxUnits, int64_t{list} * kMaxUnits);
          for (int32_t unit = 0; unit < kMaxUnits; ++unit) {
            ASSERT_EQ(std::isfinite(got[static_cast<size_t>(unit)]), unit * 16 < n) << unit;
          }
          if (rows == 1) {
            ASSERT_EQ(got, scores[index]);
          }
          scores[index] = got;
        }
        ASSERT_EQ(Download<int32_t>(units, capacity, int64_t{list} * capacity),
                  BestUnits(scores[index], n, params.policy));
        ASSERT_EQ(Download<int32_t>(counts, 1, list), std::vector<int32_t>{capacity});
      }
    }
  }
}

}  // namespace
}  // namespace lserve::cuda
