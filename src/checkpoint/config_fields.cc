#include "checkpoint/config_fields.h"

#include <cmath>

#include "checkpoint/error_text.h"

namespace lserve {

const Json* FindValue(const Json& object, std::string_view key) {
  const Json* value = FindKey(object, key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Status MissingField(std::string_view key) { return InvalidArgument("\"{}\" is missing", key); }

Result<int64_t> ToInteger(const Json& value, std::string_view key, int64_t low, int64_t high) {
  const bool is_number = value.is_number();
  const double number = is_number ? value.get<double>() : 0.0;
  if (!is_number || !(number >= static_cast<double>(low)) ||
      !(number <= static_cast<double>(high)) || number != std::floor(number)) {
    return InvalidArgument("\"{}\" must be a whole number from {} to {}, not {}", key, low, high,
                           ShownForError(value));
  }
  return static_cast<int64_t>(number);
}

Result<int64_t> RequiredInteger(const Json& object, std::string_view key, int64_t low,
                                int64_t high) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) {
    return MissingField(key);
  }
  return ToInteger(*value, key, low, high);
}

Result<std::optional<double>> OptionalNumber(const Json& object, std::string_view key,
                                             const NumberRange& range) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) {
    return std::optional<double>();
  }
  const bool low_included = range.low_bound == NumberRange::Low::kIncluded;
  const double number = value->is_number() ? value->get<double>() : 0.0;
  const bool in_range =
      (low_included ? number >= range.low : number > range.low) && number <= range.high;
  if (!value->is_number() || !in_range) {
    return InvalidArgument("\"{}\" must be a number {} {} and at most {}, not {}", key,
                           low_included ? "of at least" : "above", range.low, range.high,
                           ShownForError(*value));
  }
  return std::optional<double>(number);
}

Result<double> NumberOr(const Json& object, std::string_view key, const NumberRange& range,
                        double absent) {
  ASSIGN_OR_RETURN(const std::optional<double> number, OptionalNumber(object, key, range));
  return number.value_or(absent);
}

Result<double> RequiredNumber(const Json& object, std::string_view key, const NumberRange& range) {
  ASSIGN_OR_RETURN(const std::optional<double> number, OptionalNumber(object, key, range));
  if (!number.has_value()) {
    return MissingField(key);
  }
  return *number;
}

Result<bool> BoolOr(const Json& object, std::string_view key, bool absent) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) {
    return absent;
  }
  if (!value->is_boolean()) {
    return InvalidArgument("\"{}\" must be true or false, not {}", key, ShownForError(*value));
  }
  return value->get<bool>();
}

}  // namespace lserve
