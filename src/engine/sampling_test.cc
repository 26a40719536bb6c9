#include "engine/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace lserve {
namespace {

using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Status With(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  return Validate(params);
}

TEST(ValidateSampling, DefaultsAndBoundsAreFine) {
  EXPECT_TRUE(Validate(SamplingParams()).ok());
  EXPECT_TRUE(With([](SamplingParams& p) {
                p.temperature = 0;
                p.top_p = 1e-300;
                p.top_k = -1;
                p.min_p = 0;
                p.repetition_penalty = 1e-300;
                p.presence_penalty = -2;
                p.frequency_penalty = -2;
                p.max_tokens = 1;
              }).ok());
  EXPECT_TRUE(With([](SamplingParams& p) {
                p.temperature = 2;
                p.top_k = kMaxTopK;
                p.min_p = 1;
                p.repetition_penalty = 10;
                p.presence_penalty = 2;
                p.frequency_penalty = 2;
                p.seed = ~uint64_t{0};
                p.stop.assign(kMaxStopStrings, std::string(kMaxStopStringBytes, 'x'));
                p.stop_token_ids.assign(kMaxStopTokenIds, 5);
              }).ok());
}

struct NumberCase {
  const char* field;
  double SamplingParams::*member;
  std::vector<double> bad;
};

TEST(ValidateSampling, NumbersOutOfRangeNameFieldAndValue) {
  const std::vector<NumberCase> cases = {
      {"temperature", &SamplingParams::temperature, {-0.001, 2.001, -kInfinity}},
      {"top_p", &SamplingParams::top_p, {0, -0.5, 1.5}},
      {"min_p", &SamplingParams::min_p, {-0.25, 1.25}},
      {"repetition_penalty", &SamplingParams::repetition_penalty, {0, -1, 10.5}},
      {"presence_penalty", &SamplingParams::presence_penalty, {-2.5, 2.5}},
      {"frequency_penalty", &SamplingParams::frequency_penalty, {-2.5, 2.5}}};
  for (const NumberCase& c : cases) {
    std::vector<double> values = c.bad;
    values.insert(values.end(), {kNan, kInfinity});
    for (const double value : values) {
      const Status status = With([&](SamplingParams& p) { p.*c.member = value; });
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.field << " " << value;
      EXPECT_THAT(status.message(), HasSubstr(c.field));
      EXPECT_THAT(status.message(), HasSubstr(fmt::format("but is {}", value)));
    }
  }
}

TEST(ValidateSampling, IntegersAndLists) {
  const auto message = [](const std::function<void(SamplingParams&)>& change) {
    return With(change).message();
  };
  EXPECT_THAT(message([](auto& p) { p.top_k = -2; }), HasSubstr("-2"));
  EXPECT_THAT(message([](auto& p) { p.top_k = kMaxTopK + 1; }), HasSubstr("top_k"));
  EXPECT_THAT(message([](auto& p) { p.max_tokens = 0; }), HasSubstr("max_tokens"));
  EXPECT_THAT(message([](auto& p) { p.max_tokens = -2; }), HasSubstr("-2"));
  EXPECT_THAT(message([](auto& p) { p.stop.assign(17, "x"); }), HasSubstr("17"));
  EXPECT_THAT(message([](auto& p) { p.stop = {"ok", ""}; }), HasSubstr("stop"));
  EXPECT_THAT(message([](auto& p) { p.stop = {std::string(1025, 'x')}; }), HasSubstr("1025"));
  EXPECT_THAT(message([](auto& p) { p.stop_token_ids = {3, -4}; }), HasSubstr("-4"));
  EXPECT_THAT(message([](auto& p) { p.stop_token_ids.assign(1025, 1); }), HasSubstr("1025"));
}

TEST(ToSlotSampling, CopiesAndStaysInRange) {
  SamplingParams params;
  params.temperature = 0.7;
  params.top_p = 0.9;
  params.top_k = -1;
  params.min_p = 0.05;
  params.seed = 99;
  SlotSampling slot = ToSlotSampling(params);
  EXPECT_EQ(slot.temperature, 0.7f);
  EXPECT_EQ(slot.top_p, 0.9f);
  EXPECT_EQ(slot.top_k, 0);
  EXPECT_EQ(slot.min_p, 0.05f);
  EXPECT_EQ(slot.seed, 99u);
  EXPECT_EQ(slot.penalties, 0);

  params.top_k = 40;
  params.top_p = 1e-300;
  params.temperature = 1e-300;
  params.repetition_penalty = 1e-300;
  slot = ToSlotSampling(params);
  EXPECT_EQ(slot.top_k, 40);
  EXPECT_GT(slot.top_p, 0.0f);
  EXPECT_EQ(slot.temperature, 0.0f);
  EXPECT_GT(slot.repetition_penalty, 0.0f);
  EXPECT_EQ(slot.penalties, 1);

  SamplingParams presence;
  presence.presence_penalty = 0.5;
  EXPECT_EQ(ToSlotSampling(presence).penalties, 1);
  SamplingParams frequency;
  frequency.frequency_penalty = -0.5;
  EXPECT_EQ(ToSlotSampling(frequency).penalties, 1);
}

TEST(FinishReason, Names) {
  EXPECT_STREQ(FinishReasonName(FinishReason::kNone), "");
  EXPECT_STREQ(FinishReasonName(FinishReason::kStop), "stop");
  EXPECT_STREQ(FinishReasonName(FinishReason::kLength), "length");
  EXPECT_STREQ(FinishReasonName(FinishReason::kCancelled), "abort");
  EXPECT_STREQ(FinishReasonName(FinishReason::kError), "error");
}

TEST(DefaultSampling, FollowsTheModelWithinTheRanges) {
  GenerationDefaults recommended;
  EXPECT_EQ(DefaultSampling(recommended).temperature, 1.0);
  recommended.temperature = 0.7;
  recommended.top_p = 0.8;
  recommended.top_k = 20;
  recommended.min_p = 0.05;
  recommended.repetition_penalty = 1.05;
  const SamplingParams sampled = DefaultSampling(recommended);
  EXPECT_EQ(sampled.temperature, 0.7);
  EXPECT_EQ(sampled.top_p, 0.8);
  EXPECT_EQ(sampled.top_k, 20);
  EXPECT_EQ(sampled.min_p, 0.05);
  EXPECT_EQ(sampled.repetition_penalty, 1.05);
  recommended.do_sample = false;
  const SamplingParams greedy = DefaultSampling(recommended);
  EXPECT_EQ(greedy.temperature, 0.0);
  EXPECT_EQ(greedy.top_p, 1.0);
  EXPECT_EQ(greedy.repetition_penalty, 1.05);
  recommended.do_sample = true;
  recommended.temperature = 50;
  recommended.repetition_penalty = 50;
  EXPECT_TRUE(Validate(DefaultSampling(recommended)).ok());
}

}  // namespace
}  // namespace lserve
