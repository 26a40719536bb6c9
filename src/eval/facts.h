// Documents with facts hidden in filler, generated from a seed, in the grammar that needle-7m was
// trained on (tools/needle/data.py) and any model of English understands. Nothing in them is true.
// Values; FactSource is not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "eval/random_stream.h"

namespace lserve {

enum class FactKind {
  kCode,    // "The code of the amber anchor is 12345."
  kMulti,   // several codes of one thing, a sentence each
  kPerson,  // home, trade or possession of a named person
  kChain,   // "Set ABC to 12345." "Set DEF to ABC.": a value handed on from name to name
  kPair,    // a record of six hexadecimal digits that maps to another
};
const char* FactKindName(FactKind kind);  // "code", "multi", "person", "chain", "pair"

struct Fact {
  FactKind kind = FactKind::kCode;
  std::vector<std::string> sentences;  // stand in the document in this order
  std::string question;
  std::string answer;               // as needle-7m words it
  std::vector<std::string> values;  // what an answer in any wording names
  std::optional<double> depth;      // of all sentences, 0 (front) to 1; none: a random one for each
};

// Draws the facts of one document: keys and values never repeat in it.
class FactSource {
 public:
  explicit FactSource(uint64_t seed) : random_(seed) {}

  // The count of a kMulti fact's values or of a kChain's names follows the training data: 2 to 4.
  Fact Draw(FactKind kind);
  // Kinds in the shares of the training data.
  Fact DrawAny();

  Fact Code();
  Fact Multi(int64_t values);
  Fact Person();
  Fact Chain(int64_t names);
  Fact Pair();

 private:
  template <typename Make>
  std::string Fresh(Make make);
  std::string Thing();   // "amber anchor"
  std::string Number();  // 5 to 7 digits, most often 5 or 6
  std::string Record();  // 6 hexadecimal digits

  RandomStream random_;
  std::set<std::string> used_;
};

// "The amber apple stood near the arrow.": one sentence that answers no fact's question.
std::string FillerSentence(RandomStream& random);

using TokenCounter = std::function<int64_t(std::string_view)>;

// Filler paragraphs of at most `tokens` tokens with the facts' sentences put between sentences;
// less than one filler sentence short of `tokens` (a sentence is about 20 tokens). The facts of a
// random depth stand independently of each other, mixed, each one's own sentences in order.
// Errors: kInvalidArgument (the facts alone exceed `tokens`; both counts are named).
Result<std::string> MakeFactDocument(const std::vector<Fact>& facts, int64_t tokens, uint64_t seed,
                                     const TokenCounter& count_tokens);

}  // namespace lserve
