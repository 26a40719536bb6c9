// HtmlPage: the report's page as it grows, with its style, and how the page writes numbers. For
// html_report.cc. Not thread-safe; the free functions are.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <utility>

namespace lserve {

// What is added must be HTML: the caller escapes text (EscapeHtml).
class HtmlPage {
 public:
  explicit HtmlPage(const std::string& title);
  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  std::string Finish();

 private:
  std::string text_;
};

double Percent(double part, int64_t whole);
// "+1.2", "0.0", or with U+2212, which is as wide as a plus.
std::string Signed(double value);
// "0.012" or "&lt; 0.001".
std::string ShowP(double p);
// "1 question", "2 questions".
std::string Count(int64_t count, const std::string& noun);

}  // namespace lserve
