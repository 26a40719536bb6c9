#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "server/testing/test_client.h"
#include "server/testing/test_server.h"

namespace lserve {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kCompletions = "/v1/completions";
constexpr const char* kChat = "/v1/chat/completions";

std::string ChatBody(std::string_view fields) {
  return R"({"messages":[{"role":"user","content":"Hello"}],"stream":true)" + std::string(fields) +
         "}";
}

TestServerOptions Answering(std::string answer) {
  TestServerOptions options;
  options.answer = std::move(answer);
  return options;
}

// Every event is "data: " + one JSON object or "[DONE]", or a comment, and ends with one blank
// line.
void ExpectGrammar(std::string_view stream) {
  ASSERT_FALSE(stream.empty());
  bool done = false;
  while (!stream.empty()) {
    EXPECT_FALSE(done) << "something follows [DONE]: " << stream;
    const size_t end = stream.find("\n\n");
    ASSERT_NE(end, std::string_view::npos) << stream;
    const std::string_view event = stream.substr(0, end);
    EXPECT_EQ(event.find('\n'), std::string_view::npos) << event;
    EXPECT_EQ(event.find('\r'), std::string_view::npos) << event;
    if (!event.starts_with(": ")) {
      ASSERT_TRUE(event.starts_with("data: ")) << event;
      done = event == "data: [DONE]";
      if (!done) {
        EXPECT_TRUE(Json::parse(event.substr(6), nullptr, false).is_object()) << event;
      }
    }
    stream.remove_prefix(end + 2);
  }
  EXPECT_TRUE(done);
}

std::string ContentOf(const std::vector<Json>& objects) {
  std::string text;
  for (const Json& object : objects) {
    for (const Json& choice : object["choices"]) {
      text += choice.contains("delta") ? choice["delta"].value("content", "")
                                       : choice["text"].get<std::string>();
    }
  }
  return text;
}

TEST(Stream, Chat) {
  TestServer server(Answering("The code is 4711 👋🏽 好."));
  const TestReply reply = Fetch(server.port(), "POST", kChat, ChatBody(""));
  ASSERT_EQ(reply.status, 200);
  EXPECT_THAT(reply.headers.at("content-type"), HasSubstr("text/event-stream"));
  EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  EXPECT_EQ(reply.headers.at("transfer-encoding"), "chunked");
  ExpectGrammar(reply.body);
  const std::vector<Json> objects = StreamObjects(reply.body);
  ASSERT_GE(objects.size(), 3u);
  EXPECT_EQ(ContentOf(objects), "The code is 4711 👋🏽 好.");
  for (size_t i = 0; i < objects.size(); ++i) {
    const Json& chunk = objects[i];
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["id"], objects[0]["id"]);
    EXPECT_EQ(chunk["created"], objects[0]["created"]);
    EXPECT_EQ(chunk["model"], "needle-7m");
    EXPECT_FALSE(chunk.contains("usage"));
    ASSERT_EQ(chunk["choices"].size(), 1u);
    const Json& choice = chunk["choices"][0];
    EXPECT_EQ(choice["delta"].contains("role"), i == 0);
    const bool last = i + 1 == objects.size();
    EXPECT_EQ(choice["finish_reason"].is_null(), !last);
    EXPECT_EQ(choice["delta"].empty(), last);
    EXPECT_EQ(chunk.contains("timings"), last);
    EXPECT_EQ(chunk.contains("kv_bytes"), last);
  }
  EXPECT_EQ(objects.back()["choices"][0]["finish_reason"], "stop");
}

TEST(Stream, BytesOfAShortAnswer) {
  TestServer server(Answering("x"));
  TestReply reply =
      Fetch(server.port(), "POST", kCompletions, R"({"prompt":"a","stream":true,"max_tokens":1})");
  std::string body = reply.body;
  const Json first = StreamObjects(body).at(0);
  const std::string head = R"(data: {"id":)" + first["id"].dump() +
                           R"(,"object":"text_completion","created":)" + first["created"].dump() +
                           R"(,"model":"needle-7m","choices":[{"index":0,"text":)";
  const std::string text = head + R"("x","logprobs":null,"finish_reason":null}]})" + "\n\n";
  ASSERT_EQ(body.substr(0, text.size()), text);
  body.erase(0, text.size());
  const std::string finish =
      head + R"("","logprobs":null,"finish_reason":"length"}],"timings":{"cache_n":0,"prompt_n":)";
  ASSERT_EQ(body.substr(0, finish.size()), finish);
  EXPECT_TRUE(body.ends_with("}\n\ndata: [DONE]\n\n")) << body;
}

TEST(Stream, UsageOnlyIfAsked) {
  TestServer server(Answering("one two"));
  const TestReply reply =
      Fetch(server.port(), "POST", kChat, ChatBody(R"(,"stream_options":{"include_usage":true})"));
  ExpectGrammar(reply.body);
  const std::vector<Json> objects = StreamObjects(reply.body);
  for (size_t i = 0; i + 1 < objects.size(); ++i) {
    EXPECT_TRUE(objects[i].contains("usage") && objects[i]["usage"].is_null());
    EXPECT_EQ(objects[i]["choices"].size(), 1u);
  }
  EXPECT_TRUE(objects.back()["choices"].empty());
  EXPECT_GT(objects.back()["usage"]["completion_tokens"].get<int64_t>(), 1);
  EXPECT_EQ(objects.back()["id"], objects[0]["id"]);
  const TestReply no =
      Fetch(server.port(), "POST", kChat, ChatBody(R"(,"stream_options":{"include_usage":false})"));
  EXPECT_THAT(no.body, Not(HasSubstr("usage")));
}

TEST(Stream, AnswerThatStopsAtOnceStillNamesTheRole) {
  TestServerOptions options;
  options.stub.script = [](std::span<const int32_t>, int64_t) { return 4; };  // the end token
  TestServer server(options);
  const std::vector<Json> objects =
      StreamObjects(Fetch(server.port(), "POST", kChat, ChatBody("")).body);
  ASSERT_EQ(objects.size(), 2u);
  EXPECT_EQ(objects[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(objects[1]["choices"][0]["finish_reason"], "stop");
}

TEST(Stream, StopStringWithEmojiOverChunkBorders) {
  // The emoji takes several byte tokens, so the stop string crosses many events.
  TestServer server(Answering("before 👋🏽END after"));
  for (const char* stop : {R"("👋🏽END")", R"(["never","🏽EN"])", R"(["ore 👋"])"}) {
    const TestReply reply =
        Fetch(server.port(), "POST", kChat, ChatBody(std::string(R"(,"stop":)") + stop));
    ExpectGrammar(reply.body);
    const std::vector<Json> objects = StreamObjects(reply.body);
    const std::string text = ContentOf(objects);
    const std::string whole = "before 👋🏽END after";
    const Json stops = Json::parse(stop);
    const std::string wanted =
        stops.is_string() ? stops.get<std::string>() : stops.back().get<std::string>();
    EXPECT_EQ(text, whole.substr(0, whole.find(wanted))) << stop;
    EXPECT_EQ(objects.back()["choices"][0]["finish_reason"], "stop");
  }
}

TEST(Stream, NothingButCommentsBeforeTheFirstToken) {
  TestServerOptions options = Answering("x");
  options.stub.gate = std::make_shared<StepGate>();
  options.server.keep_alive_seconds = 0.01;
  TestServer server(options);
  options.stub.gate->Close();
  TestClient client(server.port());
  client.SendRequest("POST", kChat, ChatBody(""));
  EXPECT_EQ(client.ReadHead().status, 200);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(client.ReadChunk(), ": keep-alive\n\n");
  }
  options.stub.gate->Open();
  std::string stream;
  while (const auto chunk = client.ReadChunk()) {
    stream += *chunk;
  }
  ExpectGrammar(stream);
  EXPECT_THAT(stream, HasSubstr("assistant"));
}

TEST(Stream, FailureInTheMiddleIsAnErrorObject) {
  TestServerOptions options = Answering("word word word word word word word word");
  options.endless = true;
  options.stub.fail_at_step = 5;
  TestServer server(options);
  TestClient client(server.port());
  client.SendRequest("POST", kChat, ChatBody(""));
  const TestReply reply = client.ReadReply();
  EXPECT_EQ(reply.status, 200);
  const std::vector<Json> objects = StreamObjects(reply.body);
  ASSERT_GE(objects.size(), 2u);
  EXPECT_EQ(objects.back()["error"]["code"], "failed");
  EXPECT_FALSE(objects.back().contains("choices"));
  EXPECT_THAT(reply.body, Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(client.AtEnd());
}

TEST(Stream, ErrorsBeforeTheStreamAreOrdinaryReplies) {
  TestServer server;
  const TestReply reply = Fetch(server.port(), "POST", kChat, ChatBody(R"(,"n":2)"));
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "n");
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
}

TEST(Stream, Http10ClientsGetAnUnchunkedStream) {
  TestServer server(Answering("one two"));
  const std::string body = ChatBody("");
  TestClient client(server.port());
  client.Send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  const TestReply reply = client.ReadReply();
  EXPECT_FALSE(reply.headers.contains("transfer-encoding"));
  ExpectGrammar(reply.body);
}

TEST(Stream, AHundredAtOnce) {
  TestServerOptions options = Answering("one two three four five");
  options.server.io_threads = 2;
  TestServer server(options);
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 100; ++i) {
    threads.emplace_back([&server, &right, i] {
      if (i % 2 == 0) {
        const TestReply reply = Fetch(server.port(), "POST", kChat, ChatBody(""));
        right += ContentOf(StreamObjects(reply.body)) == "one two three four five";
      } else {
        const TestReply reply =
            Fetch(server.port(), "POST", kCompletions, R"({"prompt":"Hello","max_tokens":100})");
        right += reply.json()["choices"][0]["text"] == "one two three four five";
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(right, 100);
  EXPECT_TRUE(server.AwaitIdle());
}

}  // namespace
}  // namespace lserve
