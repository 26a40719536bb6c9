#include "text/marked_string.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/check.h"
#include "text/utf8.h"

namespace lserve {

MarkedString::MarkedString(std::string_view text, bool from_user)
    : text_(text), marks_(text.size(), from_user ? '\1' : '\0') {}

void MarkedString::Append(const MarkedString& other) {
  text_ += other.text_;
  marks_ += other.marks_;
}

void MarkedString::Append(std::string_view text, bool from_user) {
  text_ += text;
  marks_.append(text.size(), from_user ? '\1' : '\0');
}

MarkedString MarkedString::Substring(size_t begin, size_t length) const {
  MarkedString part;
  begin = std::min(begin, size());
  part.text_ = text_.substr(begin, length);
  part.marks_ = marks_.substr(begin, length);
  return part;
}

MarkedString MarkedString::Strip(bool left, bool right, const std::string* characters) const {
  const auto strippable = [&](std::string_view at, const CodePoint& c) {
    return characters == nullptr ? IsPythonSpace(c.value)
                                 : characters->find(at.substr(0, c.length)) != std::string::npos;
  };
  std::string_view rest = text_;
  size_t begin = 0;
  while (left && !rest.empty()) {
    const CodePoint c = FirstCodePoint(rest);
    if (!strippable(rest, c)) {
      break;
    }
    begin += c.length;
    rest.remove_prefix(c.length);
  }
  while (right && !rest.empty()) {
    const CodePoint c = LastCodePoint(rest);
    if (!strippable(rest.substr(rest.size() - c.length), c)) {
      break;
    }
    rest.remove_suffix(c.length);
  }
  return Substring(begin, rest.size());
}

MarkedString MarkedString::Replace(const MarkedString& from, const MarkedString& to,
                                   int64_t count) const {
  MarkedString out;
  size_t done = 0;
  size_t search = 0;
  while (count != 0) {
    const size_t found = text_.find(from.text_, search);
    if (found == std::string::npos) {
      break;
    }
    out.Append(Substring(done, found - done));
    out.Append(to);
    done = found + from.size();
    search = done;
    if (from.empty()) {
      if (found == size()) {
        break;
      }
      search = found + FirstCodePoint(std::string_view(text_).substr(found)).length;
    }
    --count;
  }
  out.Append(Substring(done));
  return out;
}

std::vector<MarkedString> MarkedString::Split(std::string_view separator, int64_t max_splits,
                                              bool from_right) const {
  CHECK(!separator.empty());
  std::vector<MarkedString> parts;
  if (!from_right) {
    size_t begin = 0;
    size_t found = 0;
    while (max_splits != 0 && (found = text_.find(separator, begin)) != std::string::npos) {
      parts.push_back(Substring(begin, found - begin));
      begin = found + separator.size();
      --max_splits;
    }
    parts.push_back(Substring(begin));
    return parts;
  }
  size_t end = size();
  while (max_splits != 0 && end >= separator.size()) {
    const size_t found = text_.rfind(separator, end - separator.size());
    if (found == std::string::npos) {
      break;
    }
    parts.push_back(Substring(found + separator.size(), end - found - separator.size()));
    end = found;
    --max_splits;
  }
  parts.push_back(Substring(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<MarkedString> MarkedString::SplitAtSpace(int64_t max_splits) const {
  std::vector<MarkedString> parts;
  MarkedString rest = Strip(/*left=*/true, /*right=*/false, nullptr);
  size_t begin = 0;
  while (begin < rest.size()) {
    size_t end = begin;
    if (max_splits == 0) {
      parts.push_back(rest.Substring(begin).Strip(/*left=*/false, /*right=*/true, nullptr));
      break;
    }
    const auto code_point = [&](size_t at) {
      return FirstCodePoint(std::string_view(rest.text_).substr(at));
    };
    while (end < rest.size() && !IsPythonSpace(code_point(end).value)) {
      end += code_point(end).length;
    }
    parts.push_back(rest.Substring(begin, end - begin));
    --max_splits;
    while (end < rest.size() && IsPythonSpace(code_point(end).value)) {
      end += code_point(end).length;
    }
    begin = end;
  }
  return parts;
}

std::vector<MarkedString> MarkedString::SplitLines() const {
  std::vector<MarkedString> lines;
  size_t begin = 0;
  size_t at = 0;
  while (at < size()) {
    const CodePoint c = FirstCodePoint(std::string_view(text_).substr(at));
    const bool breaks = (c.value >= 0x0A && c.value <= 0x0D) ||
                        (c.value >= 0x1C && c.value <= 0x1E) || c.value == 0x85 ||
                        c.value == 0x2028 || c.value == 0x2029;
    const size_t end = at;
    at += c.length;
    if (!breaks) {
      continue;
    }
    if (c.value == '\r' && at < size() && text_[at] == '\n') {
      ++at;
    }
    lines.push_back(Substring(begin, end - begin));
    begin = at;
  }
  if (begin < size()) {
    lines.push_back(Substring(begin));
  }
  return lines;
}

MarkedString MarkedString::WithCase(Case wanted) const {
  MarkedString out;
  bool word_start = true;
  for (size_t at = 0; at < size();) {
    const CodePoint c = FirstCodePoint(std::string_view(text_).substr(at));
    const auto value = static_cast<utf8proc_int32_t>(c.value);
    const bool up = wanted == Case::kUpper || (wanted != Case::kLower && word_start);
    const utf8proc_int32_t mapped = up ? utf8proc_toupper(value) : utf8proc_tolower(value);
    std::string bytes;
    AppendUtf8(static_cast<char32_t>(mapped), &bytes);
    out.Append(bytes, marks_[at] != '\0');
    const utf8proc_category_t category = utf8proc_category(value);
    const bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LM;
    word_start = wanted == Case::kTitle && !letter;
    at += c.length;
  }
  return out;
}

std::vector<MarkedString> MarkedString::CodePoints() const {
  std::vector<MarkedString> out;
  for (size_t at = 0; at < size();) {
    const size_t length = FirstCodePoint(std::string_view(text_).substr(at)).length;
    out.push_back(Substring(at, length));
    at += length;
  }
  return out;
}

}  // namespace lserve
