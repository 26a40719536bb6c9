#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lserve {
namespace {

// Longest prefix of `text` that ends with `byte`, after `state` bytes have matched.
int32_t Advance(const std::string& text, const std::vector<int32_t>& border, int32_t state,
                char byte) {
  while (state > 0 && text[static_cast<size_t>(state)] != byte) {
    state = border[static_cast<size_t>(state) - 1];
  }
  return text[static_cast<size_t>(state)] == byte ? state + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  automata_.reserve(stops.size());
  for (std::string& stop : stops) {
    CHECK(!stop.empty());
    Automaton automaton;
    automaton.text = std::move(stop);
    automaton.border.assign(automaton.text.size(), 0);
    for (size_t i = 1; i < automaton.text.size(); ++i) {
      automaton.border[i] =
          Advance(automaton.text, automaton.border, automaton.border[i - 1], automaton.text[i]);
    }
    automata_.push_back(std::move(automaton));
  }
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return "";
  if (automata_.empty()) return std::string(text);

  for (const char byte : text) {
    held_.push_back(byte);
    size_t longest = 0;
    for (Automaton& automaton : automata_) {
      automaton.state = Advance(automaton.text, automaton.border, automaton.state, byte);
      if (static_cast<size_t>(automaton.state) == automaton.text.size()) {
        longest = std::max(longest, automaton.text.size());
      }
    }
    if (longest > 0) {
      matched_ = true;
      held_.resize(held_.size() - longest);
      return std::exchange(held_, "");
    }
  }

  size_t keep = 0;
  for (const Automaton& automaton : automata_) {
    keep = std::max(keep, static_cast<size_t>(automaton.state));
  }
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Finish() { return std::exchange(held_, ""); }

}  // namespace lserve
