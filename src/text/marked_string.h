// Text in which every byte is marked as written by the template or by a user. The strings of the
// chat template's evaluator: slicing, trimming and joining keep the marks, so a special token that
// a user wrote is never mistaken for the template's. A value; safe to copy between threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lserve {

class MarkedString {
 public:
  MarkedString() = default;
  // Valid UTF-8, all of it the template's, or all of it a user's.
  explicit MarkedString(std::string_view text, bool from_user = false);

  const std::string& text() const { return text_; }
  // One char a byte of text(): 1 where a user wrote it.
  const std::string& marks() const { return marks_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }

  void Append(const MarkedString& other);
  void Append(std::string_view text, bool from_user);
  // Bytes [begin, begin + length), clipped to the text. Bounds lie between code points.
  MarkedString Substring(size_t begin, size_t length = std::string::npos) const;

  // Python's str.strip, lstrip and rstrip: white space, or the code points of `characters`.
  MarkedString Strip(bool left, bool right, const std::string* characters) const;
  // str.replace; an empty pattern stands between all code points. At most `count`; < 0: all.
  MarkedString Replace(const MarkedString& from, const MarkedString& to, int64_t count) const;
  // str.split with a separator that is not empty; `from_right` is rsplit.
  std::vector<MarkedString> Split(std::string_view separator, int64_t max_splits,
                                  bool from_right) const;
  // str.split without a separator: at runs of white space.
  std::vector<MarkedString> SplitAtSpace(int64_t max_splits) const;
  // str.splitlines.
  std::vector<MarkedString> SplitLines() const;
  enum class Case { kUpper, kLower, kCapitalize, kTitle };
  MarkedString WithCase(Case wanted) const;
  std::vector<MarkedString> CodePoints() const;

 private:
  std::string text_;
  std::string marks_;
};

}  // namespace lserve
