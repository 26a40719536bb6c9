// What clients do wrong, or worse: leaving, stalling, half and oversized requests, random bytes.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "server/testing/test_client.h"
#include "server/testing/test_server.h"

namespace lserve {
namespace {

using testing::HasSubstr;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kHello = R"({"messages":[{"role":"user","content":"Hello"}]})";
constexpr const char* kHelloStream =
    R"({"messages":[{"role":"user","content":"Hello"}],"stream":true})";

TestServerOptions Endless() {
  TestServerOptions options;
  options.answer = "word and word and word";
  options.endless = true;
  options.stub.step_seconds = 0.001;
  return options;
}

enum class Leave { kClose, kHalfClose, kReset };

void Go(TestClient* client, Leave how) {
  switch (how) {
    case Leave::kClose: client->Close(); break;
    case Leave::kHalfClose: client->HalfClose(); break;
    case Leave::kReset: client->Reset(); break;
  }
}

TEST(Disconnect, InPrefillFreesThePages) {
  TestServerOptions options = Endless();
  options.stub.gate = std::make_shared<StepGate>();
  options.engine.max_batched_tokens = 128;  // many chunks
  TestServer server(options);
  const std::string prompt = Json(std::vector<int32_t>(4000, 7)).dump();
  int64_t aborted = 0;
  for (const Leave how : {Leave::kClose, Leave::kHalfClose, Leave::kReset}) {
    for (const char* stream : {"true", "false"}) {
      options.stub.gate->Close();
      TestClient client(server.port());
      client.SendRequest("POST", "/v1/completions",
                         fmt::format(R"({{"prompt":{},"stream":{}}})", prompt, stream));
      options.stub.gate->AwaitBlocked();
      Go(&client, how);
      // The engine is held in a step, so the cancellation may come while it is.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const int64_t prefilled = server.engine().stats(0).prompt_tokens;
      options.stub.gate->Open();
      EXPECT_TRUE(server.AwaitIdle());
      EXPECT_EQ(server.engine().stats(0).finished_abort, ++aborted);
      EXPECT_LT(server.engine().stats(0).prompt_tokens - prefilled, 4000);
    }
  }
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);
}

TEST(Disconnect, InDecodeFreesThePages) {
  TestServer server(Endless());
  int64_t aborted = 0;
  for (const Leave how : {Leave::kClose, Leave::kHalfClose, Leave::kReset}) {
    for (const char* body : {kHello, kHelloStream}) {
      TestClient client(server.port());
      client.SendRequest("POST", kChat, body);
      if (body == kHelloStream) {
        client.ReadHead();
        client.ReadChunk();
      } else {
        ASSERT_TRUE(server.AwaitRequests(1));
      }
      Go(&client, how);
      EXPECT_TRUE(server.AwaitIdle());
      EXPECT_EQ(server.engine().stats(0).finished_abort, ++aborted);
    }
  }
}

TEST(Disconnect, InTheQueue) {
  TestServerOptions options = Endless();
  options.stub.limits.max_num_seqs = 1;
  TestServer server(options);
  TestClient running(server.port());
  running.SendRequest("POST", kChat, kHelloStream);
  running.ReadHead();
  running.ReadChunk();
  TestClient waiting(server.port());
  waiting.SendRequest("POST", kChat, kHello);
  ASSERT_TRUE(server.AwaitRequests(2));
  waiting.Close();
  ASSERT_TRUE(server.AwaitRequests(1));
  running.Close();
  EXPECT_TRUE(server.AwaitIdle());
}

TEST(Disconnect, StormOfClientsThatLeaveThenAnAnswer) {
  TestServer server(Endless());
  for (int i = 0; i < 60; ++i) {
    TestClient client(server.port());
    client.SendRequest("POST", kChat, i % 2 == 0 ? kHello : kHelloStream);
    if (i % 3 == 0) {
      client.Reset();
    }
  }
  EXPECT_TRUE(server.AwaitIdle());
  const TestReply reply =
      Fetch(server.port(), "POST", kChat,
            R"({"messages":[{"role":"user","content":"Hello"}],"max_tokens":3})");
  EXPECT_EQ(reply.status, 200);
}

TEST(Disconnect, InTheMiddleOfABody) {
  TestServer server;
  for (int i = 0; i < 20; ++i) {
    TestClient client(server.port());
    client.Send("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{\"mess");
    if (i % 2 == 0) {
      client.Reset();
    }
  }
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, kHello).status, 200);
}

TEST(SlowReader, IsCancelledWhenItsBufferIsFull) {
  TestServerOptions options = Endless();
  options.stub.step_seconds = 0.0001;
  options.stub.limits.max_model_len = 1 << 20;
  options.stub.limits.kv_pages = 1 << 15;
  options.server.max_output_bytes = 1 << 19;  // more than the short answer takes
  options.server.stall_seconds = 300;         // so it is not this that ends it
  TestServer server(options);
  TestClient slow(server.port(), 4096);  // and never reads
  slow.SendRequest("POST", kChat, kHelloStream);
  ASSERT_TRUE(server.AwaitRequests(1));
  // Another client gets all of its answer meanwhile.
  const TestReply fast =
      Fetch(server.port(), "POST", kChat,
            R"({"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":1000})");
  EXPECT_THAT(fast.body, HasSubstr("[DONE]"));
  EXPECT_TRUE(server.AwaitIdle());
  EXPECT_EQ(server.engine().stats(0).finished_abort, 1);
  EXPECT_EQ(server.engine().stats(0).finished_length, 1);
}

TEST(SlowReader, IsCancelledWhenAWriteStalls) {
  TestServerOptions options = Endless();
  options.stub.step_seconds = 0.0001;
  options.stub.limits.max_model_len = 1 << 20;
  options.stub.limits.kv_pages = 1 << 15;
  options.server.max_output_bytes = int64_t{1} << 40;
  options.server.stall_seconds = 0.2;
  TestServer server(options);
  TestClient slow(server.port(), 4096);
  slow.SendRequest("POST", kChat, kHelloStream);
  ASSERT_TRUE(server.AwaitRequests(1));
  EXPECT_TRUE(server.AwaitIdle());
  EXPECT_EQ(server.engine().stats(0).finished_abort, 1);
}

TEST(Limits, BodyTooLarge) {
  TestServerOptions options;
  options.server.max_body_bytes = 1000;
  TestServer server(options);
  const TestReply declared = Fetch(server.port(), "POST", kChat, std::string(5000000, 'x'));
  EXPECT_EQ(declared.status, 413);
  EXPECT_EQ(declared.error("type"), "invalid_request_error");
  EXPECT_THAT(declared.error("message"), HasSubstr("1000 bytes"));
  EXPECT_EQ(declared.headers.at("connection"), "close");
  TestClient chunked(server.port());
  chunked.Send("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) {
    chunked.Send("64\r\n" + std::string(100, 'x') + "\r\n");
  }
  EXPECT_EQ(chunked.ReadReply().status, 413);
  TestClient vast(server.port());
  vast.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999999\r\n"
      "Expect: 100-continue\r\n\r\n");
  EXPECT_EQ(vast.ReadReply().status, 413);
}

TEST(Limits, HeaderTooLarge) {
  TestServer server;
  TestClient client(server.port());
  client.Send("GET /health HTTP/1.1\r\nX-Long: " + std::string(70000, 'a') + "\r\n\r\n");
  const TestReply reply = client.ReadReply();
  EXPECT_EQ(reply.status, 431);
  EXPECT_EQ(reply.error("type"), "invalid_request_error");
  TestClient endless(server.port());
  endless.Send(std::string(200000, 'a'));
  EXPECT_NE(endless.ReadReply().status, 200);
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);
}

TEST(Limits, Connections) {
  TestServerOptions options;
  options.server.max_connections = 3;
  TestServer server(options);
  std::vector<std::unique_ptr<TestClient>> idle;
  for (int i = 0; i < 3; ++i) {
    idle.push_back(std::make_unique<TestClient>(server.port()));
    idle.back()->SendRequest("GET", "/health");
    EXPECT_EQ(idle.back()->ReadReply().status, 200);
  }
  TestClient more(server.port());
  EXPECT_EQ(more.ReadReply().status, 503);
  idle.clear();
  int status = 0;
  for (int i = 0; i < 1000 && status != 200; ++i) {
    status = Fetch(server.port(), "GET", "/health").status;
  }
  EXPECT_EQ(status, 200);
}

TEST(Limits, SlowHeadersAndIdleConnectionsAreClosed) {
  TestServerOptions options;
  options.server.header_seconds = 0.05;
  options.server.idle_seconds = 0.05;
  TestServer server(options);
  TestClient slow(server.port());
  slow.Send("GET /health HTT");
  EXPECT_TRUE(slow.AtEnd());
  TestClient idle(server.port());
  EXPECT_TRUE(idle.AtEnd());
}

TEST(Limits, DeepJson) {
  TestServer server;
  for (const char open : {'[', '{'}) {
    std::string deep = R"({"messages":)";
    for (int i = 0; i < 60000; ++i) {
      deep += open == '[' ? "[" : R"({"a":)";
    }
    const TestReply reply = Fetch(server.port(), "POST", kChat, deep);
    EXPECT_EQ(reply.status, 400);
    EXPECT_LT(reply.body.size(), 2000u);
  }
}

TEST(Connection, KeepAliveAndPipelining) {
  TestServerOptions options;
  options.answer = "one";
  TestServer server(options);
  TestClient client(server.port());
  for (int i = 0; i < 5; ++i) {
    client.SendRequest("POST", kChat, i % 2 == 0 ? kHello : kHelloStream);
    EXPECT_EQ(client.ReadReply().status, 200);
  }
  // Sent at once, while the first is still being answered; and a bad one among them.
  client.SendRequest("POST", kChat, kHello);
  client.SendRequest("GET", "/health");
  client.SendRequest("POST", kChat, "{}");
  client.SendRequest("POST", kChat, kHelloStream);
  EXPECT_EQ(client.ReadReply().json()["object"], "chat.completion");
  EXPECT_EQ(client.ReadReply().json()["status"], "ok");
  EXPECT_EQ(client.ReadReply().status, 400);
  EXPECT_THAT(client.ReadReply().body, HasSubstr("[DONE]"));
  client.SendRequest("GET", "/health", "", "Connection: close\r\n");
  EXPECT_EQ(client.ReadReply().headers.at("connection"), "close");
  EXPECT_TRUE(client.AtEnd());
}

TEST(Connection, ExpectContinue) {
  TestServerOptions options;
  options.answer = "one";
  TestServer server(options);
  TestClient client(server.port());
  const std::string body = kHello;
  client.Send(fmt::format("POST {} HTTP/1.1\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
                          kChat, body.size()));
  std::thread sender([&] { client.Send(body); });
  sender.join();
  EXPECT_EQ(client.ReadReply().status, 200);
}

TEST(Connection, MalformedRequests) {
  TestServer server;
  for (const char* bytes :
       {"\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: "
        "chunked\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x01\xfc\x03\x03 a TLS hello"}) {
    TestClient client(server.port());
    client.Send(bytes);
    client.HalfClose();
    const int status = client.ReadReply().status;
    EXPECT_TRUE(status == 0 || status == 400) << bytes << " gave " << status;
  }
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);
}

TEST(Fuzz, RandomBytesNeverBreakTheServer) {
  TestServer server;
  for (uint64_t i = 0; i < 100; ++i) {
    std::string bytes;
    for (uint64_t j = 0; j < 5 + i * 7; ++j) {
      bytes.push_back(static_cast<char>(Philox(99, i * 1000 + j)[0]));
    }
    TestClient client(server.port());
    client.Send(bytes);
  }
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);
}

// One to three random edits of a valid body.
std::string Mutated(std::string body, uint64_t seed) {
  static const std::vector<std::string> kPieces = {
      "null", "-1",  "1e999", "\"\"", "[]", "{}", "true", "\\ud800", "\xff", "18446744073709551615",
      "0.5",  "NaN", "[[",    "}",    ",",  "\"", ":",    "\\u0000", "é",    "-0.0"};
  uint64_t counter = 0;
  const auto random = [&](uint64_t bound) {
    return bound == 0 ? 0 : Philox(seed, counter++)[0] % bound;
  };
  const uint64_t edits = 1 + random(3);
  for (uint64_t i = 0; i < edits; ++i) {
    const size_t at = random(body.size());
    switch (random(4)) {
      case 0: body.erase(at, 1 + random(6)); break;
      case 1: body.insert(at, kPieces[random(kPieces.size())]); break;
      case 2: body[at] = static_cast<char>(random(256)); break;
      default:  // a value gives way to another
        if (const size_t colon = body.find(':', at); colon != std::string::npos) {
          const size_t end = body.find_first_of(",}", colon);
          if (end != std::string::npos) {
            body.replace(colon + 1, end - colon - 1, kPieces[random(kPieces.size())]);
          }
        }
    }
  }
  return body;
}

TEST(Fuzz, MutatedBodiesAreAnsweredOrRefused) {
  TestServerOptions options;
  options.answer = "one two";
  TestServer server(options);
  const std::string chat =
      R"({"model":"needle-7m","messages":[{"role":"system","content":"Be brief."},)"
      R"({"role":"user","content":[{"type":"text","text":"Hello 👋"}]}],"max_tokens":3,)"
      R"("temperature":0.7,"top_p":0.9,"top_k":5,"min_p":0.1,"seed":1,"stop":["a","b"],)"
      R"("presence_penalty":0.1,"stream":false,"stream_options":{"include_usage":true}})";
  const std::string completion =
      R"({"prompt":[1,2,3,4],"max_tokens":3,"repetition_penalty":1.1,"stop_token_ids":[9],)"
      R"("ignore_eos":false,"frequency_penalty":1,"n":1,"echo":false,"logit_bias":{}})";
  const std::string tokenize = R"({"prompt":"Hello","add_special_tokens":true})";
  const std::string detokenize = R"({"tokens":[1,2,3],"model":"needle-7m"})";
  const std::vector<std::pair<const char*, std::string>> routes = {{"/v1/chat/completions", chat},
                                                                   {"/v1/completions", completion},
                                                                   {"/tokenize", tokenize},
                                                                   {"/detokenize", detokenize}};
  TestClient client(server.port());
  int answered = 0;
  int refused = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const auto& [route, body] = routes[i % routes.size()];
    const std::string mutated = Mutated(body, i);
    ASSERT_TRUE(client.SendRequest("POST", route, mutated));
    const TestReply reply = client.ReadReply();
    ASSERT_TRUE(reply.status == 200 || reply.status == 400 || reply.status == 404)
        << reply.status << " for " << mutated << "\n"
        << reply.body;
    answered += reply.status == 200;
    refused += reply.status != 200;
    if (reply.status != 200) {
      ASSERT_FALSE(reply.error("message").empty()) << reply.body;
    }
  }
  EXPECT_GT(answered, 200);
  EXPECT_GT(refused, 1000);
  EXPECT_TRUE(server.AwaitIdle());
}

}  // namespace
}  // namespace lserve
