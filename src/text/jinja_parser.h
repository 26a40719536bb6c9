// Parses a chat template: the part of Jinja that published chat templates use. What is outside it
// is refused by name when a model is loaded, not when a request comes. Thread-safe.
#pragma once

#include <string_view>

#include "base/status.h"
#include "text/jinja_ast.h"

namespace lserve::jinja {

// Errors: kInvalidArgument (syntax, with the line), kUnimplemented (an unknown tag, filter or
// test), kResourceExhausted (nested too deep).
Result<Body> Parse(std::string_view source);

}  // namespace lserve::jinja
