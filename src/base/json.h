// JSON in and out: nlohmann's value types, parsed with a depth limit and a Status instead of an
// exception. Free functions, thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lserve {

// What is read: keys sorted, lookup in logarithmic time (a vocabulary has 10^5 keys).
using Json = nlohmann::json;
// What is written: keeps the order of keys, so a result file reads as it was filled.
using OrderedJson = nlohmann::ordered_json;

// Parses one JSON text. `what` names it in errors ("config.json", "the request body").
// Errors: kInvalidArgument (malformed, deeper than max_depth, a key twice in one object).
Result<Json> ParseJson(std::string_view text, std::string_view what, int max_depth = 64);

// Reads and parses a file of at most max_bytes. Errors: those of ReadFile and ParseJson.
Result<Json> ReadJsonFile(const std::string& path, int64_t max_bytes = int64_t{256} << 20);

// The value of an object's key; null if the object lacks it or `object` is no object.
const Json* FindKey(const Json& object, std::string_view key);

// Text for a result file: two spaces of indentation and a final newline; bytes that are not UTF-8
// become U+FFFD.
std::string DumpJson(const OrderedJson& value);

// One line, for wire formats; bytes that are not UTF-8 become U+FFFD.
std::string DumpJsonLine(const OrderedJson& value);

}  // namespace lserve
