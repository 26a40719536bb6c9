#include "text/jinja_builtins.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "text/jinja_operators.h"

namespace lserve::jinja {
namespace {

constexpr std::array<std::string_view, 30> kFilters = {
    "trim",  "length",  "count",   "tojson",     "upper",      "lower",  "capitalize", "title",
    "join",  "default", "d",       "first",      "last",       "list",   "string",     "int",
    "float", "abs",     "replace", "selectattr", "rejectattr", "select", "reject",     "map",
    "items", "reverse", "safe",    "unique",     "round",      "sum"};

constexpr std::array<std::string_view, 29> kTests = {
    "defined",  "undefined",   "none",    "string", "mapping", "iterable", "sequence", "number",
    "integer",  "float",       "boolean", "true",   "false",   "odd",      "even",     "equalto",
    "eq",       "ne",          "lt",      "le",     "gt",      "ge",       "in",       "sameas",
    "callable", "divisibleby", "lower",   "upper",  "lessthan"};

constexpr std::array<std::string_view, 17> kStringMethods = {
    "strip",      "lstrip",   "rstrip", "split",        "rsplit",      "splitlines",
    "startswith", "endswith", "upper",  "lower",        "title",       "capitalize",
    "replace",    "find",     "count",  "removeprefix", "removesuffix"};
constexpr std::array<std::string_view, 4> kDictMethods = {"items", "keys", "values", "get"};

template <typename Names>
bool Has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Status BadArgument(std::string_view what, const Value& value) {
  return InvalidArgument("{} does not take {}", what, value.TypeName());
}

Result<int64_t> IntegerArgument(const Arguments& args, size_t index, std::string_view name,
                                int64_t missing) {
  const Value* value = args.Find(index, name);
  int64_t integer = missing;
  if (value != nullptr && !value->IsNone() && !value->IsInteger(&integer)) {
    return BadArgument(name, *value);
  }
  return integer;
}

Result<Value> TextList(std::vector<MarkedString> parts, Budget* budget) {
  RETURN_IF_ERROR(budget->ChargeList(parts.size()));
  List list;
  list.reserve(parts.size());
  for (MarkedString& part : parts) {
    list.emplace_back(std::move(part));
  }
  return Value::FromList(std::move(list));
}

Result<Value> Items(const Value& value, Budget* budget) {
  List list;
  if (const Dict* dict = value.AsDict()) {
    RETURN_IF_ERROR(budget->ChargeList(dict->size() * 3));
    for (const auto& [key, member] : *dict) {
      ASSIGN_OR_RETURN(Value pair, Value::FromList({Value::Text(key), member}));
      list.push_back(std::move(pair));
    }
  } else if (!value.IsUndefined()) {
    return BadArgument("items", value);
  }
  return Value::FromList(std::move(list));
}

Result<Value> Replace(const MarkedString& text, const Arguments& args, Budget* budget) {
  const Value* from = args.Find(0, "old");
  const Value* to = args.Find(1, "new");
  if (from == nullptr || to == nullptr || from->AsString() == nullptr ||
      to->AsString() == nullptr) {
    return InvalidArgument("replace takes two strings");
  }
  ASSIGN_OR_RETURN(const int64_t count, IntegerArgument(args, 2, "count", -1));
  const uint64_t places = text.size() / std::max<size_t>(from->AsString()->size(), 1) + 1;
  if (to->AsString()->size() > (uint64_t{1} << 40) / places) {
    return ResourceExhausted("the chat template makes too much text");
  }
  RETURN_IF_ERROR(budget->Charge(text.size() + places * to->AsString()->size()));
  return Value(text.Replace(*from->AsString(), *to->AsString(), count));
}

Result<Value> Join(const Value& value, const Arguments& args, Budget* budget) {
  ASSIGN_OR_RETURN(const List items, Iterate(value, budget));
  const Value* separator = args.Find(0, "d");
  const Value* attribute = args.Find(1, "attribute");
  const MarkedString between = separator == nullptr ? MarkedString() : separator->ToText();
  MarkedString out;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (attribute != nullptr) {
      ASSIGN_OR_RETURN(item, GetItem(items[i], *attribute));
    }
    const MarkedString text = item.ToText();
    RETURN_IF_ERROR(budget->Charge(text.size() + between.size()));
    if (i > 0) {
      out.Append(between);
    }
    out.Append(text);
  }
  return Value(std::move(out));
}

// select, reject, selectattr, rejectattr: [attribute,] test, arguments of the test.
Result<Value> Select(const Value& value, const Arguments& args, bool by_attribute, bool keep,
                     Budget* budget) {
  ASSIGN_OR_RETURN(const List items, Iterate(value, budget));
  const size_t test_at = by_attribute ? 1 : 0;
  if (args.positional.size() < test_at) {
    return InvalidArgument("selectattr and rejectattr take an attribute");
  }
  std::string test;
  Arguments test_args;
  if (args.positional.size() > test_at) {
    const MarkedString* name = args.positional[test_at].AsString();
    if (name == nullptr || !(IsKnownTest(name->text()) || name->text() == "==")) {
      return InvalidArgument("the test {} is not supported",
                             args.positional[test_at].ToText().text());
    }
    test = name->text() == "==" ? "eq" : name->text();
    test_args.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(test_at) + 1,
                                args.positional.end());
  }
  List out;
  for (const Value& item : items) {
    RETURN_IF_ERROR(budget->Step());
    Value subject = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(subject, GetItem(item, args.positional[0]));
    }
    bool passes = subject.IsTrue();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(passes, ApplyTest(test, subject, test_args));
    }
    if (passes == keep) {
      out.push_back(item);
    }
  }
  return Value::FromList(std::move(out));
}

Result<Value> Map(const Value& value, const Arguments& args, Budget* budget) {
  ASSIGN_OR_RETURN(const List items, Iterate(value, budget));
  const Value* attribute = args.Find(SIZE_MAX, "attribute");
  const Value* missing = args.Find(SIZE_MAX, "default");
  std::string filter;
  Arguments filter_args;
  if (attribute == nullptr) {
    const MarkedString* name = args.positional.empty() ? nullptr : args.positional[0].AsString();
    if (name == nullptr || !IsKnownFilter(name->text())) {
      return InvalidArgument("map takes attribute=... or the name of a supported filter");
    }
    filter = name->text();
    if (filter == "map") {  // bounds the recursion
      return InvalidArgument("map of map is not supported");
    }
    filter_args.positional.assign(args.positional.begin() + 1, args.positional.end());
  }
  List out;
  for (const Value& item : items) {
    RETURN_IF_ERROR(budget->Step());
    Value mapped;
    if (attribute != nullptr) {
      ASSIGN_OR_RETURN(mapped, GetItem(item, *attribute));
      if (mapped.IsUndefined() && missing != nullptr) {
        mapped = *missing;
      }
    } else {
      ASSIGN_OR_RETURN(mapped, ApplyFilter(filter, item, filter_args, budget));
    }
    out.push_back(std::move(mapped));
  }
  return Value::FromList(std::move(out));
}

Result<Value> ToJson(const Value& value, const Arguments& args, Budget* budget) {
  ASSIGN_OR_RETURN(const int64_t indent, IntegerArgument(args, 1, "indent", -1));
  if (indent > 64) {
    return InvalidArgument("tojson: indent {} is above 64", indent);
  }
  MarkedString out;
  RETURN_IF_ERROR(AppendJson(value, static_cast<int>(indent), 0, &out));
  RETURN_IF_ERROR(budget->Charge(out.size()));
  return Value(std::move(out));
}

Result<Value> ToNumber(const std::string& name, const Value& value, const Arguments& args) {
  double number = 0;
  const Value* missing = args.Find(0, "default");
  if (const MarkedString* text = value.AsString()) {
    const std::string stripped = text->Strip(true, true, nullptr).text();
    char* end = nullptr;
    number = std::strtod(stripped.c_str(), &end);
    if (stripped.empty() || *end != '\0') {
      return missing != nullptr ? *missing : name == "int" ? Value(int64_t{0}) : Value(0.0);
    }
  } else if (!value.IsNumber(&number)) {
    return missing != nullptr ? *missing : name == "int" ? Value(int64_t{0}) : Value(0.0);
  }
  if (name == "float") {
    return Value(number);
  }
  if (!(std::abs(number) < 9e18)) {
    return InvalidArgument("int: {} is too large", number);
  }
  return Value(static_cast<int64_t>(number));
}

Result<Value> Length(const Value& value) {
  if (const MarkedString* text = value.AsString()) {
    return Value(static_cast<int64_t>(std::count_if(text->text().begin(), text->text().end(),
                                                    [](char c) { return (c & 0xC0) != 0x80; })));
  }
  if (const List* list = value.AsList()) {
    return Value(static_cast<int64_t>(list->size()));
  }
  if (const Dict* dict = value.AsDict()) {
    return Value(static_cast<int64_t>(dict->size()));
  }
  if (value.IsUndefined()) {
    return Value(int64_t{0});
  }
  return BadArgument("length", value);
}

// The filters that make one list of another.
Result<Value> ListFilter(const std::string& name, const Value& value, Budget* budget) {
  if (name == "reverse" && value.AsString() != nullptr) {
    return Slice(value, Value(), Value(), Value(int64_t{-1}), budget);
  }
  ASSIGN_OR_RETURN(List items, Iterate(value, budget));
  if (name == "first") {
    return items.empty() ? Value(Undefined{"the first item"}) : items.front();
  }
  if (name == "last") {
    return items.empty() ? Value(Undefined{"the last item"}) : items.back();
  }
  if (name == "reverse") {
    std::reverse(items.begin(), items.end());
  } else if (name == "unique") {
    List unique;
    for (Value& item : items) {
      RETURN_IF_ERROR(budget->Step());
      if (std::none_of(unique.begin(), unique.end(),
                       [&](const Value& each) { return each.Equals(item); })) {
        RETURN_IF_ERROR(budget->ChargeList(unique.size()));  // bounds the quadratic search
        unique.push_back(std::move(item));
      }
    }
    items = std::move(unique);
  } else if (name == "sum") {
    Value sum(int64_t{0});
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(sum, BinaryOperation("+", sum, item, budget));
    }
    return sum;
  }
  return Value::FromList(std::move(items));
}

Result<Value> StringMethod(const MarkedString& text, const std::string& name, const Arguments& args,
                           Budget* budget) {
  const Value* first = args.Find(0, name.ends_with("split") ? "sep" : "");
  const MarkedString* argument = first == nullptr ? nullptr : first->AsString();
  if (first != nullptr && argument == nullptr && !first->IsNone() && first->AsList() == nullptr) {
    return BadArgument(name, *first);
  }
  RETURN_IF_ERROR(budget->Charge(text.size()));
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    return Value(text.Strip(name != "rstrip", name != "lstrip",
                            argument == nullptr ? nullptr : &argument->text()));
  }
  if (name == "split" || name == "rsplit") {
    ASSIGN_OR_RETURN(const int64_t most, IntegerArgument(args, 1, "maxsplit", -1));
    if (argument == nullptr) {
      if (name == "rsplit" && most >= 0) {
        return InvalidArgument("rsplit without a separator takes no maxsplit here");
      }
      return TextList(text.SplitAtSpace(most), budget);
    }
    if (argument->empty()) {
      return InvalidArgument("split with an empty separator");
    }
    return TextList(text.Split(argument->text(), most, name == "rsplit"), budget);
  }
  if (name == "splitlines") {
    return TextList(text.SplitLines(), budget);
  }
  if (name == "upper") {
    return Value(text.WithCase(MarkedString::Case::kUpper));
  }
  if (name == "lower") {
    return Value(text.WithCase(MarkedString::Case::kLower));
  }
  if (name == "title") {
    return Value(text.WithCase(MarkedString::Case::kTitle));
  }
  if (name == "capitalize") {
    return Value(text.WithCase(MarkedString::Case::kCapitalize));
  }
  if (name == "replace") {
    return Replace(text, args, budget);
  }
  // The rest take a string, or startswith and endswith a tuple of strings.
  List candidates;
  if (first != nullptr && first->AsList() != nullptr) {
    candidates = *first->AsList();
  } else if (argument != nullptr) {
    candidates.push_back(*first);
  } else {
    return InvalidArgument("{} takes a string", name);
  }
  if (name == "startswith" || name == "endswith") {
    bool any = false;
    for (const Value& candidate : candidates) {
      const MarkedString* affix = candidate.AsString();
      if (affix == nullptr) {
        return BadArgument(name, candidate);
      }
      any = any || (name == "startswith" ? text.text().starts_with(affix->text())
                                         : text.text().ends_with(affix->text()));
    }
    return Value(any);
  }
  if (argument == nullptr) {
    return InvalidArgument("{} takes a string", name);
  }
  const std::string& affix = argument->text();
  if (name == "removeprefix") {
    return Value(text.text().starts_with(affix) ? text.Substring(affix.size()) : text);
  }
  if (name == "removesuffix") {
    return Value(text.text().ends_with(affix) ? text.Substring(0, text.size() - affix.size())
                                              : text);
  }
  if (name == "find") {
    const size_t found = text.text().find(affix);
    if (found == std::string::npos) {
      return Value(int64_t{-1});
    }
    return Length(Value(text.Substring(0, found)));
  }
  if (affix.empty()) {
    return InvalidArgument("count of an empty string");
  }
  int64_t count = 0;
  for (size_t at = 0; (at = text.text().find(affix, at)) != std::string::npos;) {
    ++count;
    at += affix.size();
  }
  return Value(count);
}

}  // namespace

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) {
    return &positional[index];
  }
  for (const auto& [key, value] : named) {
    if (key == name) {
      return &value;
    }
  }
  return nullptr;
}

bool IsKnownFilter(std::string_view name) { return Has(kFilters, name); }
bool IsKnownTest(std::string_view name) { return Has(kTests, name); }

Result<Value> ApplyFilter(const std::string& name, const Value& value, const Arguments& args,
                          Budget* budget) {
  RETURN_IF_ERROR(budget->Step());
  if (name == "trim") {
    const Value* characters = args.Find(0, "chars");
    const bool given = characters != nullptr && characters->AsString() != nullptr;
    const MarkedString text = value.ToText();
    RETURN_IF_ERROR(budget->Charge(text.size()));
    return Value(text.Strip(true, true, given ? &characters->AsString()->text() : nullptr));
  }
  if (name == "upper" || name == "lower" || name == "capitalize" || name == "title") {
    return StringMethod(value.ToText(), name, {}, budget);
  }
  if (name == "replace") {
    return Replace(value.ToText(), args, budget);
  }
  if (name == "string" || name == "safe") {
    return Value(value.ToText());
  }
  if (name == "length" || name == "count") {
    return Length(value);
  }
  if (name == "tojson") {
    return ToJson(value, args, budget);
  }
  if (name == "join") {
    return Join(value, args, budget);
  }
  if (name == "default" || name == "d") {
    const Value* missing = args.Find(0, "default_value");
    const Value* falsy = args.Find(1, "boolean");
    const bool replace =
        value.IsUndefined() || (falsy != nullptr && falsy->IsTrue() && !value.IsTrue());
    return !replace ? value : missing != nullptr ? *missing : Value::Text("");
  }
  if (name == "int" || name == "float") {
    return ToNumber(name, value, args);
  }
  if (name == "abs" || name == "round") {
    int64_t integer = 0;
    double number = 0;
    if (value.IsInteger(&integer) && integer != INT64_MIN) {
      return name == "abs" ? Value(integer < 0 ? -integer : integer) : Value(double(integer));
    }
    if (!value.IsNumber(&number) || !args.positional.empty() || !args.named.empty()) {
      return BadArgument(name, value);
    }
    return Value(name == "abs" ? std::abs(number) : std::nearbyint(number));
  }
  if (name == "selectattr" || name == "rejectattr") {
    return Select(value, args, /*by_attribute=*/true, name == "selectattr", budget);
  }
  if (name == "select" || name == "reject") {
    return Select(value, args, /*by_attribute=*/false, name == "select", budget);
  }
  if (name == "map") {
    return Map(value, args, budget);
  }
  if (name == "items") {
    return Items(value, budget);
  }
  return ListFilter(name, value, budget);
}

Result<bool> ApplyTest(const std::string& name, const Value& value, const Arguments& args) {
  int64_t integer = 0;
  double number = 0;
  if (name == "defined") {
    return !value.IsUndefined();
  }
  if (name == "undefined") {
    return value.IsUndefined();
  }
  if (name == "none") {
    return value.IsNone();
  }
  if (name == "string") {
    return value.AsString() != nullptr;
  }
  if (name == "mapping") {
    return value.AsDict() != nullptr;
  }
  if (name == "iterable") {
    return value.AsString() != nullptr || value.AsList() != nullptr || value.AsDict() != nullptr ||
           value.IsUndefined();
  }
  if (name == "sequence") {  // has a length and items, so mappings and undefined pass too
    return value.AsString() != nullptr || value.AsList() != nullptr || value.AsDict() != nullptr ||
           value.IsUndefined();
  }
  if (name == "number") {
    return value.IsNumber(&number);
  }
  if (name == "integer") {
    return value.AsInt() != nullptr;
  }
  if (name == "float") {
    return value.AsFloat() != nullptr;
  }
  if (name == "boolean") {
    return value.AsBool() != nullptr;
  }
  if (name == "true" || name == "false") {
    return value.AsBool() != nullptr && *value.AsBool() == (name == "true");
  }
  if (name == "callable") {
    return value.AsFunction() != nullptr;
  }
  if (name == "lower" || name == "upper") {
    const MarkedString text = value.ToText();
    const MarkedString up = text.WithCase(MarkedString::Case::kUpper);
    const MarkedString low = text.WithCase(MarkedString::Case::kLower);
    return text.text() == (name == "lower" ? low : up).text() && up.text() != low.text();
  }
  if (name == "odd" || name == "even") {
    if (!value.IsInteger(&integer)) {
      return BadArgument(name, value);
    }
    return (integer % 2 != 0) == (name == "odd");
  }
  if (args.positional.size() != 1) {
    return InvalidArgument("the test '{}' takes one argument", name);
  }
  const Value& other = args.positional[0];
  if (name == "divisibleby") {
    int64_t divisor = 0;
    if (!value.IsInteger(&integer) || !other.IsInteger(&divisor) || divisor == 0) {
      return InvalidArgument("divisibleby takes two integers, the second not 0");
    }
    return divisor == -1 || integer % divisor == 0;
  }
  if (name == "sameas") {  // identity; for what templates compare it is type and value
    return value.TypeName() == other.TypeName() && value.Equals(other);
  }
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kComparisons = {
      {{"equalto", "=="},
       {"eq", "=="},
       {"ne", "!="},
       {"lt", "<"},
       {"lessthan", "<"},
       {"le", "<="},
       {"gt", ">"},
       {"ge", ">="},
       {"in", "in"}}};
  for (const auto& [test, op] : kComparisons) {
    if (name == test) {
      return Comparison(op, value, other);
    }
  }
  return InvalidArgument("the test '{}' is not supported", name);
}

bool HasMethod(const Value& object, std::string_view name) {
  return (object.AsString() != nullptr && Has(kStringMethods, name)) ||
         (object.AsDict() != nullptr && Has(kDictMethods, name));
}

Result<Value> CallMethod(const Value& object, const std::string& name, const Arguments& args,
                         Budget* budget) {
  CHECK(HasMethod(object, name));
  if (const MarkedString* text = object.AsString()) {
    return StringMethod(*text, name, args, budget);
  }
  const Dict& dict = *object.AsDict();
  if (name == "items") {
    return Items(object, budget);
  }
  if (name == "get") {
    const Value* key = args.Find(0, "");
    const Value* missing = args.Find(1, "");
    const Value* found = key != nullptr && key->AsString() != nullptr
                             ? FindMember(dict, key->AsString()->text())
                             : nullptr;
    return found != nullptr ? *found : missing != nullptr ? *missing : Value(None{});
  }
  List list;
  RETURN_IF_ERROR(budget->ChargeList(dict.size()));
  for (const auto& [key, value] : dict) {
    list.push_back(name == "keys" ? Value::Text(key) : value);
  }
  return Value::FromList(std::move(list));
}

}  // namespace lserve::jinja
