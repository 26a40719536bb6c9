// UTF-8: validation, repair and code points. Free functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lserve {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Form {
  kValid,       // a whole code point
  kInvalid,     // a maximal subpart of an ill-formed sequence (Unicode 15, section 3.9)
  kIncomplete,  // the text ends inside a sequence that is well-formed so far
};

struct Utf8Unit {
  Utf8Form form;
  size_t length;  // bytes
};

// The first unit of a non-empty byte string.
Utf8Unit NextUtf8Unit(std::string_view bytes);

bool IsValidUtf8(std::string_view bytes);

// Every maximal subpart of an ill-formed sequence becomes one U+FFFD, as WHATWG decoders and
// Python's bytes.decode(errors="replace") do.
std::string RepairUtf8(std::string_view bytes);

struct CodePoint {
  char32_t value;
  size_t length;  // bytes
};

// The first code point of non-empty valid UTF-8.
CodePoint FirstCodePoint(std::string_view text);
// The last code point of non-empty valid UTF-8.
CodePoint LastCodePoint(std::string_view text);

void AppendUtf8(char32_t code_point, std::string* out);

// The property White_Space, as `\s` of the tokenizers' regular expressions and Python's str.strip
// see it (str.strip also takes U+001C to U+001F: IsPythonSpace).
bool IsWhiteSpace(char32_t code_point);
bool IsPythonSpace(char32_t code_point);

// `\w`: letters, marks, digits, connectors.
bool IsWordCharacter(char32_t code_point);

}  // namespace lserve
