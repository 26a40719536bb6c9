#include "eval/facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const Tokenizer& NeedleTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer =
      Tokenizer::Load(std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m").value();
  return *tokenizer;
}

int64_t CountTokens(std::string_view text) { return std::ssize(NeedleTokenizer().Encode(text)); }

std::vector<Fact> SomeFacts(uint64_t seed, int64_t count) {
  FactSource source(seed);
  std::vector<Fact> facts;
  for (int64_t i = 0; i < count; ++i) {
    facts.push_back(source.DrawAny());
  }
  return facts;
}

TEST(RandomStreamTest, CoversItsRangeAndRepeatsFromItsSeed) {
  RandomStream first(5), again(5), other(6);
  std::set<int64_t> seen;
  bool differs = false;
  for (int i = 0; i < 200; ++i) {
    const int64_t drawn = first.Below(7);
    EXPECT_EQ(drawn, again.Below(7));
    differs |= drawn != other.Below(7);
    seen.insert(drawn);
  }
  EXPECT_THAT(seen, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_TRUE(differs);
  EXPECT_NE(DeriveSeed(5, 1), DeriveSeed(5, 2));
  EXPECT_NE(DeriveSeed(5, 1), DeriveSeed(6, 1));
}

TEST(RandomStreamTest, ShuffleKeepsEveryItem) {
  std::vector<int> items = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  RandomStream(3).Shuffle(&items);
  EXPECT_FALSE(std::is_sorted(items.begin(), items.end()));
  EXPECT_THAT(items, ::testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8));
}

TEST(FactsTest, ASeedMakesTheSameDocumentAndAnotherSeedAnother) {
  const std::string text = MakeFactDocument(SomeFacts(1, 9), 1500, 2, CountTokens).value();
  EXPECT_EQ(text, MakeFactDocument(SomeFacts(1, 9), 1500, 2, CountTokens).value());
  EXPECT_NE(text, MakeFactDocument(SomeFacts(3, 9), 1500, 2, CountTokens).value());
  EXPECT_NE(text, MakeFactDocument(SomeFacts(1, 9), 1500, 4, CountTokens).value());
}

TEST(FactsTest, EveryKindNamesItsValuesInSentencesAndAnswer) {
  FactSource source(7);
  std::set<std::string> questions;
  for (const FactKind kind :
       {FactKind::kCode, FactKind::kMulti, FactKind::kPerson, FactKind::kChain, FactKind::kPair}) {
    for (int i = 0; i < 20; ++i) {
      const Fact fact = source.Draw(kind);
      SCOPED_TRACE(fact.question);
      EXPECT_EQ(fact.kind, kind);
      EXPECT_TRUE(questions.insert(fact.question).second);
      std::string sentences;
      for (const std::string& sentence : fact.sentences) {
        sentences += sentence + " ";
      }
      for (const std::string& value : fact.values) {
        EXPECT_THAT(sentences, HasSubstr(value));
        EXPECT_THAT(fact.answer, HasSubstr(value));
      }
    }
  }
}

TEST(FactsTest, WordsAreThoseOfTheTrainingGrammar) {
  FactSource source(1);
  const Fact chain = source.Chain(3);
  ASSERT_THAT(chain.sentences, SizeIs(3));
  // "Set AAA to N." "Set BBB to AAA." "Set CCC to BBB." -> "CCC = BBB = AAA = N."
  const std::string a = chain.sentences[0].substr(4, 3), b = chain.sentences[1].substr(4, 3),
                    c = chain.sentences[2].substr(4, 3);
  EXPECT_EQ(chain.sentences[0], "Set " + a + " to " + chain.values[0] + ".");
  EXPECT_EQ(chain.sentences[1], "Set " + b + " to " + a + ".");
  EXPECT_EQ(chain.sentences[2], "Set " + c + " to " + b + ".");
  EXPECT_EQ(chain.question, "What is the value of " + c + "?");
  EXPECT_EQ(chain.answer, c + " = " + b + " = " + a + " = " + chain.values[0] + ".");

  const Fact multi = source.Multi(3);
  EXPECT_THAT(multi.sentences, SizeIs(3));
  EXPECT_THAT(multi.answer, HasSubstr(multi.values[0] + ", " + multi.values[1] + ", "));
}

TEST(FactsTest, DocumentsFillTheirLength) {
  for (const int64_t tokens : {700, 1999, 8192}) {
    const std::string text =
        MakeFactDocument(SomeFacts(11, tokens / 128), tokens, 12, CountTokens).value();
    EXPECT_LE(CountTokens(text), tokens);
    EXPECT_GT(CountTokens(text), tokens - 48);
  }
}

TEST(FactsTest, EverySentenceStandsInTheDocumentInOrder) {
  const std::vector<Fact> facts = SomeFacts(21, 20);
  const std::string text = MakeFactDocument(facts, 3000, 22, CountTokens).value();
  for (const Fact& fact : facts) {
    size_t from = 0;
    for (const std::string& sentence : fact.sentences) {
      const size_t at = text.find(sentence, from);
      ASSERT_NE(at, std::string::npos) << sentence;
      from = at + sentence.size();
    }
  }
}

TEST(FactsTest, DepthPlacesAFact) {
  for (const double depth : {0.0, 0.37, 1.0}) {
    Fact fact = FactSource(31).Code();
    fact.depth = depth;
    const std::string text = MakeFactDocument({fact}, 4096, 32, CountTokens).value();
    const size_t at = text.find(fact.sentences[0]);
    ASSERT_NE(at, std::string::npos);
    EXPECT_NEAR(static_cast<double>(at) / static_cast<double>(text.size()), depth, 0.01);
  }
}

TEST(FactsTest, FactsThatDoNotFitAreRefused) {
  const Result<std::string> document = MakeFactDocument(SomeFacts(41, 50), 100, 1, CountTokens);
  ASSERT_FALSE(document.ok());
  EXPECT_THAT(document.status().message(), HasSubstr("100 tokens"));
}

TEST(FactsTest, NoFactsAndNoRoomMakeAnEmptyDocument) {
  EXPECT_THAT(MakeFactDocument({}, 3, 1, CountTokens).value(), IsEmpty());
}

}  // namespace
}  // namespace lserve
