// The values of the chat template's evaluator: Python's None, bool, int, float, str, list, dict,
// and Jinja's undefined, namespace and macros. Strings, lists and dicts are immutable and shared;
// a namespace belongs to one rendering.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/status.h"
#include "text/marked_string.h"

namespace lserve::jinja {

struct Statement;
class Value;

using List = std::vector<Value>;
// In the order of insertion. Keys are few, so lookup is linear.
using Dict = std::vector<std::pair<std::string, Value>>;

struct Undefined {
  std::string name;  // what was looked up, for error messages
};
struct None {};
struct Namespace {
  Dict members;
};
struct Function {
  std::string name;                  // of a builtin
  const Statement* macro = nullptr;  // or a macro's definition
};

class Value {
 public:
  // Lists and dicts nest no deeper than this, so recursion over a value is bounded.
  static constexpr int kMaxDepth = 100;

  Value() : data_(Undefined{}) {}
  explicit Value(Undefined undefined) : data_(std::move(undefined)) {}
  explicit Value(None none) : data_(none) {}
  explicit Value(bool value) : data_(value) {}
  explicit Value(int64_t value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  explicit Value(MarkedString text)
      : data_(std::make_shared<const MarkedString>(std::move(text))) {}
  explicit Value(std::shared_ptr<Namespace> members) : data_(std::move(members)) {}
  explicit Value(Function function) : data_(std::move(function)) {}
  // Errors: kResourceExhausted (nested too deep).
  static Result<Value> FromList(List list);
  static Result<Value> FromDict(Dict dict);
  static Value Text(std::string_view text) { return Value(MarkedString(text)); }

  bool IsUndefined() const { return std::holds_alternative<Undefined>(data_); }
  bool IsNone() const { return std::holds_alternative<None>(data_); }
  const bool* AsBool() const { return std::get_if<bool>(&data_); }
  const int64_t* AsInt() const { return std::get_if<int64_t>(&data_); }
  const double* AsFloat() const { return std::get_if<double>(&data_); }
  const MarkedString* AsString() const { return Shared<const MarkedString>(); }
  const List* AsList() const;
  const Dict* AsDict() const;
  Namespace* AsNamespace() const { return Shared<Namespace>(); }
  const Function* AsFunction() const { return std::get_if<Function>(&data_); }

  int depth() const;
  bool IsTrue() const;
  // bool counts as int, as in Python.
  bool IsInteger(int64_t* value) const;
  bool IsNumber(double* value) const;
  // In words, for error messages: "a string", "undefined (message.tools)".
  std::string TypeName() const;

  bool Equals(const Value& other) const;
  // str(): what {{ }} prints.
  MarkedString ToText() const;

 private:
  struct ListBox {
    List items;
    int depth;
  };
  struct DictBox {
    Dict items;
    int depth;
  };
  explicit Value(std::shared_ptr<const ListBox> list) : data_(std::move(list)) {}
  explicit Value(std::shared_ptr<const DictBox> dict) : data_(std::move(dict)) {}
  template <typename T>
  T* Shared() const {
    const auto* held = std::get_if<std::shared_ptr<T>>(&data_);
    return held == nullptr ? nullptr : held->get();
  }
  void AppendRepr(MarkedString* out) const;

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const MarkedString>,
               std::shared_ptr<const ListBox>, std::shared_ptr<const DictBox>,
               std::shared_ptr<Namespace>, Function>
      data_;
};

const Value* FindMember(const Dict& dict, std::string_view key);

// json.dumps(value, ensure_ascii=False, indent=indent); indent < 0 is one line.
// Errors: kInvalidArgument (a value that JSON does not know).
Status AppendJson(const Value& value, int indent, int level, MarkedString* out);

}  // namespace lserve::jinja
