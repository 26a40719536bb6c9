// The header of one safetensors file, parsed and checked against the file; a part of
// checkpoint/safetensors. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"

namespace lserve {

constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own cap

// An element type of the format; `dtype` where kernels have it.
struct SafetensorsType {
  std::string_view name;
  int64_t bytes;
  std::optional<DType> dtype;
};

// One tensor as the header describes it.
struct SafetensorsEntry {
  std::string name;
  const SafetensorsType* type = nullptr;  // static storage
  std::vector<int64_t> shape;
  // [begin, end) in the data, which follow the header; their difference is what shape and type
  // take.
  int64_t begin = 0;
  int64_t end = 0;
};

struct SafetensorsHeader {
  // In ascending order of offset; together they cover the data without overlap or gap.
  std::vector<SafetensorsEntry> entries;
  int64_t data_begin = 0;  // offset of the data in the file
};

// Parses and checks the header of a whole file's bytes. `path` names it in errors.
// Errors: kInvalidArgument, one line that names file, tensor and value.
Result<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path,
                                                 std::span<const std::byte> file);

}  // namespace lserve
