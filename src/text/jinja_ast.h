// The syntax tree of a chat template. Owned by the ChatTemplate, immutable once parsed.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace lserve::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kLiteral,      // literal
    kName,         // name
    kList,         // args: items
    kDict,         // args: key, value, key, value, ...
    kAttribute,    // args[0].name
    kSubscript,    // args[0][args[1]]
    kSlice,        // args[0][args[1]:args[2]:args[3]], each bound may be null
    kCall,         // args[0](args[1], ..., keywords)
    kFilter,       // args[0] | name(args[1], ..., keywords)
    kTest,         // args[0] is name(args[1], ...)
    kNot,          // not args[0]
    kNegate,       // -args[0]
    kAnd,          // args[0] and args[1]
    kOr,           // args[0] or args[1]
    kBinary,       // args[0] name args[1]: + - * / // % ** ~
    kCompare,      // args[0] operators[0] args[1] operators[1] args[2] ...
    kConditional,  // args[0] if args[1] else args[2] (may be null)
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int depth = 1;  // of the tree below: bounds the recursion of whoever walks it
  std::string name;
  Value literal;
  std::vector<ExpressionPtr> args;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<Statement>;

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // {{ expression }}
    kIf,        // branches; the one without a condition is else
    kFor,       // names in expression [if condition]: body; else_body
    kSet,       // names = expression, or target.attribute = expression
    kSetBlock,  // names[0] = the output of body
    kMacro,     // name(names, defaults): body
    kBlock,     // body alone
    kBreak,
    kContinue,
  };
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  std::string name;
  std::string attribute;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> defaults;  // kMacro: one a name, null if there is none
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<Branch> branches;
  Body body;
  Body else_body;
};

}  // namespace lserve::jinja
