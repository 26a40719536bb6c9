#include "text/jinja_operators.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace lserve::jinja {
namespace {

Status BadOperands(std::string_view op, const Value& left, const Value& right) {
  return InvalidArgument("'{}' between {} and {}", op, left.TypeName(), right.TypeName());
}

Result<Value> IntegerOperation(std::string_view op, int64_t left, int64_t right) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(left, right, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(left, right, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(left, right, &result);
  } else if (op == "//" || op == "%") {
    if (right == 0) {
      return InvalidArgument("division by zero");
    }
    if (right == -1) {
      overflow = left == INT64_MIN;
      result = op == "%" || overflow ? 0 : -left;
    } else {
      // Python rounds down; the remainder has the sign of the divisor.
      const int64_t quotient = left / right;
      const int64_t remainder = left % right;
      const bool adjust = remainder != 0 && (remainder < 0) != (right < 0);
      result = op == "//" ? quotient - (adjust ? 1 : 0) : remainder + (adjust ? right : 0);
    }
  } else {  // **, with an exponent that is not negative
    result = 1;
    for (int64_t i = 0; i < right && !overflow && i < 64; ++i) {
      overflow = __builtin_mul_overflow(result, left, &result);
    }
    overflow = overflow || (right > 63 && left != 0 && left != 1);
    result = left == 0 && right > 0 ? 0 : result;
  }
  if (overflow) {
    return InvalidArgument("integer overflow in {} {} {}", left, op, right);
  }
  return Value(result);
}

Result<Value> FloatOperation(std::string_view op, double left, double right) {
  if ((op == "/" || op == "//" || op == "%") && right == 0) {
    return InvalidArgument("division by zero");
  }
  if (op == "+") {
    return Value(left + right);
  }
  if (op == "-") {
    return Value(left - right);
  }
  if (op == "*") {
    return Value(left * right);
  }
  if (op == "/") {
    return Value(left / right);
  }
  if (op == "//") {
    return Value(std::floor(left / right));
  }
  if (op == "%") {
    return Value(left - right * std::floor(left / right));
  }
  return Value(std::pow(left, right));
}

Result<Value> Repeat(const Value& value, int64_t count, Budget* budget) {
  const auto times = static_cast<uint64_t>(std::max<int64_t>(count, 0));
  if (const MarkedString* text = value.AsString()) {
    if (times > 0 && text->size() > (uint64_t{1} << 40) / times) {
      return ResourceExhausted("the chat template makes too much text");
    }
    RETURN_IF_ERROR(budget->Charge(text->size() * times));
    MarkedString out;
    for (uint64_t i = 0; i < times && !text->empty(); ++i) {
      out.Append(*text);
    }
    return Value(std::move(out));
  }
  return InvalidArgument("'*' between {} and an integer", value.TypeName());
}

std::optional<int> Order(const Value& left, const Value& right) {
  double a = 0;
  double b = 0;
  if (left.IsNumber(&a) && right.IsNumber(&b)) {
    return a < b ? -1 : a > b ? 1 : 0;
  }
  if (left.AsString() != nullptr && right.AsString() != nullptr) {
    return left.AsString()->text().compare(right.AsString()->text());
  }
  return std::nullopt;
}

Result<bool> Contains(const Value& container, const Value& item) {
  if (const MarkedString* text = container.AsString()) {
    if (item.AsString() == nullptr) {
      return BadOperands("in", item, container);
    }
    return text->text().find(item.AsString()->text()) != std::string::npos;
  }
  if (const List* list = container.AsList()) {
    return std::any_of(list->begin(), list->end(),
                       [&](const Value& each) { return each.Equals(item); });
  }
  if (const Dict* dict = container.AsDict()) {
    return item.AsString() != nullptr && FindMember(*dict, item.AsString()->text()) != nullptr;
  }
  if (container.IsUndefined()) {
    return false;
  }
  return BadOperands("in", item, container);
}

}  // namespace

Result<Value> BinaryOperation(std::string_view op, const Value& left, const Value& right,
                              Budget* budget) {
  if (op == "~") {
    MarkedString out = left.ToText();
    const MarkedString tail = right.ToText();
    RETURN_IF_ERROR(budget->Charge(out.size() + tail.size()));
    out.Append(tail);
    return Value(std::move(out));
  }
  int64_t a = 0;
  int64_t b = 0;
  const bool left_integer = left.IsInteger(&a);
  const bool right_integer = right.IsInteger(&b);
  if (left_integer && right_integer && op != "/" && !(op == "**" && b < 0)) {
    return IntegerOperation(op, a, b);
  }
  double x = 0;
  double y = 0;
  if (left.IsNumber(&x) && right.IsNumber(&y)) {
    return FloatOperation(op, x, y);
  }
  if (op == "+" && left.AsString() != nullptr && right.AsString() != nullptr) {
    RETURN_IF_ERROR(budget->Charge(left.AsString()->size() + right.AsString()->size()));
    MarkedString out = *left.AsString();
    out.Append(*right.AsString());
    return Value(std::move(out));
  }
  if (op == "+" && left.AsList() != nullptr && right.AsList() != nullptr) {
    RETURN_IF_ERROR(budget->ChargeList(left.AsList()->size() + right.AsList()->size()));
    List out = *left.AsList();
    out.insert(out.end(), right.AsList()->begin(), right.AsList()->end());
    return Value::FromList(std::move(out));
  }
  if (op == "*" && (left_integer || right_integer)) {
    return left_integer ? Repeat(right, a, budget) : Repeat(left, b, budget);
  }
  return BadOperands(op, left, right);
}

Result<bool> Comparison(std::string_view op, const Value& left, const Value& right) {
  if (op == "==") {
    return left.Equals(right);
  }
  if (op == "!=") {
    return !left.Equals(right);
  }
  if (op == "in" || op == "not in") {
    ASSIGN_OR_RETURN(const bool contains, Contains(right, left));
    return contains == (op == "in");
  }
  const std::optional<int> order = Order(left, right);
  if (!order) {
    return BadOperands(op, left, right);
  }
  if (op == "<") {
    return *order < 0;
  }
  if (op == "<=") {
    return *order <= 0;
  }
  if (op == ">") {
    return *order > 0;
  }
  return *order >= 0;
}

Result<Value> GetItem(const Value& object, const Value& key) {
  if (object.IsUndefined()) {
    return InvalidArgument("{} has no items", object.TypeName());
  }
  if (const MarkedString* name = key.AsString()) {
    return GetAttribute(object, name->text());
  }
  int64_t index = 0;
  if (!key.IsInteger(&index)) {
    return Value(Undefined{"an item"});
  }
  if (const List* list = object.AsList()) {
    const auto size = static_cast<int64_t>(list->size());
    index += index < 0 ? size : 0;
    return index >= 0 && index < size ? (*list)[static_cast<size_t>(index)]
                                      : Value(Undefined{"an item past the end"});
  }
  if (const MarkedString* text = object.AsString()) {
    const std::vector<MarkedString> characters = text->CodePoints();
    const auto size = static_cast<int64_t>(characters.size());
    index += index < 0 ? size : 0;
    return index >= 0 && index < size ? Value(characters[static_cast<size_t>(index)])
                                      : Value(Undefined{"a character past the end"});
  }
  return Value(Undefined{"an item"});
}

Result<Value> GetAttribute(const Value& object, const std::string& name) {
  const Value* found = nullptr;
  if (const Dict* dict = object.AsDict()) {
    found = FindMember(*dict, name);
  } else if (const Namespace* space = object.AsNamespace()) {
    found = FindMember(space->members, name);
  } else if (object.IsUndefined()) {
    return InvalidArgument("{} has no '{}'", object.TypeName(), name);
  }
  return found != nullptr ? *found : Value(Undefined{name});
}

Result<Value> Slice(const Value& object, const Value& start, const Value& stop, const Value& step,
                    Budget* budget) {
  const auto bound = [](const Value& value, std::optional<int64_t>* out) -> Status {
    int64_t integer = 0;
    if (value.IsUndefined() || value.IsNone()) {
      return OkStatus();
    }
    if (!value.IsInteger(&integer)) {
      return InvalidArgument("a slice's bound is {}", value.TypeName());
    }
    *out = std::clamp<int64_t>(integer, -(int64_t{1} << 40), int64_t{1} << 40);
    return OkStatus();
  };
  std::optional<int64_t> first;
  std::optional<int64_t> last;
  std::optional<int64_t> stride_value;
  RETURN_IF_ERROR(bound(start, &first));
  RETURN_IF_ERROR(bound(stop, &last));
  RETURN_IF_ERROR(bound(step, &stride_value));
  const int64_t stride = stride_value.value_or(1);
  if (stride == 0) {
    return InvalidArgument("a slice's step is 0");
  }

  const MarkedString* text = object.AsString();
  const List* list = object.AsList();
  if (text == nullptr && list == nullptr) {
    return InvalidArgument("a slice of {}", object.TypeName());
  }
  std::vector<size_t> offsets;  // of the code points of a string, and its size
  if (text != nullptr) {
    RETURN_IF_ERROR(budget->Charge(text->size() * 8));
    for (size_t i = 0; i < text->size(); ++i) {
      if ((text->text()[i] & 0xC0) != 0x80) {
        offsets.push_back(i);
      }
    }
    offsets.push_back(text->size());
  }
  const auto size = static_cast<int64_t>(text != nullptr ? offsets.size() - 1 : list->size());
  // As Python's slice.indices.
  const auto place = [&](std::optional<int64_t> at, int64_t missing) {
    if (!at) {
      return missing;
    }
    const int64_t wrapped = *at < 0 ? *at + size : *at;
    return stride > 0 ? std::clamp<int64_t>(wrapped, 0, size)
                      : std::clamp<int64_t>(wrapped, -1, size - 1);
  };
  const int64_t from = place(first, stride > 0 ? 0 : size - 1);
  const int64_t to = place(last, stride > 0 ? size : -1);
  if (text != nullptr && stride == 1) {
    return Value(from < to ? text->Substring(offsets[static_cast<size_t>(from)],
                                             offsets[static_cast<size_t>(to)] -
                                                 offsets[static_cast<size_t>(from)])
                           : MarkedString());
  }
  MarkedString part;
  List items;
  for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride) {
    const auto index = static_cast<size_t>(i);
    if (text != nullptr) {
      part.Append(text->Substring(offsets[index], offsets[index + 1] - offsets[index]));
    } else {
      items.push_back((*list)[index]);
    }
  }
  if (text != nullptr) {
    return Value(std::move(part));
  }
  RETURN_IF_ERROR(budget->ChargeList(items.size()));
  return Value::FromList(std::move(items));
}

Result<List> Iterate(const Value& value, Budget* budget) {
  if (const List* list = value.AsList()) {
    RETURN_IF_ERROR(budget->ChargeList(list->size()));
    return *list;
  }
  List items;
  if (const Dict* dict = value.AsDict()) {
    RETURN_IF_ERROR(budget->ChargeList(dict->size()));
    for (const auto& [key, member] : *dict) {
      items.push_back(Value::Text(key));
    }
    return items;
  }
  if (const MarkedString* text = value.AsString()) {
    RETURN_IF_ERROR(budget->ChargeList(text->size()));
    for (MarkedString& character : text->CodePoints()) {
      items.emplace_back(std::move(character));
    }
    return items;
  }
  if (value.IsUndefined()) {
    return items;
  }
  return InvalidArgument("a loop over {}", value.TypeName());
}

}  // namespace lserve::jinja
