// What a file holds, shown in a one-line error: control characters escaped, cut short.
// Pure functions, thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace lserve {

// Text in double quotes.
std::string QuotedForError(std::string_view text);

// A JSON value as JSON.
std::string ShownForError(const Json& value);

}  // namespace lserve
