// Python's operators on the values of a chat template. Free functions, thread-safe as long as a
// Budget is not shared.
#pragma once

#include <string_view>

#include "base/status.h"
#include "text/jinja_budget.h"
#include "text/jinja_value.h"

namespace lserve::jinja {

// left op right for + - * / // % ** ~. Errors: kInvalidArgument (types, division by zero,
// overflow), kResourceExhausted.
Result<Value> BinaryOperation(std::string_view op, const Value& left, const Value& right,
                              Budget* budget);

// left op right for == != < <= > >= in, and "not in".
Result<bool> Comparison(std::string_view op, const Value& left, const Value& right);

// object[key]: a character, item or member; undefined if there is none.
Result<Value> GetItem(const Value& object, const Value& key);
// object.name for members of mappings and namespaces; undefined if there is none.
Result<Value> GetAttribute(const Value& object, const std::string& name);

// object[start:stop:step]; a bound that is undefined counts as absent.
Result<Value> Slice(const Value& object, const Value& start, const Value& stop, const Value& step,
                    Budget* budget);

// The items that a loop visits: of a list, the keys of a mapping, the characters of a string,
// nothing if undefined.
Result<List> Iterate(const Value& value, Budget* budget);

}  // namespace lserve::jinja
