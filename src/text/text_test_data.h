// Reads the JSON-lines test data under tests/data/text. For tests only.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace lserve {

inline std::string TextDataPath(const std::string& name) {
  return std::string(LSERVE_SOURCE_DIR) + "/tests/data/text/" + name;
}

inline std::vector<Json> ReadJsonLines(const std::string& path) {
  const Result<std::string> text = ReadFile(path);
  CHECK_OK(text.status());
  std::vector<Json> lines;
  for (size_t begin = 0; begin < text->size();) {
    const size_t end = text->find('\n', begin);
    const Result<Json> line = ParseJson(text->substr(begin, end - begin), path);
    CHECK_OK(line.status());
    lines.push_back(*line);
    begin = end == std::string::npos ? text->size() : end + 1;
  }
  return lines;
}

}  // namespace lserve
