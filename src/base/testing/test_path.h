// Paths for what a test writes. Tests run side by side, each in a process of its own.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace lserve {

// A path in the folder for temporary files that no other test has; within a test.
inline std::string TestPath(const std::string& name) {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  std::string own = std::string(test.test_suite_name()) + "." + test.name() + "." + name;
  std::replace(own.begin(), own.end(), '/', '_');
  return ::testing::TempDir() + "/" + own;
}

}  // namespace lserve
