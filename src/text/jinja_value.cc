#include "text/jinja_value.h"

#include <algorithm>
#include <cmath>

#include "text/utf8.h"

namespace lserve::jinja {
namespace {

std::string FloatText(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value > 0 ? "inf" : "-inf";
  }
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) {
    text += ".0";
  }
  return text;
}

// Marks stay with the characters that are escaped.
void AppendJsonString(const MarkedString& string, MarkedString* out) {
  out->Append("\"", false);
  size_t plain = 0;
  for (size_t i = 0; i < string.size(); ++i) {
    const char c = string.text()[i];
    std::string escaped;
    switch (c) {
      case '"': escaped = "\\\""; break;
      case '\\': escaped = "\\\\"; break;
      case '\n': escaped = "\\n"; break;
      case '\r': escaped = "\\r"; break;
      case '\t': escaped = "\\t"; break;
      case '\b': escaped = "\\b"; break;
      case '\f': escaped = "\\f"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) {
          continue;
        }
        escaped = fmt::format("\\u{:04x}", static_cast<int>(c));
    }
    out->Append(string.Substring(plain, i - plain));
    out->Append(escaped, string.marks()[i] != '\0');
    plain = i + 1;
  }
  out->Append(string.Substring(plain));
  out->Append("\"", false);
}

int DepthOf(const List& list) {
  int depth = 0;
  for (const Value& value : list) {
    depth = std::max(depth, value.depth());
  }
  return depth + 1;
}

int DepthOf(const Dict& dict) {
  int depth = 0;
  for (const auto& [key, value] : dict) {
    depth = std::max(depth, value.depth());
  }
  return depth + 1;
}

Status TooDeep() {
  return ResourceExhausted("the chat template nests lists deeper than {}", Value::kMaxDepth);
}

}  // namespace

Result<Value> Value::FromList(List list) {
  const int depth = DepthOf(list);
  if (depth > kMaxDepth) {
    return TooDeep();
  }
  return Value(std::make_shared<const ListBox>(ListBox{std::move(list), depth}));
}

Result<Value> Value::FromDict(Dict dict) {
  const int depth = DepthOf(dict);
  if (depth > kMaxDepth) {
    return TooDeep();
  }
  return Value(std::make_shared<const DictBox>(DictBox{std::move(dict), depth}));
}

const List* Value::AsList() const {
  const auto* box = Shared<const ListBox>();
  return box == nullptr ? nullptr : &box->items;
}

const Dict* Value::AsDict() const {
  const auto* box = Shared<const DictBox>();
  return box == nullptr ? nullptr : &box->items;
}

int Value::depth() const {
  if (const auto* list = Shared<const ListBox>()) {
    return list->depth;
  }
  if (const auto* dict = Shared<const DictBox>()) {
    return dict->depth;
  }
  return 0;
}

bool Value::IsTrue() const {
  if (const bool* value = AsBool()) {
    return *value;
  }
  if (const int64_t* value = AsInt()) {
    return *value != 0;
  }
  if (const double* value = AsFloat()) {
    return *value != 0;
  }
  if (const MarkedString* value = AsString()) {
    return !value->empty();
  }
  if (const List* value = AsList()) {
    return !value->empty();
  }
  if (const Dict* value = AsDict()) {
    return !value->empty();
  }
  return !IsUndefined() && !IsNone();
}

bool Value::IsInteger(int64_t* value) const {
  if (const bool* flag = AsBool()) {
    *value = *flag ? 1 : 0;
    return true;
  }
  if (const int64_t* integer = AsInt()) {
    *value = *integer;
    return true;
  }
  return false;
}

bool Value::IsNumber(double* value) const {
  int64_t integer = 0;
  if (IsInteger(&integer)) {
    *value = static_cast<double>(integer);
    return true;
  }
  if (const double* number = AsFloat()) {
    *value = *number;
    return true;
  }
  return false;
}

std::string Value::TypeName() const {
  if (const auto* undefined = std::get_if<Undefined>(&data_)) {
    return undefined->name.empty() ? "undefined" : fmt::format("undefined ({})", undefined->name);
  }
  static constexpr const char* kNames[] = {"undefined",   "none",      "a boolean", "an integer",
                                           "a float",     "a string",  "a list",    "a mapping",
                                           "a namespace", "a function"};
  return kNames[data_.index()];
}

bool Value::Equals(const Value& other) const {
  int64_t integer = 0;
  int64_t other_integer = 0;
  if (IsInteger(&integer) && other.IsInteger(&other_integer)) {
    return integer == other_integer;
  }
  double number = 0;
  double other_number = 0;
  if (IsNumber(&number) && other.IsNumber(&other_number)) {
    return number == other_number;
  }
  if (data_.index() != other.data_.index()) {
    return false;
  }
  if (const MarkedString* text = AsString()) {
    return text->text() == other.AsString()->text();
  }
  if (const List* list = AsList()) {
    return std::equal(list->begin(), list->end(), other.AsList()->begin(), other.AsList()->end(),
                      [](const Value& a, const Value& b) { return a.Equals(b); });
  }
  if (const Dict* dict = AsDict()) {
    const Dict& others = *other.AsDict();
    return dict->size() == others.size() &&
           std::all_of(dict->begin(), dict->end(), [&](const auto& member) {
             const Value* found = FindMember(others, member.first);
             return found != nullptr && found->Equals(member.second);
           });
  }
  if (const Namespace* space = AsNamespace()) {
    return space == other.AsNamespace();
  }
  if (const Function* function = AsFunction()) {
    return function->macro == other.AsFunction()->macro &&
           function->name == other.AsFunction()->name;
  }
  return true;  // none, undefined
}

MarkedString Value::ToText() const {
  if (const MarkedString* text = AsString()) {
    return *text;
  }
  MarkedString out;
  AppendRepr(&out);
  return out;
}

void Value::AppendRepr(MarkedString* out) const {
  if (const bool* flag = AsBool()) {
    out->Append(*flag ? "True" : "False", false);
  } else if (const int64_t* integer = AsInt()) {
    out->Append(fmt::format("{}", *integer), false);
  } else if (const double* number = AsFloat()) {
    out->Append(FloatText(*number), false);
  } else if (IsNone()) {
    out->Append("None", false);
  } else if (const MarkedString* text = AsString()) {
    // Python's repr, for text without characters that it would escape as \x or \u.
    const bool double_quotes =
        text->text().find('\'') != std::string::npos && text->text().find('"') == std::string::npos;
    const std::string quote = double_quotes ? "\"" : "'";
    MarkedString escaped = text->Replace(MarkedString("\\"), MarkedString("\\\\"), -1);
    escaped = escaped.Replace(MarkedString("\n"), MarkedString("\\n"), -1);
    escaped = escaped.Replace(MarkedString("\r"), MarkedString("\\r"), -1);
    escaped = escaped.Replace(MarkedString("\t"), MarkedString("\\t"), -1);
    if (!double_quotes) {
      escaped = escaped.Replace(MarkedString("'"), MarkedString("\\'"), -1);
    }
    out->Append(quote, false);
    out->Append(escaped);
    out->Append(quote, false);
  } else if (const List* list = AsList()) {
    out->Append("[", false);
    for (size_t i = 0; i < list->size(); ++i) {
      out->Append(i == 0 ? "" : ", ", false);
      (*list)[i].AppendRepr(out);
    }
    out->Append("]", false);
  } else if (const Dict* dict = AsDict()) {
    out->Append("{", false);
    for (size_t i = 0; i < dict->size(); ++i) {
      out->Append(i == 0 ? "" : ", ", false);
      Value::Text((*dict)[i].first).AppendRepr(out);
      out->Append(": ", false);
      (*dict)[i].second.AppendRepr(out);
    }
    out->Append("}", false);
  } else if (!IsUndefined()) {
    out->Append(fmt::format("<{}>", TypeName()), false);
  }
}

const Value* FindMember(const Dict& dict, std::string_view key) {
  for (const auto& [name, value] : dict) {
    if (name == key) {
      return &value;
    }
  }
  return nullptr;
}

Status AppendJson(const Value& value, int indent, int level, MarkedString* out) {
  const auto new_line = [&](int at) {
    if (indent >= 0) {
      out->Append(fmt::format("\n{:{}}", "", indent * at), false);
    }
  };
  const std::string_view comma = indent >= 0 ? "," : ", ";
  if (value.IsNone()) {
    out->Append("null", false);
  } else if (const bool* flag = value.AsBool()) {
    out->Append(*flag ? "true" : "false", false);
  } else if (value.AsInt() != nullptr) {
    out->Append(value.ToText());
  } else if (const double* number = value.AsFloat()) {
    out->Append(std::isnan(*number)   ? "NaN"
                : std::isinf(*number) ? (*number > 0 ? "Infinity" : "-Infinity")
                                      : value.ToText().text(),
                false);
  } else if (const MarkedString* text = value.AsString()) {
    AppendJsonString(*text, out);
  } else if (const List* list = value.AsList()) {
    out->Append("[", false);
    for (size_t i = 0; i < list->size(); ++i) {
      out->Append(i == 0 ? "" : comma, false);
      new_line(level + 1);
      RETURN_IF_ERROR(AppendJson((*list)[i], indent, level + 1, out));
    }
    if (!list->empty()) {
      new_line(level);
    }
    out->Append("]", false);
  } else if (const Dict* dict = value.AsDict()) {
    out->Append("{", false);
    for (size_t i = 0; i < dict->size(); ++i) {
      out->Append(i == 0 ? "" : comma, false);
      new_line(level + 1);
      AppendJsonString(MarkedString((*dict)[i].first), out);
      out->Append(": ", false);
      RETURN_IF_ERROR(AppendJson((*dict)[i].second, indent, level + 1, out));
    }
    if (!dict->empty()) {
      new_line(level);
    }
    out->Append("}", false);
  } else {
    return InvalidArgument("tojson: {} is not JSON", value.TypeName());
  }
  return OkStatus();
}

}  // namespace lserve::jinja
