#include "engine/settings.h"

#include <gtest/gtest.h>

namespace lserve {
namespace {

TEST(ReuseTest, NumbersAreIntervals) {
  for (const int32_t interval : {1, 4, 1 << 20}) {
    const Reuse reuse = ParseReuse(std::to_string(interval)).value();
    EXPECT_EQ(reuse.interval, interval);
    EXPECT_EQ(reuse.distance, 0.0f);
  }
}

TEST(ReuseTest, AutoHasADistance) {
  const Reuse reuse = ParseReuse("auto").value();
  EXPECT_EQ(reuse.interval, kAutoReuseInterval);
  EXPECT_EQ(reuse.distance, kAutoReuseDistance);
  const Reuse given = ParseReuse("auto:0.5").value();
  EXPECT_EQ(given.interval, kAutoReuseInterval);
  EXPECT_EQ(given.distance, 0.5f);
}

TEST(ReuseTest, RefusalsNameTheValue) {
  for (const char* text : {"", "0", "-1", "1048577", "4x", "99999999999", "automatic", "auto:",
                           "auto:0", "auto:-1", "auto:2.5", "auto:nan", "auto:0.5x", " 4"}) {
    const Status status = ParseReuse(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(fmt::format("\"{}\"", text)), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace lserve
