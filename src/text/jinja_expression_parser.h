// The expressions of the chat template's language, by recursive descent: the lower half of the
// parser. Belongs to one parse; not thread-safe.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace lserve::jinja {

class ExpressionParser {
 public:
  static constexpr int kMaxDepth = 100;

  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // One expression, or several with commas between: a tuple, read as a list.
  Result<ExpressionPtr> ParseTuple();
  Result<ExpressionPtr> ParseExpression();
  // An expression without "x if c else y": what a loop goes over.
  Result<ExpressionPtr> ParseOr();

 protected:
  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
  }
  Token Next() { return tokens_[position_ + 1 < tokens_.size() ? position_++ : position_]; }
  bool IsOperator(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Token::Kind::kOperator && Peek(ahead).text == text;
  }
  bool IsName(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Token::Kind::kName && Peek(ahead).text == text;
  }
  bool TakeOperator(std::string_view text) {
    const bool there = IsOperator(text);
    position_ += there ? 1 : 0;
    return there;
  }
  bool TakeName(std::string_view text) {
    const bool there = IsName(text);
    position_ += there ? 1 : 0;
    return there;
  }

  // The error that the next token is not what was wanted.
  Status Unexpected(std::string_view wanted) const;
  Status ExpectOperator(std::string_view text) {
    return TakeOperator(text) ? OkStatus() : Unexpected(fmt::format("'{}'", text));
  }
  Status Expect(Token::Kind kind, std::string_view name) {
    if (Peek().kind != kind) {
      return Unexpected(name);
    }
    Next();
    return OkStatus();
  }
  Status ExpectBlockEnd() { return Expect(Token::Kind::kBlockEnd, "'%}'"); }
  Result<std::string> ExpectName() {
    if (Peek().kind != Token::Kind::kName) {
      return Unexpected("a name");
    }
    return Next().text;
  }

  // Bounds the parser's own recursion.
  class Level {
   public:
    explicit Level(int* depth) : depth_(depth) { ++*depth_; }
    ~Level() { --*depth_; }
    bool TooDeep() const { return *depth_ > kMaxDepth; }

   private:
    int* depth_;
  };
  Status TooDeep() const {
    return ResourceExhausted("chat template, line {}: nested deeper than {}", Peek().line,
                             kMaxDepth);
  }
  int* depth() { return &depth_; }

 private:
  using Kind = Expression::Kind;
  using Rule = Result<ExpressionPtr> (ExpressionParser::*)();

  static ExpressionPtr Make(Kind kind, int line);
  // Takes the children's depth over; chains like a + b + c grow a tree without recursion here.
  Result<ExpressionPtr> Finish(ExpressionPtr expression) const;
  Result<ExpressionPtr> MakeNode(Kind kind, std::string name, ExpressionPtr left,
                                 ExpressionPtr right = nullptr) const;

  // Loosest first.
  Result<ExpressionPtr> ParseAnd();
  Result<ExpressionPtr> ParseNot();
  std::optional<std::string> TakeComparison();
  Result<ExpressionPtr> ParseCompare();
  Result<ExpressionPtr> ParseBinary(std::initializer_list<std::string_view> operators,
                                    Rule operand);
  Result<ExpressionPtr> ParseSum();
  Result<ExpressionPtr> ParseConcat();
  Result<ExpressionPtr> ParseProduct();
  Result<ExpressionPtr> ParsePower();
  Result<ExpressionPtr> ParseUnaryFiltered();
  Result<ExpressionPtr> ParseUnary(bool with_filters);
  Result<ExpressionPtr> ParsePrimary();
  Result<ExpressionPtr> ParsePostfix(ExpressionPtr value);
  Result<ExpressionPtr> ParseSubscript(ExpressionPtr value);
  Status ParseArguments(Expression* node);
  Result<ExpressionPtr> ParseCall(ExpressionPtr callee);
  Result<ExpressionPtr> ParseFilters(ExpressionPtr value);
  Result<ExpressionPtr> ParseTest(ExpressionPtr value);

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;  // parsing functions that hold a Level
};

}  // namespace lserve::jinja
