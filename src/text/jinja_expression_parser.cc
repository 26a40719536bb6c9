#include "text/jinja_expression_parser.h"

#include <array>
#include <cstdlib>

#include "text/jinja_builtins.h"

namespace lserve::jinja {

Status ExpressionParser::Unexpected(std::string_view wanted) const {
  static constexpr std::array<const char*, 10> kNames = {
      "text",   "'{{'",     "'}}'",     "'{%'",     "'%}'",
      "a name", "a string", "a number", "a number", "an operator"};
  const Token& token = Peek();
  const auto kind = static_cast<size_t>(token.kind);
  const std::string found = !token.text.empty()    ? fmt::format("'{:.40}'", token.text)
                            : kind < kNames.size() ? kNames[kind]
                                                   : "the end";
  return InvalidArgument("chat template, line {}: {} where {} was expected", token.line, found,
                         wanted);
}

ExpressionPtr ExpressionParser::Make(Kind kind, int line) {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  return expression;
}

Result<ExpressionPtr> ExpressionParser::Finish(ExpressionPtr expression) const {
  for (const ExpressionPtr& arg : expression->args) {
    expression->depth = std::max(expression->depth, arg ? arg->depth + 1 : 0);
  }
  for (const auto& [name, value] : expression->keywords) {
    expression->depth = std::max(expression->depth, value->depth + 1);
  }
  if (expression->depth > 3 * kMaxDepth) {
    return TooDeep();
  }
  return expression;
}

Result<ExpressionPtr> ExpressionParser::MakeNode(Kind kind, std::string name, ExpressionPtr left,
                                                 ExpressionPtr right) const {
  ExpressionPtr node = Make(kind, left->line);
  node->name = std::move(name);
  node->args.push_back(std::move(left));
  if (right) {
    node->args.push_back(std::move(right));
  }
  return Finish(std::move(node));
}

Result<ExpressionPtr> ExpressionParser::ParseTuple() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression());
  if (!IsOperator(",")) {
    return first;
  }
  ExpressionPtr list = Make(Kind::kList, first->line);
  list->args.push_back(std::move(first));
  while (TakeOperator(",")) {
    const Token::Kind next = Peek().kind;
    if (next == Token::Kind::kBlockEnd || next == Token::Kind::kPrintEnd || IsOperator(")")) {
      break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    list->args.push_back(std::move(item));
  }
  return Finish(std::move(list));
}

Result<ExpressionPtr> ExpressionParser::ParseExpression() {
  const Level level(&depth_);
  if (level.TooDeep()) {
    return TooDeep();
  }
  ASSIGN_OR_RETURN(ExpressionPtr value, ParseOr());
  while (TakeName("if")) {
    ExpressionPtr node = Make(Kind::kConditional, value->line);
    node->args.push_back(std::move(value));
    ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
    node->args.push_back(std::move(condition));
    ExpressionPtr otherwise;
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    node->args.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(value, Finish(std::move(node)));
  }
  return value;
}

Result<ExpressionPtr> ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
  while (TakeName("or")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
    ASSIGN_OR_RETURN(left, MakeNode(Kind::kOr, "", std::move(left), std::move(right)));
  }
  return left;
}

Result<ExpressionPtr> ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
  while (TakeName("and")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
    ASSIGN_OR_RETURN(left, MakeNode(Kind::kAnd, "", std::move(left), std::move(right)));
  }
  return left;
}

Result<ExpressionPtr> ExpressionParser::ParseNot() {
  if (!IsName("not")) {
    return ParseCompare();
  }
  const Level level(&depth_);
  if (level.TooDeep()) {
    return TooDeep();
  }
  Next();
  ASSIGN_OR_RETURN(ExpressionPtr value, ParseNot());
  return MakeNode(Kind::kNot, "", std::move(value));
}

std::optional<std::string> ExpressionParser::TakeComparison() {
  for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
    if (TakeOperator(op)) {
      return std::string(op);
    }
  }
  if (TakeName("in")) {
    return "in";
  }
  if (IsName("not") && IsName("in", 1)) {
    position_ += 2;
    return "not in";
  }
  return std::nullopt;
}

Result<ExpressionPtr> ExpressionParser::ParseCompare() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  std::optional<std::string> op = TakeComparison();
  if (!op) {
    return first;
  }
  ExpressionPtr node = Make(Kind::kCompare, first->line);
  node->args.push_back(std::move(first));
  while (op) {
    node->operators.push_back(*op);
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseSum());
    node->args.push_back(std::move(next));
    op = TakeComparison();
  }
  return Finish(std::move(node));
}

Result<ExpressionPtr> ExpressionParser::ParseBinary(
    std::initializer_list<std::string_view> operators, Rule operand) {
  ASSIGN_OR_RETURN(ExpressionPtr left, (this->*operand)());
  while (Peek().kind == Token::Kind::kOperator &&
         std::find(operators.begin(), operators.end(), Peek().text) != operators.end()) {
    std::string op = Next().text;
    ASSIGN_OR_RETURN(ExpressionPtr right, (this->*operand)());
    ASSIGN_OR_RETURN(left,
                     MakeNode(Kind::kBinary, std::move(op), std::move(left), std::move(right)));
  }
  return left;
}

Result<ExpressionPtr> ExpressionParser::ParseSum() {
  return ParseBinary({"+", "-"}, &ExpressionParser::ParseConcat);
}

Result<ExpressionPtr> ExpressionParser::ParseConcat() {
  return ParseBinary({"~"}, &ExpressionParser::ParseProduct);
}

Result<ExpressionPtr> ExpressionParser::ParseProduct() {
  return ParseBinary({"*", "/", "//", "%"}, &ExpressionParser::ParsePower);
}

Result<ExpressionPtr> ExpressionParser::ParsePower() {
  return ParseBinary({"**"}, &ExpressionParser::ParseUnaryFiltered);
}

Result<ExpressionPtr> ExpressionParser::ParseUnaryFiltered() {
  return ParseUnary(/*with_filters=*/true);
}

Result<ExpressionPtr> ExpressionParser::ParseUnary(bool with_filters) {
  const Level level(&depth_);
  if (level.TooDeep()) {
    return TooDeep();
  }
  ExpressionPtr value;
  if (TakeOperator("-")) {
    ASSIGN_OR_RETURN(value, ParseUnary(false));
    ASSIGN_OR_RETURN(value, MakeNode(Kind::kNegate, "", std::move(value)));
  } else if (TakeOperator("+")) {
    ASSIGN_OR_RETURN(value, ParseUnary(false));
  } else {
    ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  ASSIGN_OR_RETURN(value, ParsePostfix(std::move(value)));
  return with_filters ? ParseFilters(std::move(value)) : Result<ExpressionPtr>(std::move(value));
}

Result<ExpressionPtr> ExpressionParser::ParsePrimary() {
  const Token token = Peek();
  ExpressionPtr node = Make(Kind::kLiteral, token.line);
  switch (token.kind) {
    case Token::Kind::kName:
      Next();
      if (token.text == "true" || token.text == "True") {
        node->literal = Value(true);
      } else if (token.text == "false" || token.text == "False") {
        node->literal = Value(false);
      } else if (token.text == "none" || token.text == "None") {
        node->literal = Value(None{});
      } else {
        node->kind = Kind::kName;
        node->name = token.text;
      }
      return node;
    case Token::Kind::kString: {
      std::string text;
      while (Peek().kind == Token::Kind::kString) {
        text += Next().text;
      }
      node->literal = Value::Text(text);
      return node;
    }
    case Token::Kind::kInteger:
      if (token.text.size() > 18) {
        return InvalidArgument("chat template, line {}: the number {} is too large", token.line,
                               token.text);
      }
      Next();
      node->literal = Value(static_cast<int64_t>(std::stoll(token.text)));
      return node;
    case Token::Kind::kFloat:
      if (token.text.size() > 300) {
        return InvalidArgument("chat template, line {}: a number is too long", token.line);
      }
      Next();
      node->literal = Value(std::strtod(token.text.c_str(), nullptr));
      return node;
    default: break;
  }
  if (TakeOperator("(")) {
    if (TakeOperator(")")) {
      node->kind = Kind::kList;
      return node;
    }
    ASSIGN_OR_RETURN(ExpressionPtr inner, ParseTuple());
    RETURN_IF_ERROR(ExpectOperator(")"));
    return inner;
  }
  if (TakeOperator("[")) {
    node->kind = Kind::kList;
    while (!IsOperator("]")) {
      ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
      node->args.push_back(std::move(item));
      if (!TakeOperator(",")) {
        break;
      }
    }
    RETURN_IF_ERROR(ExpectOperator("]"));
    return Finish(std::move(node));
  }
  if (TakeOperator("{")) {
    node->kind = Kind::kDict;
    while (!IsOperator("}")) {
      ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
      node->args.push_back(std::move(key));
      RETURN_IF_ERROR(ExpectOperator(":"));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      node->args.push_back(std::move(value));
      if (!TakeOperator(",")) {
        break;
      }
    }
    RETURN_IF_ERROR(ExpectOperator("}"));
    return Finish(std::move(node));
  }
  return Unexpected("an expression");
}

Result<ExpressionPtr> ExpressionParser::ParsePostfix(ExpressionPtr value) {
  while (true) {
    if (TakeOperator(".")) {
      if (Peek().kind != Token::Kind::kName && Peek().kind != Token::Kind::kInteger) {
        return Unexpected("an attribute's name");
      }
      const Token name = Next();
      if (name.kind == Token::Kind::kInteger && name.text.size() > 9) {
        return InvalidArgument("chat template, line {}: index {} is too large", name.line,
                               name.text);
      }
      if (name.kind == Token::Kind::kInteger) {  // x.0 is x[0]
        ExpressionPtr index = Make(Kind::kLiteral, name.line);
        index->literal = Value(static_cast<int64_t>(std::stoll(name.text)));
        ASSIGN_OR_RETURN(value, MakeNode(Kind::kSubscript, "", std::move(value), std::move(index)));
      } else {
        ASSIGN_OR_RETURN(value, MakeNode(Kind::kAttribute, name.text, std::move(value)));
      }
    } else if (TakeOperator("[")) {
      ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
    } else {
      return value;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::ParseSubscript(ExpressionPtr value) {
  std::vector<ExpressionPtr> bounds;
  bounds.emplace_back();
  bool is_slice = false;
  while (!IsOperator("]")) {
    if (TakeOperator(":")) {
      is_slice = true;
      bounds.emplace_back();
      if (bounds.size() > 3) {
        return Unexpected("']'");
      }
      continue;
    }
    if (bounds.back()) {
      return Unexpected("']'");
    }
    ASSIGN_OR_RETURN(bounds.back(), ParseExpression());
  }
  Next();
  if (!is_slice && !bounds[0]) {
    return InvalidArgument("chat template, line {}: an empty subscript", value->line);
  }
  ExpressionPtr node = Make(is_slice ? Kind::kSlice : Kind::kSubscript, value->line);
  node->args.push_back(std::move(value));
  bounds.resize(is_slice ? 3 : 1);
  for (ExpressionPtr& bound : bounds) {
    node->args.push_back(std::move(bound));
  }
  return Finish(std::move(node));
}

Status ExpressionParser::ParseArguments(Expression* node) {
  RETURN_IF_ERROR(ExpectOperator("("));
  while (!IsOperator(")")) {
    if (IsOperator("*") || IsOperator("**")) {
      return Unimplemented("chat template, line {}: starred arguments are not supported",
                           Peek().line);
    }
    if (Peek().kind == Token::Kind::kName && IsOperator("=", 1)) {
      std::string name = Next().text;
      Next();
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      node->keywords.emplace_back(std::move(name), std::move(value));
    } else {
      if (!node->keywords.empty()) {
        return Unexpected("a named argument");
      }
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      node->args.push_back(std::move(value));
    }
    if (!TakeOperator(",")) {
      break;
    }
  }
  return ExpectOperator(")");
}

Result<ExpressionPtr> ExpressionParser::ParseCall(ExpressionPtr callee) {
  ExpressionPtr node = Make(Kind::kCall, callee->line);
  node->args.push_back(std::move(callee));
  RETURN_IF_ERROR(ParseArguments(node.get()));
  return Finish(std::move(node));
}

Result<ExpressionPtr> ExpressionParser::ParseFilters(ExpressionPtr value) {
  while (true) {
    if (TakeOperator("|")) {
      ExpressionPtr node = Make(Kind::kFilter, Peek().line);
      ASSIGN_OR_RETURN(node->name, ExpectName());
      if (!IsKnownFilter(node->name)) {
        return Unimplemented("chat template, line {}: the filter '{}' is not supported", node->line,
                             node->name);
      }
      node->args.push_back(std::move(value));
      if (IsOperator("(")) {
        RETURN_IF_ERROR(ParseArguments(node.get()));
      }
      ASSIGN_OR_RETURN(value, Finish(std::move(node)));
    } else if (TakeName("is")) {
      ASSIGN_OR_RETURN(value, ParseTest(std::move(value)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
    } else {
      return value;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr value) {
  const bool negated = TakeName("not");
  ExpressionPtr node = Make(Kind::kTest, Peek().line);
  ASSIGN_OR_RETURN(node->name, ExpectName());
  if (!IsKnownTest(node->name)) {
    return Unimplemented("chat template, line {}: the test '{}' is not supported", node->line,
                         node->name);
  }
  node->args.push_back(std::move(value));
  const Token& next = Peek();
  const bool starts_argument =
      next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
      next.kind == Token::Kind::kFloat || IsOperator("[") || IsOperator("{") ||
      (next.kind == Token::Kind::kName && !IsName("else") && !IsName("or") && !IsName("and") &&
       !IsName("is") && !IsName("if") && !IsName("in") && !IsName("not") && !IsName("recursive"));
  if (IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(node.get()));
  } else if (starts_argument) {
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    node->args.push_back(std::move(argument));
  }
  ASSIGN_OR_RETURN(node, Finish(std::move(node)));
  return negated ? MakeNode(Kind::kNot, "", std::move(node))
                 : Result<ExpressionPtr>(std::move(node));
}

}  // namespace lserve::jinja
