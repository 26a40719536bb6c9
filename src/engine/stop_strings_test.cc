#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/random.h"

namespace lserve {
namespace {

struct Outcome {
  std::string text;
  bool matched = false;
  bool operator==(const Outcome&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Outcome& outcome) {
  return out << '"' << outcome.text << "\" " << outcome.matched;
}

// Pushes `text` in pieces of `piece` bytes.
Outcome Match(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopMatcher matcher(stops);
  Outcome outcome;
  for (size_t at = 0; at < text.size(); at += piece) {
    outcome.text += matcher.Push(text.substr(at, piece));
  }
  outcome.matched = matcher.matched();
  if (!outcome.matched) outcome.text += matcher.Finish();
  return outcome;
}

// The definition: the earliest end, of those the longest.
Outcome Search(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(StopMatcher, WithoutStopStringsPassesAll) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Finish(), "");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, HoldsBackOnlyAPossibleBeginning) {
  StopMatcher matcher({"</s>", "\n\nUser:"});
  EXPECT_EQ(matcher.Push("Hi"), "Hi");
  EXPECT_EQ(matcher.Push(" \n"), " ");
  EXPECT_EQ(matcher.Push("\n"), "");
  EXPECT_EQ(matcher.Push("Us"), "");
  EXPECT_EQ(matcher.Push("ual <"), "\n\nUsual ");
  EXPECT_EQ(matcher.Push("/s"), "");
  EXPECT_EQ(matcher.Push("> tail"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, FinishGivesWhatWasHeldBack) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.Push("a STO"), "a ");
  EXPECT_EQ(matcher.Finish(), "STO");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, OverlappingBeginnings) {
  EXPECT_EQ(Match({"aab"}, "aaab", 1), (Outcome{"a", true}));
  EXPECT_EQ(Match({"abcabd"}, "abcabcabd", 1), (Outcome{"abc", true}));
  EXPECT_EQ(Match({"bcd", "c"}, "abcd", 1), (Outcome{"ab", true}));
  EXPECT_EQ(Match({"c", "abc"}, "xabc", 4), (Outcome{"x", true}));
}

TEST(StopMatcher, CodePointsAcrossPieces) {
  const std::string text = "Grüße 🙂🙂 終わり。 rest";
  EXPECT_EQ(Match({"🙂 "}, text, 1), (Outcome{"Grüße 🙂", true}));
  EXPECT_EQ(Match({"終わり。"}, text, 2), (Outcome{"Grüße 🙂🙂 ", true}));
  // Shares three bytes with the emoji of the text, and is not in it.
  EXPECT_EQ(Match({"🙃"}, text, 1), (Outcome{text, false}));
}

TEST(StopMatcher, AgreesWithSearchWhateverThePieces) {
  uint64_t counter = 0;
  const auto draw = [&](uint32_t below) {
    return static_cast<size_t>(Philox(11, counter++)[0] % below);
  };
  const auto word = [&](size_t length) {
    std::string out;
    while (out.size() < length) out.push_back(static_cast<char>('a' + draw(2)));
    return out;
  };
  int matches = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(1 + draw(4));
    for (std::string& stop : stops) stop = word(1 + draw(8));
    const std::string text = word(draw(60));
    const Outcome expected = Search(stops, text);
    matches += expected.matched ? 1 : 0;
    for (const size_t piece : {size_t{1}, size_t{3}, size_t{64}}) {
      ASSERT_EQ(Match(stops, text, piece), expected) << text << " / " << stops[0];
    }
  }
  EXPECT_GT(matches, 1000);
  EXPECT_LT(matches, 3000);
}

TEST(StopMatcher, SixteenLongPeriodicStrings) {
  // The case that makes a naive search quadratic: every position begins a match of nearly 1 KB.
  std::vector<std::string> stops;
  for (char last = 'b'; last < 'b' + 16; ++last) stops.push_back(std::string(1023, 'a') + last);
  std::string text(200000, 'a');
  StopMatcher matcher(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += 5) {
    out += matcher.Push(text.substr(at, 5));
    ASSERT_GE(out.size() + 1023, at + 5);
  }
  out += matcher.Push("cX");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(out.size(), text.size() - 1023);
}

}  // namespace
}  // namespace lserve
