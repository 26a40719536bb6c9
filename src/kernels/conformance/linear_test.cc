// EmbedRows, AddRmsNorm, Linear and RopeAngles against `ref`.
#include <algorithm>
#include <cmath>

#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

constexpr int32_t kMaxRows = 160;
constexpr int32_t kSlots = 40;

class RowOperations : public TargetTest {
 protected:
  int32_t threads() const override { return 2; }

  template <typename Params>
  void Run(Backend& backend, const Op<Params>& op, Params params) {
    const std::unique_ptr<Stream> stream = backend.MakeStream();
    DeviceArray<uint8_t> workspace(backend, op.workspace_bytes(params));
    workspace.Poison();
    if constexpr (requires { params.workspace; }) {
      params.workspace = workspace.data();
    }
    ASSERT_EQ(Validate(params).message(), "");
    op.run(*stream, params);
    ASSERT_TRUE(stream->Synchronize().ok());
  }

  // `decode` decode rows and one chunk of `prefill` rows; logits of some of them, in no order.
  static void SetRows(Batch& batch, int32_t decode, int32_t prefill) {
    std::vector<BatchRow> rows;
    for (int32_t i = 0; i < decode; ++i) {
      rows.push_back({i, 1000 * i + 3});
    }
    std::vector<BatchChunk> chunks;
    if (prefill > 0) {
      chunks.push_back({kSlots - 1, 65000, prefill});
    }
    std::vector<int32_t> logit_rows;
    for (int32_t row = decode + prefill - 1; row >= 0; row -= 3) {
      logit_rows.push_back(row);
    }
    batch.Set(rows, chunks, logit_rows);
  }

  static int32_t OutputRows(RowSet rows, int32_t decode, int32_t prefill) {
    return rows == RowSet::kLogits ? (decode + prefill + 2) / 3 : decode + prefill;
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, RowOperations, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

const std::vector<std::pair<int32_t, int32_t>>& RowCounts() {
  static const std::vector<std::pair<int32_t, int32_t>> counts = {
      {1, 0}, {0, 1}, {15, 0}, {16, 1}, {3, 17}, {33, 0}, {0, 127}, {1, 129}};
  return counts;
}

TEST_P(RowOperations, EmbedRowsReadsEveryTableType) {
  constexpr int32_t kVocabulary = 37;
  for (const int32_t hidden : {1, 63, 64, 200}) {
    for (const DType table_dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      std::vector<float> outputs[2];
      for (int i = 0; i < 2; ++i) {
        Backend& backend = i == 0 ? *ref_ : *backend_;
        Batch batch(backend, kMaxRows, kSlots);
        std::vector<int32_t> tokens;
        for (int32_t row = 0; row < 20; ++row) {
          tokens.push_back(row < 3 ? -1 : row * 7 % kVocabulary);
        }
        batch.Set({{5, 0}, {0, 0}, {7, 0}}, {{9, 0, 17}}, {}, tokens);
        std::vector<int32_t> last(kSlots);
        for (int32_t slot = 0; slot < kSlots; ++slot) {
          last[static_cast<size_t>(slot)] = slot * 5 % kVocabulary;
        }
        const DeviceArray<int32_t> last_token(backend, last);
        // Any bits will do for a table: bf16 and float16 see the same small numbers.
        DeviceArray<uint8_t> table(backend, kVocabulary * hidden * DTypeBytes(table_dtype));
        std::vector<uint8_t> bytes(static_cast<size_t>(table.size()));
        std::mt19937 generator(4);
        for (size_t b = 0; b < bytes.size(); ++b) {
          const bool top = (b + 1) % static_cast<size_t>(DTypeBytes(table_dtype)) == 0;
          bytes[b] = static_cast<uint8_t>(top ? 0x3C - generator() % 2 : generator() % 256);
        }
        table.Upload(bytes);
        ActivationArray output(backend, dtype(), int64_t{kMaxRows + kRowSlack} * hidden);
        Run(backend, backend.ops().embed_rows,
            EmbedRowsParams{batch.view(), table.data(), table_dtype, last_token.data(),
                            output.data(), dtype(), kVocabulary, hidden});
        outputs[i] = output.Download(0, 20 * hidden);
      }
      EXPECT_TRUE(Identical(outputs[1], outputs[0])) << DTypeName(table_dtype) << " " << hidden;
    }
  }
}

TEST_P(RowOperations, AddRmsNormMatchesRef) {
  for (const int32_t hidden : {1, 63, 64, 65, 512}) {
    for (const RowSet rows : {RowSet::kBatch, RowSet::kLogits}) {
      for (const bool adds : {false, true}) {
        std::vector<float> outputs[2], residuals[2];
        for (int i = 0; i < 2; ++i) {
          Backend& backend = i == 0 ? *ref_ : *backend_;
          Batch batch(backend, kMaxRows, kSlots);
          SetRows(batch, 5, 28);
          const int64_t elements = int64_t{kMaxRows + kRowSlack} * hidden;
          ActivationArray residual(backend, dtype(), elements), addend(backend, dtype(), elements),
              weight(backend, dtype(), hidden), output(backend, dtype(), elements);
          residual.Upload(NormalVector(33 * hidden, 1, 3.0f));
          addend.Upload(NormalVector(33 * hidden, 2));
          weight.Upload(NormalVector(hidden, 3));
          Run(backend, backend.ops().add_rms_norm,
              AddRmsNormParams{batch.view(), rows, residual.data(), adds ? addend.data() : nullptr,
                               weight.data(), output.data(), dtype(), hidden, 1e-5f});
          outputs[i] = output.Download(0, int64_t{OutputRows(rows, 5, 28)} * hidden);
          residuals[i] = residual.Download(0, 33 * hidden);
        }
        SCOPED_TRACE(testing::Message() << "hidden " << hidden << ", adds " << adds);
        EXPECT_TRUE(Near(outputs[1], outputs[0], ToleranceOf(dtype(), hidden)));
        EXPECT_TRUE(Identical(residuals[1], residuals[0]));
      }
    }
  }
}

struct LinearCase {
  int32_t n, k;
  Epilogue epilogue;
  RowSet rows;
  DType weight_dtype;
  bool float_output;
};

// The output, [rows, columns], of a batch of decode and prefill rows.
class Linears : public RowOperations {
 protected:
  std::vector<float> Output(Backend& backend, const LinearCase& c, int32_t decode, int32_t prefill,
                            bool on_device = false) {
    Batch batch(backend, kMaxRows, kSlots);
    SetRows(batch, decode, prefill);
    const DType output_dtype = c.float_output ? DType::kFloat32 : dtype();
    const int32_t columns = c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n;
    const std::vector<float> weights =
        NormalVector(int64_t{c.n} * c.k, 5, 1.0f / std::sqrt(static_cast<float>(c.k)));
    ActivationArray stored(on_device ? backend : *ref_, c.weight_dtype, int64_t{c.n} * c.k);
    stored.Upload(weights);
    Result<std::unique_ptr<PackedLinear>> packed =
        backend.PackLinear({stored.data(), c.weight_dtype, c.n, c.k, on_device}, dtype(),
                           c.epilogue == Epilogue::kSiluMul);
    EXPECT_TRUE(packed.ok()) << packed.status().message();
    ActivationArray input(backend, dtype(), int64_t{kMaxRows + kRowSlack} * c.k),
        output(backend, output_dtype, int64_t{kMaxRows + kRowSlack} * columns),
        bias(backend, dtype(), c.n);
    // Row i's data depends on i alone.
    std::vector<float> inputs, residuals;
    for (int32_t row = 0; row < decode + prefill; ++row) {
      const std::vector<float> x = NormalVector(c.k, 100 + static_cast<uint64_t>(row));
      const std::vector<float> y = NormalVector(columns, 300 + static_cast<uint64_t>(row));
      inputs.insert(inputs.end(), x.begin(), x.end());
      residuals.insert(residuals.end(), y.begin(), y.end());
    }
    input.Upload(inputs);
    if (c.epilogue == Epilogue::kResidual) {
      output.Upload(residuals);
    }
    bias.Upload(NormalVector(c.n, 6));
    LinearParams params{};
    params.batch = batch.view();
    params.rows = c.rows;
    params.weight = packed.value().get();
    params.input = input.data();
    params.output = output.data();
    params.bias = c.epilogue == Epilogue::kBias ? bias.data() : nullptr;
    params.dtype = dtype();
    params.output_dtype = output_dtype;
    params.epilogue = c.epilogue;
    ActivationArray norm(backend, dtype(), c.k),
        normed(backend, dtype(), int64_t{kMaxRows + kRowSlack} * c.k);
    if (norm_) {
      norm.Upload(NormalVector(c.k, 7));
      params.norm = {norm.data(), normed.data(), 1e-5f};
    }
    if (room_for_rows_ > 0) {
      params.batch.max_rows = params.batch.max_decode_rows = room_for_rows_;
      params.batch.max_logit_rows = room_for_rows_;
      params.batch.max_chunks = 0;
    }
    Run(backend, backend.ops().linear, params);
    return output.Download(0, int64_t{OutputRows(c.rows, decode, prefill)} * columns);
  }

  bool norm_ = false;          // of the input
  int32_t room_for_rows_ = 0;  // decode rows alone; 0: for kMaxRows rows of both kinds
};

INSTANTIATE_TEST_SUITE_P(Backends, Linears, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

const std::vector<LinearCase>& LinearCases() {
  static const std::vector<LinearCase> cases = {
      {64, 64, Epilogue::kNone, RowSet::kBatch, DType::kBFloat16, false},
      {33, 257, Epilogue::kNone, RowSet::kLogits, DType::kFloat32, true},
      {1, 1, Epilogue::kNone, RowSet::kBatch, DType::kBFloat16, true},
      {130, 80, Epilogue::kBias, RowSet::kBatch, DType::kFloat32, false},
      {48, 200, Epilogue::kResidual, RowSet::kBatch, DType::kBFloat16, false},
      {66, 96, Epilogue::kSiluMul, RowSet::kBatch, DType::kBFloat16, false},
      {256, 512, Epilogue::kSiluMul, RowSet::kBatch, DType::kFloat32, false},
  };
  return cases;
}

TEST_P(Linears, MatchRef) {
  for (const LinearCase& c : LinearCases()) {
    for (const auto& [decode, prefill] : RowCounts()) {
      EXPECT_TRUE(Near(Output(*backend_, c, decode, prefill), Output(*ref_, c, decode, prefill),
                       ToleranceOf(c.float_output ? DType::kFloat32 : dtype(), c.k)))
          << c.n << " x " << c.k << ", epilogue " << static_cast<int>(c.epilogue) << ", " << decode
          << " decode and " << prefill << " prefill rows";
    }
  }
}

TEST_P(Linears, WeightsOnTheDevicePackAlike) {
  for (const auto& [n, k, epilogue] :
       std::vector<std::tuple<int32_t, int32_t, Epilogue>>{{64, 64, Epilogue::kNone},
                                                           {33, 257, Epilogue::kNone},
                                                           {66, 96, Epilogue::kSiluMul},
                                                           {14, 200, Epilogue::kSiluMul},
                                                           {256, 512, Epilogue::kSiluMul}}) {
    const LinearCase c = {n, k, epilogue, RowSet::kBatch, DType::kBFloat16, false};
    EXPECT_TRUE(Identical(Output(*backend_, c, 3, 17, true), Output(*backend_, c, 3, 17, false)))
        << n << " x " << k << ", epilogue " << static_cast<int>(epilogue);
  }
}

// A row's result depends on its kind and its data, not on what else is in the batch.
TEST_P(Linears, RowsDoNotSeeTheBatch) {
  for (LinearCase c : LinearCases()) {
    c.rows = RowSet::kBatch;
    const size_t columns = static_cast<size_t>(c.epilogue == Epilogue::kSiluMul ? c.n / 2 : c.n);
    for (const bool decode : {false, true}) {
      const std::vector<float> one = Output(*backend_, c, decode ? 1 : 0, decode ? 0 : 1);
      for (const auto& [d, p] :
           decode ? std::vector<std::pair<int32_t, int32_t>>{{2, 0}, {17, 0}, {33, 0}, {5, 90}}
                  : std::vector<std::pair<int32_t, int32_t>>{{0, 2}, {0, 33}, {0, 129}}) {
        const std::vector<float> many = Output(*backend_, c, d, p);
        EXPECT_TRUE(Identical(std::span(many).first(columns), std::span(one).first(columns)))
            << c.n << " x " << c.k << ", " << d << " decode and " << p << " prefill rows";
      }
    }
  }
}

TEST_P(Linears, OfANormMatchRefInAnyRoom) {
  norm_ = true;
  std::vector<LinearCase> cases = LinearCases();
  cases.push_back({48, 4096, Epilogue::kNone, RowSet::kBatch, DType::kBFloat16, false});
  cases.push_back({48, 4104, Epilogue::kSiluMul, RowSet::kLogits, DType::kBFloat16, true});
  cases.push_back({40, 264, Epilogue::kNone, RowSet::kLogits, DType::kBFloat16, true});
  for (const LinearCase& c : cases) {
    for (const auto& [decode, prefill] : {std::pair{1, 0}, {9, 0}, {3, 17}}) {
      room_for_rows_ = 0;
      const std::vector<float> plain = Output(*backend_, c, decode, prefill);
      const std::string name = std::to_string(c.n) + " x " + std::to_string(c.k) + ", " +
                               std::to_string(decode) + " + " + std::to_string(prefill);
      EXPECT_TRUE(Near(plain, Output(*ref_, c, decode, prefill),
                       ToleranceOf(dtype(), c.k)))  // the normalised row is rounded
          << name;
      if (prefill == 0) {
        room_for_rows_ = decode;
        EXPECT_TRUE(Identical(Output(*backend_, c, decode, 0), plain)) << name;
      }
    }
  }
}

TEST_P(RowOperations, RopeAnglesMatchRef) {
  for (const int32_t head_dim : {2, 64, 80, 128}) {
    std::vector<float> angles[2];
    for (int i = 0; i < 2; ++i) {
      Backend& backend = i == 0 ? *ref_ : *backend_;
      Batch batch(backend, kMaxRows, kSlots);
      batch.Set({{0, 0}, {1, 1}, {2, 999999}, {3, 16777215}}, {{4, 65500, 100}});
      std::vector<float> frequencies;
      for (int32_t d = 0; d < head_dim / 2; ++d) {
        frequencies.push_back(
            std::pow(500000.0f, -2.0f * static_cast<float>(d) / static_cast<float>(head_dim)));
      }
      const DeviceArray<float> device_frequencies(backend, frequencies);
      DeviceArray<float> output(backend, int64_t{kMaxRows + kRowSlack} * head_dim);
      output.Poison();
      Run(backend, backend.ops().rope_angles,
          RopeAnglesParams{batch.view(), device_frequencies.data(), output.data(), 1.25f,
                           head_dim});
      angles[i] = output.Download(0, 104 * head_dim);
    }
    EXPECT_TRUE(Near(angles[1], angles[0], {1e-6, 1e-6})) << "head_dim " << head_dim;
  }
}

}  // namespace
}  // namespace lserve::conformance
