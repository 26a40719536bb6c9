#include "text/jinja_evaluator.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>

#include "text/jinja_builtins.h"
#include "text/jinja_operators.h"

namespace lserve::jinja {
namespace {

constexpr int kMaxDepth = 400;

struct Scope {
  const Scope* parent = nullptr;
  std::map<std::string, Value, std::less<>> names;
};

// What a body ended with.
enum class Flow { kNormal, kBreak, kContinue };

class Evaluator {
 public:
  Evaluator(const std::tm& local_time, Budget* budget) : local_time_(local_time), budget_(budget) {}
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;
  // A namespace may hold itself, so the cycle is cut here.
  ~Evaluator() {
    for (const auto& space : namespaces_) {
      space->members.clear();
    }
  }

  Result<MarkedString> Run(const Body& body, std::vector<std::pair<std::string, Value>> globals) {
    for (auto& [name, value] : globals) {
      globals_.names.insert_or_assign(name, std::move(value));
    }
    for (const char* name : {"raise_exception", "strftime_now", "range", "namespace", "dict"}) {
      globals_.names.insert_or_assign(name, Value(Function{name, nullptr}));
    }
    MarkedString out;
    ASSIGN_OR_RETURN([[maybe_unused]] const Flow flow, RunBody(body, &globals_, &out));
    return out;
  }

 private:
  class Level {
   public:
    explicit Level(int* depth) : depth_(depth) { ++*depth_; }
    ~Level() { --*depth_; }
    bool TooDeep() const { return *depth_ > kMaxDepth; }

   private:
    int* depth_;
  };
  static Status TooDeep() {
    return ResourceExhausted("the chat template recurses deeper than {}", kMaxDepth);
  }

  // ---- statements ----

  Result<Flow> RunBody(const Body& body, Scope* scope, MarkedString* out) {
    const Level level(&depth_);
    if (level.TooDeep()) {
      return TooDeep();
    }
    for (const Statement& statement : body) {
      RETURN_IF_ERROR(budget_->Step());
      ASSIGN_OR_RETURN(const Flow flow, RunStatement(statement, scope, out));
      if (flow != Flow::kNormal) {
        return flow;
      }
    }
    return Flow::kNormal;
  }

  Result<Flow> RunStatement(const Statement& statement, Scope* scope, MarkedString* out) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        RETURN_IF_ERROR(budget_->Charge(statement.text.size()));
        out->Append(statement.text, /*from_user=*/false);
        return Flow::kNormal;
      case Statement::Kind::kPrint: {
        ASSIGN_OR_RETURN(const Value value, Eval(*statement.expression, scope));
        const MarkedString text = value.ToText();
        RETURN_IF_ERROR(budget_->Charge(text.size()));
        out->Append(text);
        return Flow::kNormal;
      }
      case Statement::Kind::kIf:
        for (const Statement::Branch& branch : statement.branches) {
          bool taken = true;
          if (branch.condition) {
            ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition, scope));
            taken = condition.IsTrue();
          }
          if (taken) {
            return RunBody(branch.body, scope, out);
          }
        }
        return Flow::kNormal;
      case Statement::Kind::kFor: return RunFor(statement, scope, out);
      case Statement::Kind::kSet: RETURN_IF_ERROR(RunSet(statement, scope)); return Flow::kNormal;
      case Statement::Kind::kSetBlock: {
        MarkedString text;
        Scope inner{scope, {}};
        ASSIGN_OR_RETURN(const Flow flow, RunBody(statement.body, &inner, &text));
        scope->names.insert_or_assign(statement.names[0], Value(std::move(text)));
        return flow;
      }
      case Statement::Kind::kMacro:
        scope->names.insert_or_assign(statement.name, Value(Function{statement.name, &statement}));
        return Flow::kNormal;
      case Statement::Kind::kBlock: return RunBody(statement.body, scope, out);
      case Statement::Kind::kBreak: return Flow::kBreak;
      case Statement::Kind::kContinue: return Flow::kContinue;
    }
    return Flow::kNormal;
  }

  static Status Bind(const std::vector<std::string>& names, const Value& value, Scope* scope) {
    if (names.size() == 1) {
      scope->names.insert_or_assign(names[0], value);
      return OkStatus();
    }
    const List* items = value.AsList();
    if (items == nullptr || items->size() != names.size()) {
      return InvalidArgument("{} does not unpack into {} names", value.TypeName(), names.size());
    }
    for (size_t i = 0; i < names.size(); ++i) {
      scope->names.insert_or_assign(names[i], (*items)[i]);
    }
    return OkStatus();
  }

  Status RunSet(const Statement& statement, Scope* scope) {
    ASSIGN_OR_RETURN(const Value value, Eval(*statement.expression, scope));
    if (statement.attribute.empty()) {
      return Bind(statement.names, value, scope);
    }
    const Value target = Lookup(statement.names[0], scope);
    Namespace* space = target.AsNamespace();
    if (space == nullptr) {
      return InvalidArgument("chat template, line {}: {} is no namespace", statement.line,
                             statement.names[0]);
    }
    for (auto& [name, member] : space->members) {
      if (name == statement.attribute) {
        member = value;
        return OkStatus();
      }
    }
    space->members.emplace_back(statement.attribute, value);
    return OkStatus();
  }

  Result<Flow> RunFor(const Statement& statement, Scope* scope, MarkedString* out) {
    ASSIGN_OR_RETURN(const Value iterable, Eval(*statement.expression, scope));
    ASSIGN_OR_RETURN(List items, Iterate(iterable, budget_));
    if (statement.condition) {
      List kept;
      for (Value& item : items) {
        Scope inner{scope, {}};
        RETURN_IF_ERROR(Bind(statement.names, item, &inner));
        ASSIGN_OR_RETURN(const Value condition, Eval(*statement.condition, &inner));
        if (condition.IsTrue()) {
          kept.push_back(std::move(item));
        }
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      return RunBody(statement.else_body, scope, out);
    }
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      RETURN_IF_ERROR(budget_->Step());
      const auto item = [&](int64_t index, const char* name) {
        return index >= 0 && index < count ? items[static_cast<size_t>(index)]
                                           : Value(Undefined{name});
      };
      Scope inner{scope, {}};
      ASSIGN_OR_RETURN(Value loop, Value::FromDict({{"index", Value(i + 1)},
                                                    {"index0", Value(i)},
                                                    {"first", Value(i == 0)},
                                                    {"last", Value(i + 1 == count)},
                                                    {"length", Value(count)},
                                                    {"revindex", Value(count - i)},
                                                    {"revindex0", Value(count - i - 1)},
                                                    {"previtem", item(i - 1, "loop.previtem")},
                                                    {"nextitem", item(i + 1, "loop.nextitem")}}));
      inner.names.emplace("loop", std::move(loop));
      RETURN_IF_ERROR(Bind(statement.names, items[static_cast<size_t>(i)], &inner));
      ASSIGN_OR_RETURN(const Flow flow, RunBody(statement.body, &inner, out));
      if (flow == Flow::kBreak) {
        break;
      }
    }
    return Flow::kNormal;
  }

  // ---- expressions ----

  static Value Lookup(const std::string& name, const Scope* scope) {
    for (; scope != nullptr; scope = scope->parent) {
      if (const auto found = scope->names.find(name); found != scope->names.end()) {
        return found->second;
      }
    }
    return Value(Undefined{name});
  }

  Result<Value> Eval(const Expression& expression, const Scope* scope) {
    const Level level(&depth_);
    if (level.TooDeep()) {
      return TooDeep();
    }
    RETURN_IF_ERROR(budget_->Step());
    Result<Value> result = EvalKind(expression, scope);
    if (!result.ok() && !raised_ && result.status().code() == StatusCode::kInvalidArgument &&
        !located_) {
      located_ = true;
      return result.status().Annotate(fmt::format("chat template, line {}", expression.line));
    }
    return result;
  }

  Result<Value> EvalKind(const Expression& e, const Scope* scope) {
    using Kind = Expression::Kind;
    switch (e.kind) {
      case Kind::kLiteral: return e.literal;
      case Kind::kName: return Lookup(e.name, scope);
      case Kind::kList: {
        List items;
        RETURN_IF_ERROR(budget_->ChargeList(e.args.size()));
        for (const ExpressionPtr& arg : e.args) {
          ASSIGN_OR_RETURN(Value item, Eval(*arg, scope));
          items.push_back(std::move(item));
        }
        return Value::FromList(std::move(items));
      }
      case Kind::kDict: return EvalDict(e, scope);
      case Kind::kAttribute: {
        ASSIGN_OR_RETURN(const Value object, Eval(*e.args[0], scope));
        return GetAttribute(object, e.name);
      }
      case Kind::kSubscript: {
        ASSIGN_OR_RETURN(const Value object, Eval(*e.args[0], scope));
        ASSIGN_OR_RETURN(const Value key, Eval(*e.args[1], scope));
        if (object.AsString() != nullptr) {
          RETURN_IF_ERROR(budget_->ChargeList(object.AsString()->size()));
        }
        return GetItem(object, key);
      }
      case Kind::kSlice: {
        ASSIGN_OR_RETURN(const Value object, Eval(*e.args[0], scope));
        std::array<Value, 3> bounds;
        for (size_t i = 0; i < 3; ++i) {
          if (e.args[i + 1]) {
            ASSIGN_OR_RETURN(bounds[i], Eval(*e.args[i + 1], scope));
          }
        }
        return Slice(object, bounds[0], bounds[1], bounds[2], budget_);
      }
      case Kind::kCall: return EvalCall(e, scope);
      case Kind::kFilter: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.args[0], scope));
        ASSIGN_OR_RETURN(const Arguments args, EvalArguments(e, scope));
        return ApplyFilter(e.name, value, args, budget_);
      }
      case Kind::kTest: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.args[0], scope));
        ASSIGN_OR_RETURN(const Arguments args, EvalArguments(e, scope));
        ASSIGN_OR_RETURN(const bool passes, ApplyTest(e.name, value, args));
        return Value(passes);
      }
      case Kind::kNot: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.args[0], scope));
        return Value(!value.IsTrue());
      }
      case Kind::kNegate: {
        ASSIGN_OR_RETURN(const Value value, Eval(*e.args[0], scope));
        return BinaryOperation("-", Value(int64_t{0}), value, budget_);
      }
      case Kind::kAnd:
      case Kind::kOr: {
        ASSIGN_OR_RETURN(Value left, Eval(*e.args[0], scope));
        return left.IsTrue() == (e.kind == Kind::kOr) ? Result<Value>(std::move(left))
                                                      : Eval(*e.args[1], scope);
      }
      case Kind::kBinary: {
        ASSIGN_OR_RETURN(const Value left, Eval(*e.args[0], scope));
        ASSIGN_OR_RETURN(const Value right, Eval(*e.args[1], scope));
        return BinaryOperation(e.name, left, right, budget_);
      }
      case Kind::kCompare: {
        ASSIGN_OR_RETURN(Value left, Eval(*e.args[0], scope));
        for (size_t i = 0; i < e.operators.size(); ++i) {
          ASSIGN_OR_RETURN(Value right, Eval(*e.args[i + 1], scope));
          ASSIGN_OR_RETURN(const bool holds, Comparison(e.operators[i], left, right));
          if (!holds) {
            return Value(false);
          }
          left = std::move(right);
        }
        return Value(true);
      }
      case Kind::kConditional: {
        ASSIGN_OR_RETURN(const Value condition, Eval(*e.args[1], scope));
        if (condition.IsTrue()) {
          return Eval(*e.args[0], scope);
        }
        return e.args[2] ? Eval(*e.args[2], scope) : Result<Value>(Value());
      }
    }
    return Value();
  }

  Result<Value> EvalDict(const Expression& e, const Scope* scope) {
    Dict dict;
    RETURN_IF_ERROR(budget_->ChargeList(e.args.size()));
    for (size_t i = 0; i < e.args.size(); i += 2) {
      ASSIGN_OR_RETURN(const Value key, Eval(*e.args[i], scope));
      ASSIGN_OR_RETURN(Value value, Eval(*e.args[i + 1], scope));
      if (key.AsString() == nullptr) {
        return InvalidArgument("a mapping's key is {}, not a string", key.TypeName());
      }
      const std::string& name = key.AsString()->text();
      std::erase_if(dict, [&](const auto& member) { return member.first == name; });
      dict.emplace_back(name, std::move(value));
    }
    return Value::FromDict(std::move(dict));
  }

  // The arguments behind args[0].
  Result<Arguments> EvalArguments(const Expression& e, const Scope* scope) {
    Arguments args;
    for (size_t i = 1; i < e.args.size(); ++i) {
      ASSIGN_OR_RETURN(Value value, Eval(*e.args[i], scope));
      args.positional.push_back(std::move(value));
    }
    for (const auto& [name, argument] : e.keywords) {
      ASSIGN_OR_RETURN(Value value, Eval(*argument, scope));
      args.named.emplace_back(name, std::move(value));
    }
    return args;
  }

  Result<Value> EvalCall(const Expression& e, const Scope* scope) {
    const Expression& callee = *e.args[0];
    Value function;
    if (callee.kind == Expression::Kind::kAttribute) {
      ASSIGN_OR_RETURN(const Value object, Eval(*callee.args[0], scope));
      if (HasMethod(object, callee.name)) {
        ASSIGN_OR_RETURN(const Arguments args, EvalArguments(e, scope));
        return CallMethod(object, callee.name, args, budget_);
      }
      ASSIGN_OR_RETURN(function, GetAttribute(object, callee.name));
    } else {
      ASSIGN_OR_RETURN(function, Eval(callee, scope));
    }
    if (function.AsFunction() == nullptr) {
      return InvalidArgument("{} cannot be called", function.TypeName());
    }
    ASSIGN_OR_RETURN(Arguments args, EvalArguments(e, scope));
    const Function& called = *function.AsFunction();
    return called.macro != nullptr ? CallMacro(*called.macro, args)
                                   : CallBuiltin(called.name, std::move(args));
  }

  Result<Value> CallMacro(const Statement& macro, const Arguments& args) {
    if (args.positional.size() > macro.names.size()) {
      return InvalidArgument("the macro {} takes {} arguments, not {}", macro.name,
                             macro.names.size(), args.positional.size());
    }
    for (const auto& [name, value] : args.named) {
      if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end()) {
        return InvalidArgument("the macro {} takes no argument '{}'", macro.name, name);
      }
    }
    Scope inner{&globals_, {}};
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const Value* given = args.Find(i, macro.names[i]);
      Value value(Undefined{macro.names[i]});
      if (given != nullptr) {
        value = *given;
      } else if (macro.defaults[i]) {
        ASSIGN_OR_RETURN(value, Eval(*macro.defaults[i], &inner));
      }
      inner.names.insert_or_assign(macro.names[i], std::move(value));
    }
    MarkedString out;
    ASSIGN_OR_RETURN([[maybe_unused]] const Flow flow, RunBody(macro.body, &inner, &out));
    return Value(std::move(out));
  }

  Result<Value> CallBuiltin(const std::string& name, Arguments args) {
    if (name == "raise_exception") {
      raised_ = true;
      return InvalidArgument("{}",
                             args.positional.empty() ? "" : args.positional[0].ToText().text());
    }
    if (name == "strftime_now") {
      const Value* format = args.Find(0, "format");
      if (format == nullptr || format->AsString() == nullptr || format->AsString()->size() > 256) {
        return InvalidArgument("strftime_now takes a format of at most 256 bytes");
      }
      std::array<char, 4096> text{};
      const size_t size =
          std::strftime(text.data(), text.size(), format->AsString()->text().c_str(), &local_time_);
      return Value::Text({text.data(), size});
    }
    if (name == "range") {
      return Range(args);
    }
    // namespace and dict: a mapping to copy, then named members.
    Dict members;
    if (!args.positional.empty()) {
      if (args.positional[0].AsDict() == nullptr) {
        return InvalidArgument("{} takes a mapping, not {}", name, args.positional[0].TypeName());
      }
      members = *args.positional[0].AsDict();
    }
    RETURN_IF_ERROR(budget_->ChargeList(members.size() + args.named.size()));
    for (auto& [key, value] : args.named) {
      std::erase_if(members, [&](const auto& member) { return member.first == key; });
      members.emplace_back(key, std::move(value));
    }
    if (name == "dict") {
      return Value::FromDict(std::move(members));
    }
    namespaces_.push_back(std::make_shared<Namespace>(Namespace{std::move(members)}));
    return Value(namespaces_.back());
  }

  Result<Value> Range(const Arguments& args) {
    std::array<int64_t, 3> bounds = {0, 0, 1};
    const size_t count = args.positional.size();
    for (size_t i = 0; i < count && i < 3; ++i) {
      if (!args.positional[i].IsInteger(&bounds[count == 1 ? 1 : i])) {
        return InvalidArgument("range takes integers, not {}", args.positional[i].TypeName());
      }
    }
    constexpr int64_t kMaxRange = 100000;
    const auto [start, stop, step] = bounds;
    if (count < 1 || count > 3 || step == 0 || std::abs(start) > (int64_t{1} << 40) ||
        std::abs(stop) > (int64_t{1} << 40) || std::abs(step) > (int64_t{1} << 40)) {
      return InvalidArgument("range takes one to three integers, a step other than 0");
    }
    if ((stop - start) / step > kMaxRange) {
      return ResourceExhausted("the chat template's range is longer than {}", kMaxRange);
    }
    List items;
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
      items.emplace_back(i);
    }
    RETURN_IF_ERROR(budget_->ChargeList(items.size()));
    return Value::FromList(std::move(items));
  }

  const std::tm& local_time_;
  Budget* budget_;
  Scope globals_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  int depth_ = 0;
  bool raised_ = false;   // by raise_exception: its message stands alone
  bool located_ = false;  // the error already names its line
};

}  // namespace

Result<MarkedString> Evaluate(const Body& body, std::vector<std::pair<std::string, Value>> globals,
                              const std::tm& local_time, Budget* budget) {
  return Evaluator(local_time, budget).Run(body, std::move(globals));
}

}  // namespace lserve::jinja
