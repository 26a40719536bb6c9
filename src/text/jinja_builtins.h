// Filters, tests and methods of the chat template's language. Free functions, thread-safe as long
// as a Budget is not shared.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja_budget.h"
#include "text/jinja_value.h"

namespace lserve::jinja {

// Positional arguments without the value that a filter, test or method applies to.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or of that name; null if it is not given.
  const Value* Find(size_t index, std::string_view name) const;
};

bool IsKnownFilter(std::string_view name);
bool IsKnownTest(std::string_view name);

// value | name(args). Errors: kInvalidArgument, kResourceExhausted.
Result<Value> ApplyFilter(const std::string& name, const Value& value, const Arguments& args,
                          Budget* budget);

// value is name(args).
Result<bool> ApplyTest(const std::string& name, const Value& value, const Arguments& args);

// object.name(args) for methods of strings and mappings.
Result<Value> CallMethod(const Value& object, const std::string& name, const Arguments& args,
                         Budget* budget);
// Whether `object` has a builtin method of that name (members of the same name come second, as in
// Jinja's attribute lookup).
bool HasMethod(const Value& object, std::string_view name);

}  // namespace lserve::jinja
