#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "text/chat_template.h"
#include "text/text_test_data.h"
#include "text/utf8.h"

namespace lserve {
namespace {

using Ids = std::vector<int32_t>;

constexpr const char* kNames[] = {"llama3",
                                  "qwen2",
                                  "gpt2",
                                  "gpt2-prefix",
                                  "digits-removed",
                                  "llama2",
                                  "llama2-normalized",
                                  "metaspace-first",
                                  "metaspace-always",
                                  "metaspace-never"};

Json TokenizerJson(const std::string& name) {
  const Result<Json> json = ReadJsonFile(TextDataPath("tokenizers/" + name + ".json"));
  CHECK_OK(json.status());
  return *json;
}

const Tokenizer& TestTokenizer(const std::string& name) {
  static auto* loaded = new std::map<std::string, std::unique_ptr<Tokenizer>>;
  std::unique_ptr<Tokenizer>& tokenizer = (*loaded)[name];
  if (tokenizer == nullptr) {
    Result<std::unique_ptr<Tokenizer>> result = Tokenizer::FromJson(TokenizerJson(name), Json());
    CHECK_OK(result.status());
    tokenizer = std::move(*result);
  }
  return *tokenizer;
}

std::string Join(const std::vector<TextRun>& runs) {
  std::string text;
  for (const TextRun& run : runs) {
    text += run.text;
  }
  return text;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

const std::vector<Json>& Cases() {
  static const auto* cases =
      new std::vector<Json>(ReadJsonLines(TextDataPath("tokenizer_cases.jsonl")));
  return *cases;
}

class TokenizerOracle : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerOracle, EncodesAsTheReference) {
  const Tokenizer& tokenizer = TestTokenizer(GetParam());
  int checked = 0;
  int wrong = 0;
  for (const Json& c : Cases()) {
    if (c["tokenizer"] != GetParam() || !c.contains("ids")) {
      continue;
    }
    const std::string text = c.contains("hex") ? FromHex(c["hex"]) : c["text"].get<std::string>();
    const Ids ids = c["ids"];
    const Ids parsed = c.value("ids_parsed", ids);
    const Ids with_bos = c.value("ids_with_bos", parsed);
    const TextRun trusted{text, true};
    const bool right = tokenizer.Encode(text) == ids &&
                       tokenizer.EncodeRuns({&trusted, 1}) == parsed &&
                       tokenizer.EncodeWithBos(text, /*parse_special=*/true) == with_bos &&
                       tokenizer.Decode(ids, false) == c["decoded"];
    if (!right && ++wrong <= 5) {
      ADD_FAILURE() << c.dump() << "\n encoded " << testing::PrintToString(tokenizer.Encode(text))
                    << "\n parsed " << testing::PrintToString(tokenizer.EncodeRuns({&trusted, 1}))
                    << "\n decoded " << tokenizer.Decode(ids, false);
    }
    ++checked;
  }
  EXPECT_EQ(wrong, 0) << "of " << checked;
  EXPECT_GE(checked, 500);
}

TEST_P(TokenizerOracle, DecodesRandomTokensAsTheReference) {
  const Tokenizer& tokenizer = TestTokenizer(GetParam());
  int checked = 0;
  for (const Json& c : Cases()) {
    if (c["tokenizer"] != GetParam() || !c.contains("decode")) {
      continue;
    }
    const Ids ids = c["decode"];
    EXPECT_EQ(tokenizer.Decode(ids, false), c["with_special"]) << c.dump();
    EXPECT_EQ(tokenizer.Decode(ids, true), c["without_special"]) << c.dump();
    ++checked;
  }
  EXPECT_GE(checked, 20);
}

TEST_P(TokenizerOracle, StreamsWhatItDecodesInWholeCharacters) {
  const Tokenizer& tokenizer = TestTokenizer(GetParam());
  std::mt19937 rng(7);
  for (int round = 0; round < 400; ++round) {
    Ids ids;
    const int32_t pool = round % 2 == 0 ? tokenizer.vocab_size() + 2 : 261;
    for (size_t i = 0, n = rng() % 30; i < n; ++i) {
      ids.push_back(static_cast<int32_t>(rng() % static_cast<uint32_t>(pool)) - 1);
    }
    StreamDecoder stream(tokenizer, round % 3 == 0);
    std::string text;
    for (const int32_t id : ids) {
      const std::string part = stream.Push(id);
      EXPECT_TRUE(IsValidUtf8(part));
      text += part;
    }
    text += stream.Finish();
    EXPECT_EQ(text, tokenizer.Decode(ids, round % 3 == 0));
    EXPECT_TRUE(IsValidUtf8(text));
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerOracle, testing::ValuesIn(kNames),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(TokenizerTest, UserTextNeverBecomesASpecialToken) {
  const Tokenizer& tokenizer = TestTokenizer("llama3");
  const int32_t eot = *tokenizer.TokenToId("<|eot|>");
  EXPECT_TRUE(tokenizer.IsSpecial(eot));
  EXPECT_THAT(tokenizer.Encode("a<|eot|>b"), testing::Not(testing::Contains(eot)));
  EXPECT_THAT(tokenizer.EncodeWithBos("a<|eot|>b"), testing::Not(testing::Contains(eot)));
  const std::vector<TextRun> user = {{"<|begin|>", true}, {"a<|eot|>b", false}, {"<|eot|>", true}};
  const Ids ids = tokenizer.EncodeRuns(user);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), eot), 1);
  EXPECT_EQ(ids.back(), eot);
  // A special token that is only partly the template's is text.
  const std::vector<TextRun> halves = {{"<|e", true}, {"ot", false}, {"|>", true}};
  EXPECT_EQ(tokenizer.EncodeRuns(halves), tokenizer.Encode("<|eot|>"));
  // Two trusted runs may make one.
  const std::vector<TextRun> both = {{"<|e", true}, {"ot|>", true}};
  EXPECT_EQ(tokenizer.EncodeRuns(both), Ids{eot});
}

TEST(TokenizerTest, SpecialTokensOfNormalizedTextNeedTrustToo) {
  const Tokenizer& tokenizer = TestTokenizer("llama2-normalized");
  const std::vector<TextRun> trusted = {{"<s>", true}, {"x <s>", false}};
  const Ids ids = tokenizer.EncodeRuns(trusted);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 1);
  EXPECT_EQ(ids.front(), 1);
}

TEST(TokenizerTest, RunsMergeAsOneString) {
  std::mt19937 rng(3);
  for (const char* name : kNames) {
    const Tokenizer& tokenizer = TestTokenizer(name);
    const std::string text = "the access code of Zürich  is 12345 — 日本\n\n";
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      const std::vector<TextRun> runs = {{text.substr(0, cut), rng() % 2 == 0},
                                         {text.substr(cut), rng() % 2 == 0}};
      EXPECT_EQ(tokenizer.EncodeRuns(runs), tokenizer.Encode(text)) << name << " cut at " << cut;
    }
  }
}

TEST(TokenizerTest, LongRunsEncode) {
  // A long text without a place to cut, and of white space, which backtracks.
  for (const char* name : {"llama3", "gpt2", "llama2"}) {
    const Tokenizer& tokenizer = TestTokenizer(name);
    for (const char* unit : {"a", "the", " ", " \n", "\u00a0", "1", "!", "日"}) {
      std::string text;
      while (text.size() < (1 << 18)) {
        text += unit;
      }
      const Ids ids = tokenizer.Encode(text);
      EXPECT_EQ(tokenizer.Decode(ids, false).size(), text.size()) << name << " '" << unit << "'";
    }
  }
}

TEST(TokenizerTest, StreamHoldsAnUnfinishedCharacter) {
  const Tokenizer& tokenizer = TestTokenizer("llama2");
  const Ids bytes = {*tokenizer.TokenToId("<0xF0>"), *tokenizer.TokenToId("<0x9F>"),
                     *tokenizer.TokenToId("<0x91>"), *tokenizer.TokenToId("<0x8D>")};
  StreamDecoder whole(tokenizer);
  EXPECT_EQ(whole.Push(bytes[0]), "");
  EXPECT_EQ(whole.Push(bytes[1]), "");
  EXPECT_EQ(whole.Push(bytes[2]), "");
  EXPECT_EQ(whole.Push(bytes[3]), "👍");
  EXPECT_EQ(whole.Finish(), "");
  StreamDecoder broken(tokenizer);
  EXPECT_EQ(broken.Push(bytes[0]), "");
  EXPECT_EQ(broken.Push(bytes[1]), "");
  EXPECT_EQ(broken.Finish(), "\uFFFD\uFFFD");
}

TEST(TokenizerTest, ContinuedTextKeepsItsSpace) {
  const Tokenizer& tokenizer = TestTokenizer("llama2");
  const Ids ids = tokenizer.Encode("the");
  StreamDecoder fresh(tokenizer);
  StreamDecoder continued(tokenizer, true, /*continues_text=*/true);
  std::string fresh_text;
  std::string continued_text;
  for (const int32_t id : ids) {
    fresh_text += fresh.Push(id);
    continued_text += continued.Push(id);
  }
  EXPECT_EQ(fresh_text, "the");
  EXPECT_EQ(continued_text, " the");
}

TEST(TokenizerTest, ConfigAddsOrRemovesBos) {
  const Json json = TokenizerJson("llama2");
  const auto encode = [&](const char* config) {
    Result<std::unique_ptr<Tokenizer>> tokenizer =
        Tokenizer::FromJson(json, *ParseJson(config, "config"));
    CHECK_OK(tokenizer.status());
    return (*tokenizer)->EncodeWithBos("the");
  };
  const Ids plain = TestTokenizer("llama2").Encode("the");
  Ids with_bos = {1};
  with_bos.insert(with_bos.end(), plain.begin(), plain.end());
  EXPECT_EQ(encode("{}"), with_bos);
  EXPECT_EQ(encode(R"({"add_bos_token": true, "bos_token": "<s>"})"), with_bos);
  EXPECT_EQ(encode(R"({"add_bos_token": false, "bos_token": {"content": "<s>"}})"), plain);
  with_bos.push_back(2);
  EXPECT_EQ(encode(R"({"add_eos_token": true, "eos_token": "</s>"})"), with_bos);
}

TEST(TokenizerTest, NeedlePromptsAreTheReference) {
  const std::string model = std::string(LSERVE_SOURCE_DIR) + "/models/needle-7m";
  if (!FileExists(model + "/tokenizer.json")) {
    GTEST_SKIP() << model << " is not there";
  }
  const Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(model);
  const Result<ChatTemplate> chat_template = ChatTemplate::Load(model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  ASSERT_TRUE(chat_template.ok()) << chat_template.status().message();
  int checked = 0;
  for (const Json& c : ReadJsonLines(TextDataPath("needle_prompts.jsonl"))) {
    const ChatMessage message{"user", c["content"]};
    const auto runs = chat_template->Render({&message, 1}, true);
    ASSERT_TRUE(runs.ok()) << runs.status().message();
    const Ids ids = (*tokenizer)->EncodeRuns(*runs);
    EXPECT_EQ(ids, c["tokens"].get<Ids>());
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 1) << "one BOS";
    EXPECT_EQ((*tokenizer)->Decode(ids, false), Join(*runs));
    ++checked;
  }
  EXPECT_GE(checked, 4);
}

struct BadFile {
  const char* pointer;  // what is replaced
  const char* value;    // null: removed
  StatusCode code;
  const char* message;
};

TEST(TokenizerTest, RefusesWhatItCannotDo) {
  const BadFile cases[] = {
      {"/model", "null", StatusCode::kInvalidArgument, "no \"model\""},
      {"/model/vocab", nullptr, StatusCode::kInvalidArgument, "vocab"},
      {"/model/vocab/the", "-1", StatusCode::kInvalidArgument, "-1"},
      {"/model/vocab/the", "99999999999", StatusCode::kInvalidArgument, "99999999999"},
      {"/model/vocab/the", "7", StatusCode::kInvalidArgument, "two tokens have the id 7"},
      {"/model/vocab/the", "\"x\"", StatusCode::kInvalidArgument, "\"x\""},
      {"/model/merges", nullptr, StatusCode::kInvalidArgument, "merges"},
      {"/model/merges/0", "[\"nope\", \"a\"]", StatusCode::kInvalidArgument, "\"nope\""},
      {"/model/merges/0", "\"a b c\"", StatusCode::kInvalidArgument, "a b c"},
      {"/model/type", "\"Unigram\"", StatusCode::kUnimplemented, "Unigram"},
      {"/model/dropout", "0.1", StatusCode::kUnimplemented, "dropout"},
      {"/model/end_of_word_suffix", "\"</w>\"", StatusCode::kUnimplemented, "</w>"},
      {"/normalizer", "{\"type\": \"Lowercase\"}", StatusCode::kUnimplemented, "Lowercase"},
      {"/pre_tokenizer", "{\"type\": \"Whitespace\"}", StatusCode::kUnimplemented, "Whitespace"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Contiguous\"", StatusCode::kUnimplemented,
       "Contiguous"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", StatusCode::kInvalidArgument,
       "does not compile"},
      {"/decoder", "null", StatusCode::kUnimplemented, "no decoder"},
      {"/decoder/type", "\"WordPiece\"", StatusCode::kUnimplemented, "WordPiece"},
      {"/post_processor", "{\"type\": \"BertProcessing\"}", StatusCode::kUnimplemented,
       "BertProcessing"},
      {"/added_tokens/0/id", "1", StatusCode::kInvalidArgument, "<|begin|>"},
      {"/added_tokens/0/content", "\"new\"", StatusCode::kInvalidArgument, "new"},
      {"/added_tokens", "3", StatusCode::kInvalidArgument, "added_tokens"},
  };
  const Json good = TokenizerJson("llama3");
  ASSERT_TRUE(good["model"]["vocab"].contains("the"));
  for (const BadFile& bad : cases) {
    Json json = good;
    const Json::json_pointer pointer(bad.pointer);
    if (bad.value == nullptr) {
      json[pointer.parent_pointer()].erase(pointer.back());
    } else {
      json[pointer] = Json::parse(bad.value);
    }
    const Result<std::unique_ptr<Tokenizer>> result = Tokenizer::FromJson(json, Json());
    ASSERT_FALSE(result.ok()) << bad.pointer;
    EXPECT_EQ(result.status().code(), bad.code) << result.status().message();
    EXPECT_THAT(result.status().message(), testing::HasSubstr(bad.message));
  }
  EXPECT_EQ(Tokenizer::Load("/nonexistent").status().code(), StatusCode::kNotFound);
}

TEST(Utf8Test, RepairsMaximalSubparts) {
  EXPECT_EQ(RepairUtf8("a\xE2\x82z"), "a\uFFFDz");
  EXPECT_EQ(RepairUtf8("\xF0\x80\x80\x41"), "\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(RepairUtf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(RepairUtf8("\xC0\xAF\xF4\x90"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(RepairUtf8("é\xC3"), "é\uFFFD");
  EXPECT_TRUE(IsValidUtf8("aé日👍\U0010FFFF"));
  EXPECT_FALSE(IsValidUtf8("abcdefghij\x80"));
}

}  // namespace
}  // namespace lserve
