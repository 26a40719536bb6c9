#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/split_pattern.h"

#include <pcre2.h>

#include <array>
#include <limits>
#include <utility>

#include "text/utf8.h"

namespace lserve {

struct SplitPattern::Code {
  struct FreeCode {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct FreeContext {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };
  std::unique_ptr<pcre2_code, FreeCode> regex;
  std::unique_ptr<pcre2_match_context, FreeContext> context;
};

namespace {

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

// PCRE2's own `\s` also takes U+180E, which is no white space since Unicode 6.3.
constexpr std::string_view kSpaces = R"(\x{9}-\x{d}\x{85}\p{Z})";

// Rewrites `\s` and `\S`. Refuses class intersection, which PCRE2 10.42 reads as two ampersands.
Result<std::string> TranslateRegex(std::string_view regex) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < regex.size(); ++i) {
    const char c = regex[i];
    if (c == '\\' && i + 1 < regex.size()) {
      const char escaped = regex[++i];
      if (escaped == 's') {
        out += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
      } else if (escaped == 'S' && !in_class) {
        out += fmt::format("[^{}]", kSpaces);
      } else if (escaped == 'h' || escaped == 'H' || (escaped == 'S' && in_class)) {
        return Unimplemented("the split pattern {} uses \\{}, which is not supported", regex,
                             escaped);
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (in_class && regex.substr(i, 2) == "&&") {
      return Unimplemented("the split pattern {} intersects classes (&&), which is not supported",
                           regex);
    }
    if (!in_class && c == '[') {
      in_class = true;
      out += c;
      // A bracket right after the opening one (or its caret) is a member.
      if (regex.substr(i + 1, 1) == "^") {
        out += regex[++i];
      }
      if (regex.substr(i + 1, 1) == "]") {
        out += regex[++i];
      }
      continue;
    }
    if (in_class && c == '[' && regex.substr(i + 1, 1) != ":") {
      return Unimplemented("the split pattern {} nests classes, which is not supported", regex);
    }
    if (in_class && c == '[') {  // a POSIX class: copied up to its end
      const size_t end = regex.find(":]", i);
      if (end == std::string_view::npos) {
        return InvalidArgument("the split pattern {} has an open [: class", regex);
      }
      out += regex.substr(i, end + 2 - i);
      i = end + 1;
      continue;
    }
    if (in_class && c == ']') {
      in_class = false;
    }
    out += c;
  }
  return out;
}

}  // namespace

SplitPattern::SplitPattern(std::unique_ptr<Code> code, Behavior behavior, bool invert)
    : code_(std::move(code)), behavior_(behavior), invert_(invert) {}
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;
SplitPattern::~SplitPattern() = default;

Result<SplitPattern> SplitPattern::Compile(std::string_view pattern, uint32_t options,
                                           Behavior behavior, bool invert) {
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  auto code = std::make_unique<Code>();
  // UCP: without it `\s` and friends are ASCII only, and U+00A0 is cut wrongly.
  code->regex.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  options | PCRE2_UTF, &error, &error_offset, nullptr));
  if (!code->regex) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    return InvalidArgument("the split pattern {} does not compile: {} at {}", pattern,
                           reinterpret_cast<const char*>(message.data()), error_offset);
  }
  // Only speed depends on it, so a refusal (a hardened system) is no error.
  pcre2_jit_compile(code->regex.get(), PCRE2_JIT_COMPLETE);
  code->context.reset(pcre2_match_context_create(nullptr));
  CHECK(code->context != nullptr);
  // The patterns come from the model folder, the long runs from users: no run may fail to encode.
  pcre2_set_match_limit(code->context.get(), std::numeric_limits<uint32_t>::max());
  pcre2_set_depth_limit(code->context.get(), std::numeric_limits<uint32_t>::max());
  pcre2_set_heap_limit(code->context.get(), uint32_t{4} << 20);  // KiB
  return SplitPattern(std::move(code), behavior, invert);
}

Result<SplitPattern> SplitPattern::FromRegex(std::string_view regex, Behavior behavior,
                                             bool invert) {
  if (!IsValidUtf8(regex)) {
    return InvalidArgument("a split pattern is not valid UTF-8");
  }
  ASSIGN_OR_RETURN(const std::string translated, TranslateRegex(regex));
  return Compile(translated, PCRE2_UCP, behavior, invert);
}

Result<SplitPattern> SplitPattern::FromLiteral(std::string_view text, Behavior behavior,
                                               bool invert) {
  if (text.empty() || !IsValidUtf8(text)) {
    return InvalidArgument("a split pattern is empty or not valid UTF-8");
  }
  return Compile(text, PCRE2_LITERAL, behavior, invert);
}

void SplitPattern::ForEachPiece(std::string_view text,
                                const std::function<void(std::string_view)>& piece) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(pcre2_match_data_create(1, nullptr));
  CHECK(data != nullptr);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t held = 0;  // start of what has not been handed out

  const auto flush = [&](size_t end) {
    if (end > held) {
      piece(text.substr(held, end - held));
      held = end;
    }
  };
  // [begin, end) is one match or one gap; `is_match` after inversion.
  const auto part = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) {
      return;
    }
    switch (behavior_) {
      case Behavior::kIsolated:
        flush(begin);
        flush(end);
        break;
      case Behavior::kRemoved:
        flush(begin);
        if (is_match) {
          held = end;
        } else {
          flush(end);
        }
        break;
      case Behavior::kMergedWithPrevious:
        if (is_match) {
          flush(end);
        }
        break;
      case Behavior::kMergedWithNext:
        if (is_match) {
          flush(begin);
        }
        break;
    }
  };

  size_t position = 0;  // where the next match may start
  size_t gap = 0;       // end of the last match
  while (position < text.size()) {
    constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK;
    int count = pcre2_match(code_->regex.get(), subject, text.size(), position, kOptions,
                            data.get(), code_->context.get());
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
      count = pcre2_match(code_->regex.get(), subject, text.size(), position,
                          kOptions | PCRE2_NO_JIT, data.get(), code_->context.get());
    }
    if (count < 0) {  // no match in the rest; a resource error too leaves the rest in one piece
      break;
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const size_t begin = bounds[0];
    const size_t end = bounds[1];
    if (end <= begin) {  // an empty match cuts nothing
      if (begin >= text.size()) {
        break;
      }
      position = begin + FirstCodePoint(text.substr(begin)).length;
      continue;
    }
    part(gap, begin, invert_);
    part(begin, end, !invert_);
    position = gap = end;
  }
  part(gap, text.size(), invert_);
  flush(text.size());
}

}  // namespace lserve
