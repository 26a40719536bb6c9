#include "eval/facts.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <utility>

#include "eval/words.h"

namespace lserve {
namespace {

// One sentence of a document, before it is written out.
struct Sentence {
  std::string text;
  int64_t tokens = 0;
  bool opens_paragraph = false;
};

std::string Capitalised(std::string text) {
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

// Sentences of paragraphs of 3 to 9, together at most `tokens` tokens and less than one sentence
// short of it.
std::vector<Sentence> MakeFiller(int64_t tokens, RandomStream& random,
                                 const TokenCounter& count_tokens) {
  std::vector<Sentence> filler;
  for (int64_t left_in_paragraph = 0; true; --left_in_paragraph) {
    Sentence sentence;
    if (left_in_paragraph == 0) {
      left_in_paragraph = 3 + random.Below(7);
      sentence.opens_paragraph = !filler.empty();
    }
    sentence.text = (sentence.opens_paragraph ? "\n\n" : " ") + FillerSentence(random);
    sentence.tokens = count_tokens(sentence.text);
    tokens -= sentence.tokens;
    if (tokens < 0) {
      return filler;
    }
    filler.push_back(std::move(sentence));
  }
}

struct Needle {
  std::string text;
  double depth = 0;
};

// Sentences of the facts by depth. Facts of equal depth keep their order.
std::vector<Needle> PlaceFacts(const std::vector<Fact>& facts, RandomStream& random) {
  std::vector<Needle> needles;
  for (const Fact& fact : facts) {
    std::vector<double> depths;
    for (size_t i = 0; i < fact.sentences.size(); ++i) {
      depths.push_back(fact.depth.has_value() ? *fact.depth : random.Unit());
    }
    std::sort(depths.begin(), depths.end());
    for (size_t i = 0; i < fact.sentences.size(); ++i) {
      needles.push_back({" " + fact.sentences[i], depths[i]});
    }
  }
  std::stable_sort(needles.begin(), needles.end(),
                   [](const Needle& a, const Needle& b) { return a.depth < b.depth; });
  return needles;
}

// Filler with each needle after the sentence whose end is nearest to its depth.
std::string WriteDocument(const std::vector<Sentence>& filler, const std::vector<Needle>& needles) {
  int64_t total = 0;
  for (const Sentence& sentence : filler) {
    total += sentence.tokens;
  }
  std::string text;
  size_t needle = 0;
  int64_t written = 0;
  for (size_t i = 0; i < filler.size(); ++i) {
    text += filler[i].text;
    written += filler[i].tokens;
    const int64_t next = i + 1 < filler.size() ? filler[i + 1].tokens : total;
    const double reach = static_cast<double>(written) + static_cast<double>(next) / 2;
    while (needle < needles.size() && needles[needle].depth * static_cast<double>(total) <= reach) {
      text += needles[needle++].text;
    }
  }
  while (needle < needles.size()) {  // no filler at all
    text += needles[needle++].text;
  }
  return text.empty() ? text : text.substr(1);  // without the space before the first sentence
}

}  // namespace

const char* FactKindName(FactKind kind) {
  switch (kind) {
    case FactKind::kCode: return "code";
    case FactKind::kMulti: return "multi";
    case FactKind::kPerson: return "person";
    case FactKind::kChain: return "chain";
    case FactKind::kPair: return "pair";
  }
  return "";
}

template <typename Make>
std::string FactSource::Fresh(Make make) {
  while (true) {
    std::string made = make();
    if (used_.insert(made).second) {
      return made;
    }
  }
}

std::string FactSource::Thing() {
  return Fresh([&] {
    return fmt::format("{} {}", random_.Choose(Words().adjectives), random_.Choose(Words().nouns));
  });
}

std::string FactSource::Number() {
  return Fresh([&] {
    constexpr int64_t kLow = 10000;
    const auto bound = random_.Choose<int64_t>({100'000, 1'000'000, 10'000'000});
    return std::to_string(kLow + random_.Below(bound - kLow));
  });
}

std::string FactSource::Record() {
  return Fresh([&] { return fmt::format("{:06x}", random_.Below(1 << 24)); });
}

Fact FactSource::Draw(FactKind kind) {
  switch (kind) {
    case FactKind::kCode: return Code();
    case FactKind::kMulti: return Multi(random_.Choose<int64_t>({2, 2, 3, 4}));
    case FactKind::kPerson: return Person();
    case FactKind::kChain: return Chain(random_.Choose<int64_t>({2, 2, 3, 3, 4}));
    case FactKind::kPair: return Pair();
  }
  return {};
}

Fact FactSource::DrawAny() {
  const int64_t percent = random_.Below(100);
  if (percent < 45) {
    return Draw(FactKind::kCode);
  }
  if (percent < 55) {
    return Draw(FactKind::kMulti);
  }
  if (percent < 77) {
    return Draw(FactKind::kPerson);
  }
  return Draw(percent < 90 ? FactKind::kChain : FactKind::kPair);
}

Fact FactSource::Code() {
  const std::string key = Thing();
  const std::string value = Number();
  Fact fact;
  fact.kind = FactKind::kCode;
  fact.values = {value};
  fact.sentences = {random_.Choose<std::string>(
      {fmt::format("Remember that the access code of the {} is {}.", key, value),
       fmt::format("Note: the code for the {} is {}.", key, value),
       fmt::format("The {} has the code {}.", key, value),
       fmt::format("The secret code of the {} is {}.", key, value)})};
  fact.question =
      random_.Choose<std::string>({fmt::format("What is the code of the {}?", key),
                                   fmt::format("Which code belongs to the {}?", key),
                                   fmt::format("Give me the access code for the {}.", key),
                                   fmt::format("What is the secret code of the {}?", key)});
  fact.answer = fmt::format("The code of the {} is {}.", key, value);
  return fact;
}

Fact FactSource::Multi(int64_t values) {
  const std::string key = Thing();
  Fact fact;
  fact.kind = FactKind::kMulti;
  for (int64_t i = 0; i < values; ++i) {
    fact.values.push_back(Number());
    fact.sentences.push_back(
        fmt::format("One of the codes of the {} is {}.", key, fact.values.back()));
  }
  fact.question = fmt::format("List all codes of the {}.", key);
  fact.answer = fmt::format("The codes of the {} are {}.", key, fmt::join(fact.values, ", "));
  return fact;
}

Fact FactSource::Person() {
  const WordLists& words = Words();
  const std::string key = Fresh([&] {
    return fmt::format("{} {}", random_.Choose(words.first_names),
                       random_.Choose(words.last_names));
  });
  Fact fact;
  fact.kind = FactKind::kPerson;
  std::string other_wording;
  switch (random_.Below(3)) {
    case 0: {
      const std::string& city = random_.Choose(words.cities);
      fact.question = fmt::format("Where does {} live?", key);
      fact.answer = fmt::format("{} lives in {}.", key, city);
      fact.values = {city};
      other_wording = fmt::format("The home of {} is in {}.", key, city);
      break;
    }
    case 1: {
      const std::string& job = random_.Choose(words.jobs);
      fact.question = fmt::format("What is the job of {}?", key);
      fact.answer = fmt::format("{} works as a {}.", key, job);
      fact.values = {job};
      other_wording = fmt::format("By trade, {} is a {}.", key, job);
      break;
    }
    default: {
      const std::string thing =
          fmt::format("{} {}", random_.Choose(words.adjectives), random_.Choose(words.nouns));
      fact.question = fmt::format("What does {} own?", key);
      fact.answer = fmt::format("{} owns a {}.", key, thing);
      fact.values = {thing};
      other_wording = fmt::format("The {} belongs to {}.", thing, key);
      break;
    }
  }
  fact.sentences = {random_.Choose<std::string>({fact.answer, other_wording})};
  return fact;
}

Fact FactSource::Chain(int64_t names) {
  static constexpr std::string_view kLetters = "ABCDEFGHJKLMNPQRSTUVWXYZ";
  Fact fact;
  fact.kind = FactKind::kChain;
  fact.values = {Number()};
  std::string previous = fact.values[0];
  std::string handed_on = previous + ".";
  for (int64_t i = 0; i < names; ++i) {
    const std::string name = Fresh([&] {
      std::string letters(3, ' ');
      for (char& letter : letters) {
        letter = kLetters[static_cast<size_t>(random_.Below(std::ssize(kLetters)))];
      }
      return letters;
    });
    fact.sentences.push_back(fmt::format("Set {} to {}.", name, previous));
    handed_on = name + " = " + handed_on;
    previous = name;
  }
  fact.question = fmt::format("What is the value of {}?", previous);
  fact.answer = handed_on;
  return fact;
}

Fact FactSource::Pair() {
  const std::string key = Record();
  const std::string value = Record();
  Fact fact;
  fact.kind = FactKind::kPair;
  fact.values = {value};
  fact.answer = fmt::format("The record \"{}\" maps to \"{}\".", key, value);
  fact.sentences = {fact.answer};
  fact.question = fmt::format("What does the record \"{}\" map to?", key);
  return fact;
}

std::string FillerSentence(RandomStream& random) {
  const WordLists& words = Words();
  const auto adjective = [&] { return random.Choose(words.adjectives); };
  const auto noun = [&] { return random.Choose(words.nouns); };
  const auto name = [&] { return random.Choose(words.first_names); };
  const auto city = [&] { return random.Choose(words.cities); };
  const auto job = [&] { return random.Choose(words.jobs); };
  const auto verb = [&] { return random.Choose(words.verbs); };
  const auto time = [&] { return random.Choose(words.times); };
  // Braced, so that the draws happen in the order written on every compiler.
  using Parts = std::vector<std::string>;
  const auto join = [](const Parts& parts) { return fmt::format("{}", fmt::join(parts, "")); };
  switch (random.Below(8)) {
    case 0: return join(Parts{"The ", adjective(), " ", noun(), " stood near the ", noun(), "."});
    case 1:
      return join(Parts{name(), " ", verb(), " the ", adjective(), " ", noun(), " ", time(), "."});
    case 2:
      return join(Parts{"The ", job(), " ", verb(), " a ", noun(), " and a ", adjective(), " ",
                        noun(), " ", time(), "."});
    case 3:
      return join(
          Parts{"In ", city(), ", a ", adjective(), " ", noun(), " is rarely seen ", time(), "."});
    case 4:
      return join(
          Parts{name(), " and the ", job(), " ", verb(), " the ", noun(), " in ", city(), "."});
    case 5:
      return join(Parts{"Nobody ", verb(), " the ", adjective(), " ", noun(), " ", time(), "."});
    case 6:
      return join(Parts{Capitalised(time()), ", the ", job(), " ", verb(), " the ", noun(),
                        " by the ", adjective(), " ", noun(), "."});
    default:
      return join(Parts{"There was a ", adjective(), " ", noun(), " between the ", noun(),
                        " and the ", adjective(), " ", noun(), "."});
  }
}

Result<std::string> MakeFactDocument(const std::vector<Fact>& facts, int64_t tokens, uint64_t seed,
                                     const TokenCounter& count_tokens) {
  RandomStream random(seed);
  const std::vector<Needle> needles = PlaceFacts(facts, random);
  int64_t fact_tokens = 0;
  for (const Needle& needle : needles) {
    fact_tokens += count_tokens(needle.text);
  }
  if (fact_tokens > tokens) {
    return InvalidArgument("a document of {} tokens does not hold its facts of {} tokens", tokens,
                           fact_tokens);
  }
  // Tokens of the whole may exceed those of its parts where a tokenizer merges across sentences.
  std::vector<Sentence> filler = MakeFiller(tokens - fact_tokens, random, count_tokens);
  while (true) {
    std::string text = WriteDocument(filler, needles);
    const int64_t excess = count_tokens(text) - tokens;
    if (excess <= 0 || filler.empty()) {
      return text;
    }
    for (int64_t removed = 0; removed < excess && !filler.empty(); filler.pop_back()) {
      removed += filler.back().tokens;
    }
  }
}

}  // namespace lserve
