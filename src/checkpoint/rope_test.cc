#include "checkpoint/rope.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>

#include "base/json.h"
#include "checkpoint/model_config.h"

namespace lserve {
namespace {

// How many float32 numbers lie between two positive ones.
int64_t UnitsApart(float a, float b) {
  return std::abs(static_cast<int64_t>(std::bit_cast<int32_t>(a)) -
                  static_cast<int64_t>(std::bit_cast<int32_t>(b)));
}

// tests/oracles/make_rope_data.py made the file. transformers' power function may be off by a unit
// in the last place; a difference in scaled dimensions grows by the arithmetic after it.
TEST(RopeTest, AgreesWithTransformers) {
  const auto data = ReadJsonFile(LSERVE_SOURCE_DIR "/tests/data/rope/rope.json");
  ASSERT_TRUE(data.ok()) << data.status().message();
  int64_t values = 0;
  int64_t equal = 0;
  for (const Json& row : data->at("cases")) {
    const std::string name = row.at("name").get<std::string>();
    const auto config = ParseModelConfig(row.at("config"));
    ASSERT_TRUE(config.ok()) << name << ": " << config.status().message();
    const RopeTable table = ComputeRope(config->rope, config->head_dim);
    const auto expected = row.at("inverse_frequencies").get<std::vector<float>>();
    ASSERT_EQ(table.inverse_frequencies.size(), expected.size()) << name;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LE(UnitsApart(table.inverse_frequencies[i], expected[i]), 4)
          << name << ", pair " << i << ": " << table.inverse_frequencies[i] << " against "
          << expected[i];
      equal += table.inverse_frequencies[i] == expected[i] ? 1 : 0;
    }
    values += static_cast<int64_t>(expected.size());
    EXPECT_FLOAT_EQ(table.attention_factor, row.at("attention_factor").get<float>()) << name;
  }
  RecordProperty("bit_equal", fmt::format("{} of {}", equal, values));
  EXPECT_GT(values, 800);
  EXPECT_GE(equal * 10, values * 9) << equal << " of " << values;
}

TEST(RopeTest, LinearDividesEveryFrequency) {
  RopeConfig config;
  const RopeTable plain = ComputeRope(config, 96);
  config.type = RopeType::kLinear;
  config.factor = 4.0;
  const RopeTable linear = ComputeRope(config, 96);
  ASSERT_EQ(plain.inverse_frequencies.size(), 48u);
  EXPECT_EQ(plain.inverse_frequencies[0], 1.0f);
  for (size_t i = 0; i < 48; ++i) {
    EXPECT_EQ(linear.inverse_frequencies[i], plain.inverse_frequencies[i] / 4.0f);
  }
}

TEST(RopeTest, YarnOfFactorOneIsPlain) {
  RopeConfig config;
  const RopeTable plain = ComputeRope(config, 128);
  config.type = RopeType::kYarn;
  config.original_max_position_embeddings = 4096;
  const RopeTable yarn = ComputeRope(config, 128);
  EXPECT_EQ(yarn.attention_factor, 1.0f);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_FLOAT_EQ(yarn.inverse_frequencies[i], plain.inverse_frequencies[i]);
  }
}

}  // namespace
}  // namespace lserve
