// Suites whose documents are one long list: aggregation, lookup and labels in context.
#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <utility>

#include "eval/random_stream.h"
#include "eval/suite_tasks.h"
#include "eval/words.h"

namespace lserve {
namespace {

// The largest n for which make(n) has at most `tokens` tokens; make(n) grows with n.
// Errors: kInvalidArgument (not even make(least) fits; the counts are named).
Result<int64_t> LargestThatFits(const std::function<std::string(int64_t)>& make, int64_t least,
                                const DocumentRequest& request) {
  const auto fits = [&](int64_t n) { return request.count_tokens(make(n)) <= request.tokens; };
  if (!fits(least)) {
    return InvalidArgument("a document of {} tokens does not hold the {} entries of its list",
                           request.tokens, least);
  }
  int64_t low = least;
  int64_t high = 2 * least;
  while (fits(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

Question Ask(std::string question, std::vector<std::string> values) {
  Question asked;
  asked.turns = {std::move(question)};
  asked.expected = std::move(values);
  asked.scoring = Scoring::kValues;
  return asked;
}

// "amber anchor": adjectives and nouns give 22,000 of them.
std::string WordPair(RandomStream& random) {
  const std::string adjective = random.Choose(Words().adjectives);
  return adjective + " " + random.Choose(Words().nouns);
}

template <typename Make>
std::vector<std::string> Distinct(int64_t count, Make make) {
  std::set<std::string> seen;
  std::vector<std::string> list;
  while (std::ssize(list) < count) {
    std::string made = make();
    if (seen.insert(made).second) {
      list.push_back(std::move(made));
    }
  }
  return list;
}

void Repeat(const std::string& entry, int64_t times, std::vector<std::string>* list) {
  list->insert(list->end(), static_cast<size_t>(times), entry);
}

std::string Uuid(RandomStream& random) {
  const uint64_t a = random.Next();
  const uint64_t b = random.Next();
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", a >> 32, (a >> 16) & 0xffff, a & 0xffff,
                     b >> 48, b & 0xffffffffffff);
}

// A list of `entries` word pairs, ten of them common.
constexpr int64_t kCommon = 10;
struct CommonWordsList {
  std::vector<std::string> common;
  std::string text;
};
CommonWordsList MakeCommonWordsList(int64_t entries, uint64_t seed) {
  constexpr int64_t kOtherTimes = 3;
  // 30 times each in a long list, in a short one what half of it holds.
  const int64_t common_times = std::clamp<int64_t>(entries / (2 * kCommon), kOtherTimes + 1, 30);
  const int64_t others = std::max<int64_t>(0, entries - kCommon * common_times) / kOtherTimes;
  RandomStream random(seed);
  const std::vector<std::string> pairs =
      Distinct(kCommon + others, [&] { return WordPair(random); });
  std::vector<std::string> list;
  for (int64_t i = 0; i < std::ssize(pairs); ++i) {
    Repeat(pairs[static_cast<size_t>(i)], i < kCommon ? common_times : kOtherTimes, &list);
  }
  random.Shuffle(&list);
  CommonWordsList made;
  made.common.assign(pairs.begin(), pairs.begin() + kCommon);
  made.text = "Below is a numbered list of word pairs. Some of them stand in it more often.\n\n";
  for (size_t i = 0; i < list.size(); ++i) {
    made.text += fmt::format("{}{}. {}", i == 0 ? "" : " ", i + 1, list[i]);
  }
  return made;
}

// About `draws` coded words whose counts follow Zipf's law, the three most frequent first.
struct FrequentWordsList {
  std::vector<std::string> words;
  std::string text;
};
FrequentWordsList MakeFrequentWordsList(int64_t draws, uint64_t seed) {
  constexpr double kZetaOfTwo = 1.6449340668482264;
  constexpr size_t kLetters = 6;
  std::vector<int64_t> counts;  // of rank 1, 2, ...: draws / (zeta(2) rank^2)
  for (double rank = 1; true; ++rank) {
    const int64_t count = std::llround(static_cast<double>(draws) / (kZetaOfTwo * rank * rank));
    if (count == 0) {
      break;
    }
    counts.push_back(count);
  }
  RandomStream random(seed);
  FrequentWordsList made;
  made.words = Distinct(std::ssize(counts), [&] {
    std::string word(kLetters, ' ');
    for (char& letter : word) {
      letter = static_cast<char>('a' + random.Below(26));
    }
    return word;
  });
  std::vector<std::string> list;
  for (size_t i = 0; i < counts.size(); ++i) {
    Repeat(made.words[i], counts[i], &list);
  }
  random.Shuffle(&list);
  made.text = fmt::format("Below is a text of coded words.\n\n{}", fmt::join(list, " "));
  return made;
}

}  // namespace

Result<SuiteDocument> MakeCommonWords(const DocumentRequest& request) {
  const auto text = [&](int64_t entries) {
    return MakeCommonWordsList(entries, request.seed).text;
  };
  ASSIGN_OR_RETURN(const int64_t entries, LargestThatFits(text, 2 * kCommon * 4, request));
  CommonWordsList list = MakeCommonWordsList(entries, request.seed);
  SuiteDocument document;
  document.text = std::move(list.text);
  document.questions = {
      Ask("What are the 10 most common word pairs in the list above?", std::move(list.common))};
  document.questions[0].max_answer_tokens = 160;
  return document;
}

Result<SuiteDocument> MakeFrequentWords(const DocumentRequest& request) {
  const auto text = [&](int64_t draws) { return MakeFrequentWordsList(draws, request.seed).text; };
  constexpr int64_t kLeastDraws = 60;  // below, ranks 3 and 4 come close
  ASSIGN_OR_RETURN(const int64_t draws, LargestThatFits(text, kLeastDraws, request));
  FrequentWordsList list = MakeFrequentWordsList(draws, request.seed);
  list.words.resize(3);
  SuiteDocument document;
  document.text = std::move(list.text);
  document.questions = {Ask("What are the three most frequent coded words in the text above?",
                            std::move(list.words))};
  return document;
}

Result<SuiteDocument> MakeJsonKv(const DocumentRequest& request) {
  const auto entries = [&](int64_t count) {
    RandomStream random(request.seed);
    std::vector<std::pair<std::string, std::string>> pairs;
    for (int64_t i = 0; i < count; ++i) {
      std::string key = Uuid(random);
      pairs.emplace_back(std::move(key), Uuid(random));
    }
    return pairs;
  };
  const auto text = [&](int64_t count) {
    std::string json = "Below is a JSON object of keys and values.\n\n{";
    for (const auto& [key, value] : entries(count)) {
      json += fmt::format("{}\"{}\": \"{}\"", json.back() == '{' ? "" : ",\n ", key, value);
    }
    return json + "}";
  };
  ASSIGN_OR_RETURN(const int64_t count, LargestThatFits(text, request.questions, request));
  SuiteDocument document;
  document.text = text(count);
  auto pairs = entries(count);
  RandomStream(DeriveSeed(request.seed, 1)).Shuffle(&pairs);
  for (int64_t i = 0; i < request.questions; ++i) {
    const auto& [key, value] = pairs[static_cast<size_t>(i)];
    document.questions.push_back(
        Ask(fmt::format("What is the value of the key \"{}\" in the JSON object above?", key),
            {value}));
  }
  return document;
}

Result<SuiteDocument> MakeManyShot(const DocumentRequest& request) {
  // A pair's label is its adjective's. The nouns that questions use stand in no shot, so a label
  // must be taken from shots of the same adjective.
  RandomStream random(request.seed);
  std::vector<std::string> adjectives = Words().adjectives;
  random.Shuffle(&adjectives);
  adjectives.resize(static_cast<size_t>(std::clamp<int64_t>(request.tokens / 512, 8, 64)));
  std::vector<std::string> nouns = Words().nouns;
  random.Shuffle(&nouns);
  const std::vector<std::string> labels =
      Distinct(std::ssize(adjectives), [&] { return std::to_string(1000 + random.Below(9000)); });
  const int64_t unseen = request.questions;
  const uint64_t shot_seed = random.Next();
  const auto text = [&](int64_t shots) {
    RandomStream draw(shot_seed);
    std::string list = "Each line below holds a pair of words and its label.\n";
    for (int64_t i = 0; i < shots; ++i) {
      // Every adjective in turn, so that each has been shown.
      const size_t which = static_cast<size_t>(i) % adjectives.size();
      const int64_t noun = unseen + draw.Below(std::ssize(nouns) - unseen);
      list += fmt::format("\n{} {}: {}", adjectives[which], nouns[static_cast<size_t>(noun)],
                          labels[which]);
    }
    return list;
  };
  ASSIGN_OR_RETURN(const int64_t shots, LargestThatFits(text, std::ssize(adjectives), request));
  SuiteDocument document;
  document.text = text(shots);
  for (int64_t i = 0; i < request.questions; ++i) {
    const auto which = static_cast<size_t>(random.Below(std::ssize(adjectives)));
    document.questions.push_back(Ask(fmt::format("What is the label of \"{} {}\"?",
                                                 adjectives[which], nouns[static_cast<size_t>(i)]),
                                     {labels[which]}));
  }
  return document;
}

}  // namespace lserve
