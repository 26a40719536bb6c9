#include "text/jinja_parser.h"

#include <algorithm>

#include "text/jinja_expression_parser.h"

namespace lserve::jinja {
namespace {

constexpr size_t kMaxTokens = 1 << 20;

// The statements, on top of the expressions.
class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Result<Body> Run() { return ParseBody({}); }

 private:
  // Statements up to a tag whose name is in `ends`; the name is left as the next token.
  Result<Body> ParseBody(const std::vector<std::string_view>& ends) {
    const Level level(depth());
    if (level.TooDeep()) {
      return TooDeep();
    }
    Body body;
    while (true) {
      const Token& token = Peek();
      if (token.kind == Token::Kind::kEnd) {
        if (!ends.empty()) {
          return InvalidArgument("chat template: ends before {{% {} %}}", ends.back());
        }
        return body;
      }
      if (token.kind == Token::Kind::kText) {
        Statement text;
        text.kind = Statement::Kind::kText;
        text.line = token.line;
        text.text = token.text;
        body.push_back(std::move(text));
        Next();
      } else if (token.kind == Token::Kind::kPrintBegin) {
        Statement print;
        print.kind = Statement::Kind::kPrint;
        print.line = token.line;
        Next();
        ASSIGN_OR_RETURN(print.expression, ParseTuple());
        RETURN_IF_ERROR(Expect(Token::Kind::kPrintEnd, "'}}'"));
        body.push_back(std::move(print));
      } else if (token.kind == Token::Kind::kBlockBegin) {
        Next();
        if (Peek().kind == Token::Kind::kName &&
            std::find(ends.begin(), ends.end(), Peek().text) != ends.end()) {
          return body;
        }
        ASSIGN_OR_RETURN(Statement statement, ParseTag());
        body.push_back(std::move(statement));
      } else {
        return Unexpected("text or a tag");
      }
    }
  }

  Result<Statement> ParseTag() {
    Statement statement;
    statement.line = Peek().line;
    ASSIGN_OR_RETURN(const std::string name, ExpectName());
    if (name == "if") {
      RETURN_IF_ERROR(ParseIf(&statement));
    } else if (name == "for") {
      RETURN_IF_ERROR(ParseFor(&statement));
    } else if (name == "set") {
      RETURN_IF_ERROR(ParseSet(&statement));
    } else if (name == "macro") {
      RETURN_IF_ERROR(ParseMacro(&statement));
    } else if (name == "generation") {
      // Marks the assistant's words for training; here a plain block.
      statement.kind = Statement::Kind::kBlock;
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(statement.body, ParseBody({"endgeneration"}));
      Next();
    } else if (name == "break" || name == "continue") {
      if (loops_ == 0) {
        return InvalidArgument("chat template, line {}: {} outside of a loop", statement.line,
                               name);
      }
      statement.kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
    } else {
      return Unimplemented("chat template, line {}: the tag '{}' is not supported", statement.line,
                           name);
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    return statement;
  }

  Status ParseIf(Statement* statement) {
    statement->kind = Statement::Kind::kIf;
    while (true) {
      Statement::Branch branch;
      ASSIGN_OR_RETURN(branch.condition, ParseExpression());
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
      statement->branches.push_back(std::move(branch));
      const std::string next = Next().text;
      if (next == "elif") {
        continue;
      }
      if (next == "else") {
        RETURN_IF_ERROR(ExpectBlockEnd());
        Statement::Branch otherwise;
        ASSIGN_OR_RETURN(otherwise.body, ParseBody({"endif"}));
        statement->branches.push_back(std::move(otherwise));
        Next();
      }
      return OkStatus();
    }
  }

  Status ParseFor(Statement* statement) {
    statement->kind = Statement::Kind::kFor;
    RETURN_IF_ERROR(ParseTargets(&statement->names));
    if (!TakeName("in")) {
      return Unexpected("'in'");
    }
    ASSIGN_OR_RETURN(statement->expression, ParseOr());
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(statement->condition, ParseExpression());
    }
    if (IsName("recursive")) {
      return Unimplemented("chat template, line {}: recursive loops are not supported",
                           statement->line);
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    ASSIGN_OR_RETURN(statement->body, ParseBody({"else", "endfor"}));
    --loops_;
    if (Next().text == "else") {
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(statement->else_body, ParseBody({"endfor"}));
      Next();
    }
    return OkStatus();
  }

  Status ParseTargets(std::vector<std::string>* names) {
    const bool bracket = TakeOperator("(");
    do {
      ASSIGN_OR_RETURN(std::string name, ExpectName());
      names->push_back(std::move(name));
    } while (TakeOperator(","));
    return bracket ? ExpectOperator(")") : OkStatus();
  }

  Status ParseSet(Statement* statement) {
    statement->kind = Statement::Kind::kSet;
    RETURN_IF_ERROR(ParseTargets(&statement->names));
    if (statement->names.size() == 1 && TakeOperator(".")) {
      ASSIGN_OR_RETURN(statement->attribute, ExpectName());
    }
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(statement->expression, ParseTuple());
      return OkStatus();
    }
    if (statement->names.size() != 1 || !statement->attribute.empty()) {
      return Unexpected("'='");
    }
    statement->kind = Statement::Kind::kSetBlock;
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(statement->body, ParseBody({"endset"}));
    Next();
    return OkStatus();
  }

  Status ParseMacro(Statement* statement) {
    statement->kind = Statement::Kind::kMacro;
    ASSIGN_OR_RETURN(statement->name, ExpectName());
    RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      ASSIGN_OR_RETURN(std::string name, ExpectName());
      statement->names.push_back(std::move(name));
      ExpressionPtr value;
      if (TakeOperator("=")) {
        ASSIGN_OR_RETURN(value, ParseExpression());
      }
      statement->defaults.push_back(std::move(value));
      if (!TakeOperator(",")) {
        break;
      }
    }
    RETURN_IF_ERROR(ExpectOperator(")"));
    RETURN_IF_ERROR(ExpectBlockEnd());
    const int loops_outside = std::exchange(loops_, 0);
    ASSIGN_OR_RETURN(statement->body, ParseBody({"endmacro"}));
    loops_ = loops_outside;
    Next();
    TakeName(statement->name);
    return OkStatus();
  }

  int loops_ = 0;  // that are open
};

}  // namespace

Result<Body> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  if (tokens.size() > kMaxTokens) {
    return ResourceExhausted("the chat template has {} tokens, more than {}", tokens.size(),
                             kMaxTokens);
  }
  return Parser(std::move(tokens)).Run();
}

}  // namespace lserve::jinja
