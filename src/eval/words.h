// The words of generated documents: those that needle-7m was trained on (tools/needle/data.py), all
// plain English. Immutable, thread-safe.
#pragma once

#include <string>
#include <vector>

namespace lserve {

struct WordLists {
  std::vector<std::string> adjectives, nouns, first_names, last_names, cities, jobs;
  std::vector<std::string> verbs;  // past tense, transitive
  std::vector<std::string> times;  // "in the morning": several words each
};

const WordLists& Words();

}  // namespace lserve
