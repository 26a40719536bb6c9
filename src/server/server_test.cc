#include "server/server.h"

#include <fmt/format.h>
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
using testing::StartsWith;

constexpr const char* kCompletions = "/v1/completions";
constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kHello = R"({"messages":[{"role":"user","content":"Hello"}]})";

TestServerOptions Answering(std::string answer) {
  TestServerOptions options;
  options.answer = std::move(answer);
  return options;
}

TEST(Server, HealthVersionAndPage) {
  TestServer server;
  const TestReply health = Fetch(server.port(), "GET", "/health");
  EXPECT_EQ(health.status, 200);
  EXPECT_EQ(health.body, R"({"status":"ok"})");
  EXPECT_EQ(health.headers.at("content-type"), "application/json");
  EXPECT_THAT(health.headers.at("x-request-id"), StartsWith("req-"));
  EXPECT_TRUE(Fetch(server.port(), "GET", "/version").json()["version"].is_string());
  const TestReply page = Fetch(server.port(), "GET", "/");
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_THAT(page.body, HasSubstr("</html>"));
  EXPECT_THAT(page.body, Not(HasSubstr("https://")));  // nothing from outside
  const TestReply head = Fetch(server.port(), "HEAD", "/health");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), "15");
}

TEST(Server, Models) {
  TestServer server;
  const Json list = Fetch(server.port(), "GET", "/v1/models").json();
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0]["id"], "needle-7m");
  EXPECT_EQ(list["data"][0]["owned_by"], "lserve");
  EXPECT_EQ(list["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(list["data"][1]["id"], "needle-7m:dense");
  EXPECT_EQ(Fetch(server.port(), "GET", "/v1/models/needle-7m:dense").json()["object"], "model");
  EXPECT_EQ(Fetch(server.port(), "GET", "/v1/models/needle-7m%3Adense?a=b").json()["id"],
            "needle-7m:dense");
  const TestReply unknown = Fetch(server.port(), "GET", "/v1/models/gpt-4");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.error("code"), "model_not_found");
}

TEST(Server, ChatCompletion) {
  TestServer server(Answering("The code is 4711."));
  const TestReply reply = Fetch(server.port(), "POST", kChat, kHello, "x-request-id: my-id.1\r\n");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.headers.at("x-request-id"), "my-id.1");
  const Json body = reply.json();
  EXPECT_THAT(body["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_GT(body["created"].get<int64_t>(), 1600000000);
  EXPECT_EQ(body["model"], "needle-7m");
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "The code is 4711.");
  EXPECT_EQ(choice["finish_reason"], "stop");
  // The end token counts as generated, as in the engine.
  const auto generated =
      static_cast<int64_t>(server.tokenizer().Encode("The code is 4711.").size()) + 1;
  const Json& usage = body["usage"];
  EXPECT_EQ(usage["completion_tokens"], generated);
  EXPECT_EQ(usage["total_tokens"], usage["prompt_tokens"].get<int64_t>() + generated);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 0);
  for (const char* field :
       {"cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second",
        "predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"}) {
    EXPECT_TRUE(body["timings"][field].is_number()) << field;
  }
  EXPECT_GT(body["kv_bytes"].get<int64_t>(), 0);
  EXPECT_TRUE(server.AwaitIdle());
}

TEST(Server, ChatPromptIsTheTemplateWithOneBos) {
  TestServer server(Answering("x"));
  const std::string text =
      "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello"
      "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
  const auto expected = server.tokenizer().EncodeRuns(std::vector<TextRun>{{text, true}});
  EXPECT_EQ(Fetch(server.port(), "POST", "/tokenize", kHello).json()["tokens"], Json(expected));
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, kHello).json()["usage"]["prompt_tokens"],
            expected.size());
}

TEST(Server, CompletionOfTextAndOfTokenIds) {
  TestServer server(Answering(" and so on"));
  const Json body = Fetch(server.port(), "POST", kCompletions,
                          R"({"model":"needle-7m:dense","prompt":"Once","max_tokens":2})")
                        .json();
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_THAT(body["id"].get<std::string>(), StartsWith("cmpl-"));
  EXPECT_EQ(body["model"], "needle-7m:dense");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 2);
  EXPECT_EQ(body["usage"]["prompt_tokens"], server.tokenizer().EncodeWithBos("Once").size());
  const Json ids =
      Fetch(server.port(), "POST", kCompletions, R"({"prompt":[5,6,7],"max_tokens":20})").json();
  EXPECT_EQ(ids["choices"][0]["text"], " and so on");
  EXPECT_EQ(ids["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(server.engine().stats(1).finished_length, 1);
}

TEST(Server, TokenizeAndDetokenize) {
  TestServer server;
  const Json tokens =
      Fetch(server.port(), "POST", "/tokenize", R"({"prompt":"Hello 🌍","return_token_strs":true})")
          .json();
  const std::vector<int32_t> expected = server.tokenizer().EncodeWithBos("Hello 🌍");
  EXPECT_EQ(tokens["tokens"], Json(expected));
  EXPECT_EQ(tokens["count"], expected.size());
  EXPECT_EQ(tokens["max_model_len"], 4096);
  EXPECT_EQ(tokens["token_strs"].size(), expected.size());
  const std::vector<int32_t> plain = server.tokenizer().Encode("Hello 🌍");
  EXPECT_EQ(
      Fetch(server.port(), "POST", "/detokenize", Json{{"tokens", plain}}.dump()).json()["prompt"],
      "Hello 🌍");
  EXPECT_EQ(Fetch(server.port(), "POST", "/detokenize", R"({"tokens":[999999]})").error("param"),
            "tokens");
  EXPECT_EQ(Fetch(server.port(), "POST", "/tokenize", R"({"prompt":7})").status, 400);
}

TEST(Server, RoutesAndMethods) {
  TestServer server;
  const TestReply missing = Fetch(server.port(), "GET", "/v2/models");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(missing.error("type"), "invalid_request_error");
  EXPECT_TRUE(missing.json()["error"]["param"].is_null());
  const TestReply wrong = Fetch(server.port(), "GET", kChat);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_EQ(Fetch(server.port(), "DELETE", "/v1/models").status, 405);
  EXPECT_EQ(Fetch(server.port(), "BREW", "/health").status, 405);
  EXPECT_EQ(Fetch(server.port(), "OPTIONS", kChat).status, 405);
}

TEST(Server, BadRequestsNameTheField) {
  TestServer server;
  const TestReply reply = Fetch(server.port(), "POST", kChat,
                                R"({"messages":[{"role":"user","content":"x"}],"temperature":3})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("type"), "invalid_request_error");
  EXPECT_EQ(reply.error("param"), "temperature");
  EXPECT_TRUE(reply.json()["error"]["code"].is_null());
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, "{").status, 400);
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, "").status, 400);
  EXPECT_EQ(Fetch(server.port(), "POST", kCompletions, "{\"prompt\":\"\xc3\"}").status, 400);
  EXPECT_EQ(Fetch(server.port(), "POST", kCompletions, R"({"prompt":[4096]})").error("param"),
            "prompt");
  EXPECT_EQ(Fetch(server.port(), "POST", kCompletions, R"({"prompt":"x","stop_token_ids":[4096]})")
                .error("param"),
            "stop_token_ids");
  const TestReply model =
      Fetch(server.port(), "POST", kCompletions, R"({"prompt":"x","model":"gpt-4"})");
  EXPECT_EQ(model.status, 404);
  EXPECT_EQ(model.error("code"), "model_not_found");
  EXPECT_EQ(model.error("message"), "The model `gpt-4` does not exist.");
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, kHello).status, 200);  // nothing broke
}

TEST(Server, ContextLengthExceeded) {
  TestServer server;
  const std::string ids = Json(std::vector<int32_t>(4096, 7)).dump();
  const TestReply full = Fetch(server.port(), "POST", kCompletions, R"({"prompt":)" + ids + "}");
  EXPECT_EQ(full.status, 400);
  EXPECT_EQ(full.error("code"), "context_length_exceeded");
  EXPECT_EQ(full.error("param"), "prompt");
  EXPECT_THAT(full.error("message"),
              HasSubstr("This model's maximum context length is 4096 tokens. However, "));
  EXPECT_THAT(full.error("message"), HasSubstr("Please reduce the length of the prompt"));
  EXPECT_EQ(full.json()["error"]["n_ctx"], 4096);
  EXPECT_EQ(full.json()["error"]["n_prompt_tokens"], 4096);
  const TestReply asked =
      Fetch(server.port(), "POST", kChat,
            R"({"messages":[{"role":"user","content":"x"}],"max_tokens":4096})");
  EXPECT_EQ(asked.error("code"), "context_length_exceeded");
  EXPECT_EQ(asked.error("param"), "messages");
  EXPECT_THAT(asked.error("message"), HasSubstr("4096 in the completion"));
  // Refused by its bytes alone, so before it is tokenised.
  const std::string huge(2 << 20, 'x');
  const TestReply bytes = Fetch(server.port(), "POST", kChat,
                                R"({"messages":[{"role":"user","content":")" + huge + R"("}]})");
  EXPECT_EQ(bytes.error("code"), "context_length_exceeded");
  EXPECT_THAT(bytes.error("message"), HasSubstr("at least"));
  // A prompt that leaves less than the default of 16 tokens is served.
  const std::string nearly = Json(std::vector<int32_t>(4090, 7)).dump();
  const Json body =
      Fetch(server.port(), "POST", kCompletions, R"({"prompt":)" + nearly + "}").json();
  EXPECT_EQ(body["usage"]["completion_tokens"], 6);
}

TEST(Server, WhatTheCacheNeverHoldsIsRefused) {
  TestServerOptions options;
  options.stub.limits.kv_pages = 8;  // 512 tokens
  TestServer server(options);
  const std::string ids = Json(std::vector<int32_t>(2000, 7)).dump();
  const TestReply reply = Fetch(server.port(), "POST", kCompletions, R"({"prompt":)" + ids + "}");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("code"), "kv_cache_too_small");
  EXPECT_THAT(reply.error("message"), HasSubstr("KV cache"));
}

TEST(Server, FullQueueIs429) {
  TestServerOptions options;
  options.stub.gate = std::make_shared<StepGate>();
  options.stub.limits.max_num_seqs = 1;
  options.engine.max_waiting = 2;
  TestServer server(options);
  options.stub.gate->Close();
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int64_t i = 0; i < 3; ++i) {  // one runs, two wait
    clients.push_back(std::make_unique<TestClient>(server.port()));
    clients.back()->SendRequest("POST", kChat, kHello);
    if (i == 0) {
      options.stub.gate->AwaitBlocked();
    }
  }
  // The two waiting ones may come in after the next, which then waits in their place.
  std::vector<std::thread> more;
  std::atomic<int> refused = 0;
  for (int i = 0; i < 4; ++i) {
    more.emplace_back([&] {
      const TestReply reply = Fetch(server.port(), "POST", kChat, kHello);
      if (reply.status == 429) {
        EXPECT_EQ(reply.error("code"), "queue_full");
        EXPECT_TRUE(reply.headers.contains("retry-after"));
        ++refused;
      }
    });
  }
  for (int i = 0; i < 5000 && refused < 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GE(refused, 2);
  options.stub.gate->Open();
  for (std::thread& thread : more) {
    thread.join();
  }
  for (const auto& client : clients) {
    client->ReadReply();
  }
  EXPECT_TRUE(server.AwaitIdle());
}

TEST(Server, LoadingThenReadyThenDraining) {
  TestServerOptions options = Answering("word word word word word word");
  options.attach = false;
  options.endless = true;
  options.stub.step_seconds = 0.002;
  options.server.drain_seconds = 0.05;
  TestServer server(options);
  const TestReply loading = Fetch(server.port(), "GET", "/health");
  EXPECT_EQ(loading.status, 503);
  EXPECT_EQ(loading.body, R"({"status":"loading"})");
  const TestReply early = Fetch(server.port(), "POST", kChat, kHello);
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(early.error("code"), "loading");
  EXPECT_TRUE(early.headers.contains("retry-after"));
  EXPECT_EQ(Fetch(server.port(), "GET", "/v1/models").status, 503);
  EXPECT_EQ(Fetch(server.port(), "GET", "/metrics").status, 200);
  server.Attach();
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);

  TestClient streaming(server.port());
  streaming.SendRequest("POST", kChat,
                        R"({"messages":[{"role":"user","content":"x"}],"stream":true})");
  EXPECT_EQ(streaming.ReadHead().status, 200);
  TestClient whole(server.port());
  whole.SendRequest("POST", kChat, kHello);
  ASSERT_TRUE(server.AwaitRequests(2));
  const uint16_t port = server.port();
  std::thread stopping([&] { server.server().Stop(); });
  const TestReply refused = whole.ReadReply();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.error("code"), "shutting_down");
  EXPECT_EQ(refused.headers.at("connection"), "close");
  std::string stream;
  while (const auto chunk = streaming.ReadChunk()) {
    stream += *chunk;
  }
  EXPECT_THAT(stream, HasSubstr(R"(data: {"error":{"message":"The server is shutting down.")"));
  EXPECT_THAT(stream, Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(streaming.AtEnd());
  stopping.join();
  EXPECT_EQ(server.port(), port);
  EXPECT_TRUE(server.AwaitIdle());
}

TEST(Server, HealthAndNewRequestsDuringDrain) {
  TestServerOptions options;
  options.stub.gate = std::make_shared<StepGate>();
  TestServer server(options);
  options.stub.gate->Close();
  TestClient running(server.port());
  running.SendRequest("POST", kChat, kHello);
  options.stub.gate->AwaitBlocked();
  std::thread stopping([&] { server.server().Stop(); });
  TestReply health;
  for (int i = 0; i < 2000 && health.status != 503; ++i) {
    health = Fetch(server.port(), "GET", "/health");
  }
  EXPECT_EQ(health.body, R"({"status":"draining"})");
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, kHello).error("code"), "shutting_down");
  options.stub.gate->Open();
  EXPECT_EQ(running.ReadReply().status, 200);  // what ran before may end
  stopping.join();
}

TEST(Server, FailedEngine) {
  TestServerOptions options;
  options.stub.fail_at_step = 3;
  TestServer server(options);
  const TestReply broken = Fetch(server.port(), "POST", kChat, kHello);
  const TestReply later = Fetch(server.port(), "POST", kChat, kHello);
  for (const TestReply& reply : {broken, later}) {
    EXPECT_EQ(reply.status, 503);
    EXPECT_EQ(reply.error("type"), "service_unavailable_error");
    EXPECT_EQ(reply.error("code"), "failed");
    EXPECT_THAT(reply.error("message"), HasSubstr("restarted: the stub fails"));
  }
  const TestReply health = Fetch(server.port(), "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.json()["status"], "error");
  EXPECT_THAT(health.json()["error"].get<std::string>(), HasSubstr("the stub fails"));
}

TEST(Server, ApiKeys) {
  TestServerOptions options;
  options.server.api_keys = {"first", "second"};
  TestServer server(options);
  EXPECT_EQ(Fetch(server.port(), "GET", "/health").status, 200);
  EXPECT_EQ(Fetch(server.port(), "GET", "/").status, 200);
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nowhere"}) {
    const TestReply reply = Fetch(server.port(), "GET", path);
    EXPECT_EQ(reply.status, 401) << path;
    EXPECT_EQ(reply.error("code"), "invalid_api_key");
    EXPECT_EQ(reply.headers.at("www-authenticate"), "Bearer");
  }
  for (const char* wrong : {"Bearer firs", "Bearer first2", "Bearer ", "Basic first", "first"}) {
    EXPECT_EQ(
        Fetch(server.port(), "GET", "/v1/models", "", fmt::format("Authorization: {}\r\n", wrong))
            .status,
        401)
        << wrong;
  }
  for (const char* right : {"Bearer first", "bearer second"}) {
    EXPECT_EQ(
        Fetch(server.port(), "GET", "/v1/models", "", fmt::format("Authorization: {}\r\n", right))
            .status,
        200)
        << right;
  }
  EXPECT_EQ(Fetch(server.port(), "POST", kChat, kHello).status, 401);
}

TEST(Server, Cors) {
  TestServer closed;
  EXPECT_FALSE(Fetch(closed.port(), "GET", "/health", "", "Origin: http://a.test\r\n")
                   .headers.contains("access-control-allow-origin"));
  TestServerOptions options;
  options.server.allowed_origins = {"http://a.test"};
  TestServer server(options);
  TestClient client(server.port());
  client.SendRequest("OPTIONS", kChat, "", "Origin: http://a.test\r\n");
  const TestReply preflight = client.ReadReply(true);
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "http://a.test");
  EXPECT_THAT(preflight.headers.at("access-control-allow-headers"), HasSubstr("Authorization"));
  EXPECT_FALSE(Fetch(server.port(), "GET", "/health", "", "Origin: http://b.test\r\n")
                   .headers.contains("access-control-allow-origin"));
}

TEST(Server, Metrics) {
  TestServer server(Answering("one two three"));
  Fetch(server.port(), "POST", kChat, kHello);
  ASSERT_TRUE(server.AwaitIdle());
  const TestReply reply = Fetch(server.port(), "GET", "/metrics");
  EXPECT_THAT(reply.headers.at("content-type"), StartsWith("text/plain; version=0.0.4"));
  for (const char* line :
       {"vllm:num_requests_running{engine=\"0\",model_name=\"needle-7m\"} 0",
        "vllm:num_requests_waiting{engine=\"0\",model_name=\"needle-7m:dense\"} 0",
        "vllm:kv_cache_usage_perc{", "# TYPE vllm:prompt_tokens_total counter",
        "vllm:generation_tokens_total{", "vllm:time_to_first_token_seconds_count{",
        "vllm:inter_token_latency_seconds_bucket{", "vllm:e2e_request_latency_seconds_sum{",
        "lserve:settings_info{token_budget=\"4096\"} 1", "lserve:kv_pages{",
        "http_requests_total{handler=\"/v1/chat/completions\",method=\"POST\",status=\"200\"} 1"}) {
    EXPECT_THAT(reply.body, HasSubstr(line));
  }
  EXPECT_THAT(reply.body, HasSubstr("vllm:request_success_total{engine=\"0\",finished_reason="
                                    "\"stop\",model_name=\"needle-7m\"} 1"));
}

TEST(Server, RefusesWhatItCannotServe) {
  ServerOptions options;
  options.host = "no.such.address";
  EXPECT_FALSE(Server::Start(options).ok());
  options.host = "127.0.0.1";
  options.io_threads = 0;
  EXPECT_FALSE(Server::Start(options).ok());
  TestServer server;
  options.io_threads = 1;
  options.port = server.port();
  const auto second = Server::Start(options);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), HasSubstr("cannot listen"));
}

}  // namespace
}  // namespace lserve
