// StopMatcher: finds stop strings in streamed text. Belongs to one request; not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lserve {

// Emits text as soon as no stop string can begin in it: what is held back is the longest suffix
// that is a proper prefix of a stop string. The match is the one that completes first, and of
// those that complete at the same byte the longest, so the result does not depend on how the text
// was cut into pieces. One Knuth-Morris-Pratt automaton a stop string: time is (stop strings) a
// byte, amortised, whatever the strings are.
class StopMatcher {
 public:
  // Non-empty strings.
  explicit StopMatcher(std::vector<std::string> stops);

  // Text that became certain. After a match: the text before it, and nothing from then on.
  std::string Push(std::string_view text);

  // The text still held back: no stop string came.
  std::string Finish();

  bool matched() const { return matched_; }

 private:
  struct Automaton {
    std::string text;
    std::vector<int32_t> border;  // [i]: longest proper border of the first i + 1 bytes
    int32_t state = 0;            // bytes matched so far
  };

  std::vector<Automaton> automata_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace lserve
