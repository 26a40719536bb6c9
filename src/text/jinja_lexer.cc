#include "text/jinja_lexer.h"

#include <algorithm>
#include <array>

#include "text/utf8.h"

namespace lserve::jinja {
namespace {

constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string WithUnixNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      i += source.substr(i + 1, 1) == "\n" ? 1 : 0;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') {
    out.pop_back();
  }
  return out;
}

size_t SpacesAt(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    const CodePoint c = FirstCodePoint(text.substr(length));
    if (!IsPythonSpace(c.value)) {
      break;
    }
    length += c.length;
  }
  return length;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  Result<std::vector<Token>> Run() {
    while (position_ < source_.size()) {
      RETURN_IF_ERROR(TextAndTag());
    }
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Add(Token::Kind kind, std::string_view text) {
    tokens_.push_back({kind, std::string(text), line_});
  }
  void Advance(size_t count) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<std::ptrdiff_t>(position_),
                   source_.begin() + static_cast<std::ptrdiff_t>(position_ + count), '\n'));
    position_ += count;
  }
  bool At(std::string_view text) const { return source_.substr(position_).starts_with(text); }

  // Text up to the next tag, then the tag.
  Status TextAndTag() {
    size_t tag = position_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
        Add(Token::Kind::kText, source_.substr(position_));
        Advance(source_.size() - position_);
        return OkStatus();
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') {
        break;
      }
      ++tag;
    }
    std::string_view text = source_.substr(position_, tag - position_);
    const char type = source_[tag + 1];
    const std::string_view sign = source_.substr(tag + 2, 1);
    if (sign == "-") {
      size_t end = text.size();
      while (end > 0) {
        const CodePoint c = LastCodePoint(text.substr(0, end));
        if (!IsPythonSpace(c.value)) {
          break;
        }
        end -= c.length;
      }
      text = text.substr(0, end);
    } else if (sign != "+" && type != '{') {
      // lstrip_blocks: a tag's indentation is not output.
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || at_line_start_) &&
          SpacesAt(text.substr(line_begin)) == text.size() - line_begin) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) {
      Add(Token::Kind::kText, text);
    }
    Advance(tag - position_ + 2);
    if (sign == "-" || sign == "+") {
      Advance(1);
    }
    if (type == '#') {
      return Comment();
    }
    Add(type == '{' ? Token::Kind::kPrintBegin : Token::Kind::kBlockBegin, "");
    return Inside(type == '{' ? "}}" : "%}",
                  type == '{' ? Token::Kind::kPrintEnd : Token::Kind::kBlockEnd);
  }

  // After the closing mark of a tag: "-" eats white space, trim_blocks one newline.
  void CloseTag(char sign, bool trims_newline) {
    const std::string_view rest = source_.substr(position_);
    const size_t eaten = sign == '-'                                ? SpacesAt(rest)
                         : trims_newline && sign != '+' && At("\n") ? 1
                                                                    : 0;
    Advance(eaten);
    at_line_start_ = eaten > 0 && source_[position_ - 1] == '\n';
  }

  Status Comment() {
    const size_t end = source_.find("#}", position_);
    if (end == std::string_view::npos) {
      return InvalidArgument("chat template, line {}: a comment is not closed", line_);
    }
    const char sign = end > position_ ? source_[end - 1] : ' ';
    Advance(end + 2 - position_);
    CloseTag(sign, true);
    return OkStatus();
  }

  Status Inside(std::string_view closing, Token::Kind closing_kind) {
    std::string open;  // brackets
    while (true) {
      Advance(SpacesAt(source_.substr(position_)));
      if (position_ >= source_.size()) {
        return InvalidArgument("chat template, line {}: a tag is not closed", line_);
      }
      const char c = source_[position_];
      if (open.empty()) {
        const bool signed_close = (c == '-' || (c == '+' && closing == "%}")) &&
                                  source_.substr(position_ + 1).starts_with(closing);
        if (signed_close || At(closing)) {
          Add(closing_kind, "");
          Advance(closing.size() + (signed_close ? 1 : 0));
          CloseTag(signed_close ? c : ' ', closing_kind == Token::Kind::kBlockEnd);
          return OkStatus();
        }
      }
      if (c == '\'' || c == '"') {
        RETURN_IF_ERROR(String(c));
      } else if (IsNameStart(c)) {
        size_t end = position_;
        while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) {
          ++end;
        }
        Add(Token::Kind::kName, source_.substr(position_, end - position_));
        Advance(end - position_);
      } else if (IsDigit(c)) {
        Number();
      } else {
        RETURN_IF_ERROR(Operator(&open));
      }
    }
  }

  void Number() {
    size_t end = position_;
    bool is_float = false;
    std::string digits;
    while (end < source_.size()) {
      const char c = source_[end];
      const bool point =
          c == '.' && !is_float && end + 1 < source_.size() && IsDigit(source_[end + 1]);
      if (!IsDigit(c) && c != '_' && !point) {
        break;
      }
      is_float = is_float || point;
      if (c != '_') {
        digits += c;
      }
      ++end;
    }
    size_t exponent = end;
    if (exponent < source_.size() && (source_[exponent] == 'e' || source_[exponent] == 'E')) {
      ++exponent;
      exponent += source_.substr(exponent, 1) == "-" || source_.substr(exponent, 1) == "+" ? 1 : 0;
      const size_t first = exponent;
      while (exponent < source_.size() && IsDigit(source_[exponent])) {
        ++exponent;
      }
      if (exponent > first) {
        digits += source_.substr(end, exponent - end);
        end = exponent;
        is_float = true;
      }
    }
    Add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, digits);
    Advance(end - position_);
  }

  Status Operator(std::string* open) {
    for (const std::string_view op : kOperators) {
      if (!At(op)) {
        continue;
      }
      if (op == "(" || op == "[" || op == "{") {
        *open += op == "(" ? ')' : op == "[" ? ']' : '}';
      } else if (op == ")" || op == "]" || op == "}") {
        if (open->empty() || open->back() != op[0]) {
          return InvalidArgument("chat template, line {}: unexpected '{}'", line_, op);
        }
        open->pop_back();
      }
      Add(Token::Kind::kOperator, op);
      Advance(op.size());
      return OkStatus();
    }
    return InvalidArgument("chat template, line {}: unexpected character '{}'", line_,
                           source_.substr(position_, 1));
  }

  // Python's escapes.
  Status String(char quote) {
    std::string value;
    size_t at = position_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] != '\\' || at + 1 >= source_.size()) {
        value += source_[at++];
        continue;
      }
      const char escaped = source_[at + 1];
      at += 2;
      size_t hex_digits = 0;
      switch (escaped) {
        case 'n': value += '\n'; break;
        case 't': value += '\t'; break;
        case 'r': value += '\r'; break;
        case 'b': value += '\b'; break;
        case 'f': value += '\f'; break;
        case 'v': value += '\v'; break;
        case 'a': value += '\a'; break;
        case '0': value += '\0'; break;
        case '\n': break;
        case '\\':
        case '\'':
        case '"': value += escaped; break;
        case 'x': hex_digits = 2; break;
        case 'u': hex_digits = 4; break;
        case 'U': hex_digits = 8; break;
        default: value += '\\'; value += escaped;
      }
      if (hex_digits > 0) {
        const std::string hex(source_.substr(at, hex_digits));
        const bool all_hex = hex.size() == hex_digits &&
                             hex.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
        const unsigned long code_point = all_hex ? std::stoul(hex, nullptr, 16) : 0x110000;
        if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)) {
          return InvalidArgument("chat template, line {}: bad escape \\{}{} in a string", line_,
                                 escaped, hex);
        }
        AppendUtf8(static_cast<char32_t>(code_point), &value);
        at += hex_digits;
      }
    }
    if (at >= source_.size()) {
      return InvalidArgument("chat template, line {}: a string is not closed", line_);
    }
    Add(Token::Kind::kString, value);
    Advance(at + 1 - position_);
    return OkStatus();
  }

  std::string_view source_;
  size_t position_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) {
  if (!IsValidUtf8(source)) {
    return InvalidArgument("the chat template is not valid UTF-8");
  }
  const std::string text = WithUnixNewlines(source);
  return Lexer(text).Run();
}

}  // namespace lserve::jinja
