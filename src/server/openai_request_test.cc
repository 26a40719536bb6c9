#include "server/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Parsed {
  std::optional<ApiError> error;
  GenerationRequest request;
};

Parsed Parse(bool chat, std::string_view body, const SamplingParams& defaults = {}) {
  Parsed parsed;
  Json json;
  parsed.error = ParseBody(body, 100000, &json);
  if (!parsed.error) {
    parsed.error = chat ? ParseChatRequest(std::move(json), defaults, &parsed.request)
                        : ParseCompletionRequest(std::move(json), defaults, &parsed.request);
  }
  return parsed;
}

Parsed Completion(std::string_view fields) {
  return Parse(false, R"({"prompt":"x")" + std::string(fields.empty() ? "" : ",") +
                          std::string(fields) + "}");
}

Parsed Chat(std::string_view fields) {
  return Parse(true, R"({"messages":[{"role":"user","content":"x"}])" +
                         std::string(fields.empty() ? "" : ",") + std::string(fields) + "}");
}

TEST(OpenAiRequest, CompletionDefaults) {
  const Parsed parsed = Completion("");
  ASSERT_FALSE(parsed.error);
  const SamplingParams& sampling = parsed.request.sampling;
  EXPECT_EQ(std::get<std::string>(parsed.request.prompt), "x");
  EXPECT_EQ(sampling.max_tokens, 16);
  EXPECT_FALSE(parsed.request.max_tokens_given);
  EXPECT_EQ(sampling.temperature, 1.0);
  EXPECT_EQ(sampling.top_p, 1.0);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_TRUE(sampling.stop.empty());
  EXPECT_FALSE(parsed.request.stream);
  EXPECT_FALSE(parsed.request.chat());
  EXPECT_TRUE(parsed.request.model.empty());
}

TEST(OpenAiRequest, ReadsEveryField) {
  const Parsed parsed = Completion(
      R"("model":"m","max_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,)"
      R"("repetition_penalty":1.1,"presence_penalty":-1,"frequency_penalty":2,"seed":-3,)"
      R"("stop":["a","b"],"stop_token_ids":[5,6],"ignore_eos":true,"stream":true,)"
      R"("stream_options":{"include_usage":true})");
  ASSERT_FALSE(parsed.error) << parsed.error->message;
  const GenerationRequest& request = parsed.request;
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.sampling.max_tokens, 7);
  EXPECT_TRUE(request.max_tokens_given);
  EXPECT_EQ(request.sampling.temperature, 0.5);
  EXPECT_EQ(request.sampling.top_p, 0.9);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_EQ(request.sampling.min_p, 0.1);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(request.sampling.presence_penalty, -1);
  EXPECT_EQ(request.sampling.frequency_penalty, 2);
  EXPECT_EQ(request.sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_THAT(request.sampling.stop, ElementsAre("a", "b"));
  EXPECT_THAT(request.sampling.stop_token_ids, ElementsAre(5, 6));
  EXPECT_TRUE(request.sampling.ignore_eos);
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
}

TEST(OpenAiRequest, PromptForms) {
  EXPECT_EQ(std::get<std::string>(Parse(false, R"({"prompt":["one"]})").request.prompt), "one");
  EXPECT_THAT(std::get<std::vector<int32_t>>(Parse(false, R"({"prompt":[1,2]})").request.prompt),
              ElementsAre(1, 2));
  EXPECT_THAT(std::get<std::vector<int32_t>>(Parse(false, R"({"prompt":[[3]]})").request.prompt),
              ElementsAre(3));
  for (const char* bad :
       {R"({})", R"({"prompt":null})", R"({"prompt":[]})", R"({"prompt":["a","b"]})",
        R"({"prompt":[[1],[2]]})", R"({"prompt":[1,"a"]})", R"({"prompt":[-1]})",
        R"({"prompt":[1.5]})", R"({"prompt":[4294967296]})", R"({"prompt":{}})",
        R"({"prompt":true})", R"({"prompt":[[]]})", R"({"prompt":[[["a"]]]})"}) {
    const Parsed parsed = Parse(false, bad);
    ASSERT_TRUE(parsed.error) << bad;
    EXPECT_EQ(parsed.error->param, "prompt") << bad;
    EXPECT_EQ(parsed.error->http_status, 400) << bad;
  }
}

TEST(OpenAiRequest, ChatMessages) {
  const Parsed parsed = Parse(
      true, R"({"messages":[{"role":"developer","content":"be brief"},{"role":"user","content":[)"
            R"({"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant",)"
            R"("content":null},{"role":"tool","content":"t","tool_call_id":"1"}]})");
  ASSERT_FALSE(parsed.error) << parsed.error->message;
  const auto& messages = std::get<std::vector<ChatMessage>>(parsed.request.prompt);
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "ab");
  EXPECT_EQ(messages[2].content, "");
  EXPECT_EQ(messages[3].role, "tool");
  EXPECT_EQ(parsed.request.sampling.max_tokens, -1);
}

TEST(OpenAiRequest, ChatMessageErrorsNameTheField) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":["hi"]})", "messages[0]"},
      {R"({"messages":[{"content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"wizard","content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
       "messages[0].content[0].type"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
       "messages[0].content[0].text"},
      {R"({"messages":[{"role":"assistant","content":"","tool_calls":[{}]}]})",
       "messages[0].tool_calls"}};
  for (const auto& [body, param] : cases) {
    const Parsed parsed = Parse(true, body);
    ASSERT_TRUE(parsed.error) << body;
    EXPECT_EQ(parsed.error->param, param) << body;
    EXPECT_EQ(parsed.error->http_status, 400) << body;
  }
}

TEST(OpenAiRequest, MaxCompletionTokensReplacesMaxTokens) {
  EXPECT_EQ(Chat(R"("max_tokens":5)").request.sampling.max_tokens, 5);
  EXPECT_EQ(Chat(R"("max_tokens":5,"max_completion_tokens":9)").request.sampling.max_tokens, 9);
  EXPECT_EQ(Chat(R"("max_tokens":null)").request.sampling.max_tokens, -1);
  EXPECT_EQ(Chat(R"("max_tokens":8.0)").request.sampling.max_tokens, 8);
}

TEST(OpenAiRequest, ValuesOutOfRangeNameTheField) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":-0.1)", "temperature"},
      {R"("temperature":"hot")", "temperature"},
      {R"("temperature":true)", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":1.01)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("top_k":1.5)", "top_k"},
      {R"("top_k":1048577)", "top_k"},
      {R"("min_p":1.5)", "min_p"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("presence_penalty":3)", "presence_penalty"},
      {R"("frequency_penalty":-3)", "frequency_penalty"},
      {R"("seed":"a")", "seed"},
      {R"("seed":1e300)", "seed"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_tokens":"7")", "max_tokens"},
      {R"("max_tokens":99999999999)", "max_tokens"},
      {R"("stop":5)", "stop"},
      {R"("stop":[5])", "stop"},
      {R"("stop":"")", "stop"},
      {R"("stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"])", "stop"},
      {R"("stop_token_ids":[-1])", "stop_token_ids"},
      {R"("stop_token_ids":3)", "stop_token_ids"},
      {R"("ignore_eos":1)", "ignore_eos"},
      {R"("stream":"yes")", "stream"},
      {R"("stream_options":[])", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":3})", "stream_options.include_usage"},
      {R"("model":7)", "model"}};
  for (const auto& [fields, param] : cases) {
    for (const Parsed& parsed : {Completion(fields), Chat(fields)}) {
      ASSERT_TRUE(parsed.error) << fields;
      EXPECT_EQ(parsed.error->param, param) << fields;
      EXPECT_EQ(parsed.error->http_status, 400) << fields;
      EXPECT_EQ(parsed.error->type, "invalid_request_error") << fields;
    }
  }
}

TEST(OpenAiRequest, UnsupportedFieldsAreNamed) {
  const std::vector<std::pair<const char*, const char*>> refused = {
      {R"("n":2)", "n"},
      {R"("best_of":3)", "best_of"},
      {R"("logprobs":true)", "logprobs"},
      {R"("logprobs":0)", "logprobs"},
      {R"("top_logprobs":2)", "top_logprobs"},
      {R"("echo":true)", "echo"},
      {R"("suffix":"end")", "suffix"},
      {R"("tools":[{"type":"function"}])", "tools"},
      {R"("tool_choice":"auto")", "tool_choice"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("logit_bias":{"5":1})", "logit_bias"}};
  for (const auto& [fields, param] : refused) {
    const Parsed parsed = Completion(fields);
    ASSERT_TRUE(parsed.error) << fields;
    EXPECT_EQ(parsed.error->param, param);
    EXPECT_THAT(parsed.error->message, HasSubstr(param));
  }
  const Parsed accepted =
      Chat(R"("n":1,"logprobs":false,"top_logprobs":null,"tools":[],"tool_choice":"none",)"
           R"("response_format":{"type":"text"},"logit_bias":{},"user":"u","metadata":{"a":1},)"
           R"("store":true,"service_tier":"auto","parallel_tool_calls":true,"never_heard_of":[1])");
  EXPECT_FALSE(accepted.error) << accepted.error->message;
}

TEST(OpenAiRequest, SeedIsRandomUnlessGiven) {
  EXPECT_EQ(Completion(R"("seed":18446744073709551615)").request.sampling.seed, ~uint64_t{0});
  EXPECT_NE(Completion("").request.sampling.seed, Completion("").request.sampling.seed);
}

TEST(OpenAiRequest, BodiesThatAreNoJsonObject) {
  std::string deep = R"({"prompt":)" + std::string(100000, '[');
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("1"),
        std::string("{\"prompt\":\"\xff\"}"), std::string("{\"prompt\":\"\\ud800\"}"),
        std::string("{\"prompt\":\"x\",\"temperature\":NaN}"),
        std::string("{\"prompt\":\"x\",\"temperature\":1e999}"),
        std::string(R"({"prompt":"x","prompt":"y"})"), deep}) {
    const Parsed parsed = Parse(false, body);
    ASSERT_TRUE(parsed.error) << body.substr(0, 60);
    EXPECT_EQ(parsed.error->http_status, 400);
  }
}

TEST(OpenAiRequest, TooManyValuesAreRefusedBeforeParsing) {
  std::string body = R"({"prompt":[0)";
  for (int i = 0; i < 200; ++i) {
    body += ",0";
  }
  body += "]}";
  Json json;
  EXPECT_FALSE(ParseBody(body, 1000, &json));
  EXPECT_TRUE(ParseBody(body, 100, &json));
  // Commas and brackets inside strings, after escapes too, are no values.
  EXPECT_FALSE(ParseBody(R"({"prompt":"\",,,,,,[[[[[{{{{{,,,,\\"})", 5, &json));
}

TEST(OpenAiRequest, DefaultsHoldWhereTheRequestIsSilent) {
  SamplingParams defaults;
  defaults.temperature = 0.7;
  defaults.top_k = 20;
  EXPECT_EQ(Parse(false, R"({"prompt":"x"})", defaults).request.sampling.temperature, 0.7);
  EXPECT_EQ(Parse(false, R"({"prompt":"x"})", defaults).request.sampling.top_k, 20);
  EXPECT_EQ(
      Parse(false, R"({"prompt":"x","temperature":0})", defaults).request.sampling.temperature,
      0.0);
}

TEST(OpenAiRequest, Tokenize) {
  Json json;
  TokenizeRequest tokenize;
  ASSERT_FALSE(ParseBody(R"({"prompt":"a","add_special_tokens":false})", 100, &json));
  ASSERT_FALSE(ParseTokenizeRequest(json, &tokenize));
  EXPECT_FALSE(tokenize.add_special_tokens);
  ASSERT_FALSE(ParseBody(R"({"messages":[{"role":"user","content":"x"}]})", 100, &json));
  ASSERT_FALSE(ParseTokenizeRequest(json, &tokenize));
  EXPECT_EQ(ParseTokenizeRequest(Json::object(), &tokenize)->param, "prompt");
  EXPECT_EQ(ParseTokenizeRequest(Json::parse(R"({"prompt":[1]})"), &tokenize)->param, "prompt");
  DetokenizeRequest detokenize;
  ASSERT_FALSE(ParseDetokenizeRequest(Json::parse(R"({"tokens":[1,2]})"), &detokenize));
  EXPECT_THAT(detokenize.tokens, ElementsAre(1, 2));
  EXPECT_EQ(ParseDetokenizeRequest(Json::object(), &detokenize)->param, "tokens");
  EXPECT_EQ(ParseDetokenizeRequest(Json::parse(R"({"tokens":["a"]})"), &detokenize)->param,
            "tokens");
}

}  // namespace
}  // namespace lserve
