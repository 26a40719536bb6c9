// Typed, range-checked reading of the fields of a parsed JSON configuration; a part of
// checkpoint/model_config. An absent key and null are the same: files are written either way.
// Every error names the field and its value. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// Null if `object` lacks the key or its value is null.
const Json* FindValue(const Json& object, std::string_view key);

Status MissingField(std::string_view key);

// A whole number in [low, high]; 4096.0 is one too.
Result<int64_t> ToInteger(const Json& value, std::string_view key, int64_t low, int64_t high);
Result<int64_t> RequiredInteger(const Json& object, std::string_view key, int64_t low,
                                int64_t high);

// The numbers from low (itself included or not) to high (included).
struct NumberRange {
  enum class Low { kIncluded, kExcluded };
  double low;
  Low low_bound;
  double high;
};
constexpr NumberRange FromTo(double low, double high) {
  return {low, NumberRange::Low::kIncluded, high};
}
constexpr NumberRange AboveUpTo(double low, double high) {
  return {low, NumberRange::Low::kExcluded, high};
}

Result<double> RequiredNumber(const Json& object, std::string_view key, const NumberRange& range);
Result<std::optional<double>> OptionalNumber(const Json& object, std::string_view key,
                                             const NumberRange& range);
Result<double> NumberOr(const Json& object, std::string_view key, const NumberRange& range,
                        double absent);

Result<bool> BoolOr(const Json& object, std::string_view key, bool absent);

}  // namespace lserve
