// Renders a parsed chat template. Free function, thread-safe.
#pragma once

#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja_ast.h"
#include "text/jinja_budget.h"
#include "text/jinja_value.h"

namespace lserve::jinja {

// `globals` are the names that the template sees, beside raise_exception, strftime_now, range,
// namespace and dict. `local_time` is what strftime_now prints.
// Errors: kInvalidArgument (raise_exception with its message; an operation on the wrong types),
// kResourceExhausted (steps, text, recursion).
Result<MarkedString> Evaluate(const Body& body, std::vector<std::pair<std::string, Value>> globals,
                              const std::tm& local_time, Budget* budget);

}  // namespace lserve::jinja
