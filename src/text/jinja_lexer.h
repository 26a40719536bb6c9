// Cuts a Jinja template into text and the tokens of its tags, with trim_blocks and lstrip_blocks
// on, as chat templates are written for. Thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace lserve::jinja {

struct Token {
  enum class Kind {
    kText,        // text outside of tags
    kPrintBegin,  // {{
    kPrintEnd,    // }}
    kBlockBegin,  // {%
    kBlockEnd,    // %}
    kName,
    kString,  // value unescaped
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 0;
};

// Errors: kInvalidArgument with the line (unclosed tag, string or bracket, stray character).
Result<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace lserve::jinja
