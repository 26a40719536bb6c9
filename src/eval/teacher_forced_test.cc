#include "eval/teacher_forced.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "eval/forced_documents.h"

namespace lserve {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(KlDivergenceTest, HandValues) {
  const std::vector<float> even = {5, 5};
  const std::vector<float> odd = {0, std::log(3.0f)};  // 1/4, 3/4
  EXPECT_NEAR(KlDivergence(even, odd), 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), 1e-6);
  EXPECT_NEAR(KlDivergence(odd, even), 0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-6);
  EXPECT_EQ(KlDivergence(odd, odd), 0);
}

TEST(ForcedTraceTest, JsonKeepsATrace) {
  ForcedTrace trace;
  trace.run = "lserve";
  trace.loss = {0.25, 3};
  trace.kl = {0.5, 0};
  trace.agrees = {false, true};
  trace.prefill_loss = 0.1234567891;
  trace.prefill_tail_loss = 2;
  const ForcedTrace read = TraceFromJson(Json(ToJson(trace))).value();
  EXPECT_EQ(read.run, trace.run);
  EXPECT_EQ(read.loss, trace.loss);
  EXPECT_EQ(read.kl, trace.kl);
  EXPECT_EQ(read.agrees, trace.agrees);
  EXPECT_EQ(read.prefill_loss, trace.prefill_loss);
  EXPECT_EQ(read.prefill_tail_loss, trace.prefill_tail_loss);
  EXPECT_FALSE(TraceFromJson(Json::object()).ok());
}

// The bundled model under any settings. Its weights load in a fraction of a second.
LoadedModel LoadNeedle(const Settings& settings) {
  LoadedModel model =
      LoadedModel::Open(std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m", settings).value();
  CHECK(model.LoadWeights([](double) {}).ok());
  return model;
}

Settings BothModes(double streaming_share, int64_t budget) {
  Settings settings;
  settings.attention = "lserve,dense";
  settings.streaming_share = streaming_share;
  settings.token_budget = budget;
  settings.max_num_seqs = 2;
  settings.max_model_len = 1024;
  settings.threads = 1;
  return settings;
}

ForcedDocument ShortDocument() {
  ForcedDocument document;
  document.id = "short";
  for (int32_t i = 0; i < 530; ++i) {
    document.tokens.push_back(i * 7919 % 4000);
  }
  document.decode_from = 512;
  document.prefill_loss = true;
  return document;
}

std::vector<ForcedTrace> Trace(const LoadedModel& model, const ForcedDocument& document) {
  const std::vector<EvalRun> runs = PlanRuns(model.settings, {}).value();
  return TraceDocument(model, runs, document, [](double, const std::string&) {}).value();
}

TEST(TraceDocumentTest, ABudgetBeyondTheContextChangesNothing) {
  const LoadedModel model = LoadNeedle(BothModes(0, 1024));
  const std::vector<ForcedTrace> traces = Trace(model, ShortDocument());
  ASSERT_THAT(traces, SizeIs(2));
  const ForcedTrace& sparse = traces[0];
  const ForcedTrace& dense = traces[1];
  EXPECT_EQ(sparse.run, "lserve");
  EXPECT_EQ(dense.run, "dense");
  // The last token's successor is unknown: 18 tokens in decode make 17 rows.
  EXPECT_THAT(sparse.loss, SizeIs(17));
  EXPECT_THAT(sparse.kl, SizeIs(17));
  EXPECT_THAT(sparse.kl, Each(0.0));
  EXPECT_THAT(sparse.agrees, Each(true));
  EXPECT_EQ(sparse.loss, dense.loss);
  EXPECT_EQ(sparse.prefill_loss, dense.prefill_loss);
  EXPECT_THAT(dense.kl, SizeIs(0));
  // Prefill and decode rows compute the same distributions, up to rounding.
  double decode = 0;
  for (const double loss : dense.loss) {
    decode += loss / 17;
  }
  EXPECT_NEAR(*dense.prefill_tail_loss / decode, 1, 0.005);
  EXPECT_NE(*dense.prefill_loss, *dense.prefill_tail_loss);
}

TEST(TraceDocumentTest, StreamingEveryHeadShows) {
  Settings settings = BothModes(1, 1024);
  settings.sink_tokens = 64;
  settings.local_tokens = 64;
  const LoadedModel model = LoadNeedle(settings);
  const std::vector<ForcedTrace> traces = Trace(model, ShortDocument());
  double largest = 0;
  for (const double kl : traces[0].kl) {
    largest = std::max(largest, kl);
  }
  EXPECT_GT(largest, 1e-4);
  EXPECT_NE(traces[0].prefill_loss, traces[1].prefill_loss);
}

TEST(TraceDocumentTest, ADocumentBeyondTheContextNamesBothNumbers) {
  const LoadedModel model = LoadNeedle(BothModes(0, 1024));
  ForcedDocument document = ShortDocument();
  document.tokens.resize(1025);
  const Result<std::vector<ForcedTrace>> traces = TraceDocument(
      model, PlanRuns(model.settings, {}).value(), document, [](double, const std::string&) {});
  EXPECT_THAT(traces.status().message(), HasSubstr("short has 1025 tokens, the context 1024"));
}

TEST(LongGenerationTest, AnswersFollowTheDocument) {
  const LoadedModel model = LoadNeedle(BothModes(0, 1024));
  const SuiteOptions options{.lengths = {2048}, .samples = 6, .seed = 3};
  const std::vector<ForcedDocument> documents = MakeLongGeneration(model, options, 512).value();
  ASSERT_THAT(documents, SizeIs(2));
  const ForcedDocument& document = documents[0];
  EXPECT_THAT(document.tokens, SizeIs(2048));
  EXPECT_THAT(document.is_answer, SizeIs(2048));
  EXPECT_EQ(document.decode_from, 1536);
  EXPECT_NE(document.tokens, documents[1].tokens);
  EXPECT_EQ(document.tokens, MakeLongGeneration(model, options, 512).value()[0].tokens);
  // Answers, and only they, are marked; they lie among the decode rows.
  std::vector<int32_t> marked;
  for (size_t i = 0; i < document.tokens.size(); ++i) {
    if (document.is_answer[i]) {
      marked.push_back(document.tokens[i]);
    }
  }
  EXPECT_GT(std::ssize(marked), 128);
  const std::string answers = model.tokenizer->Decode(marked, true);
  EXPECT_THAT(answers, ::testing::Not(HasSubstr("?")));
  const std::string whole = model.tokenizer->Decode(document.tokens, true);
  EXPECT_THAT(whole, HasSubstr("?"));
  for (size_t i = 0; i + 64 < static_cast<size_t>(document.decode_from); ++i) {
    EXPECT_FALSE(document.is_answer[i]);
  }
}

TEST(LongGenerationTest, ALengthWithoutRoomForADocumentIsRefused) {
  const LoadedModel model = LoadNeedle(BothModes(0, 1024));
  const Result<std::vector<ForcedDocument>> documents =
      MakeLongGeneration(model, {.lengths = {2048}}, 2000);
  EXPECT_THAT(documents.status().message(), HasSubstr("2048 tokens: --decode-tokens 2000"));
}

}  // namespace
}  // namespace lserve
