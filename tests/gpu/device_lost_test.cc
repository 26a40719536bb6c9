// A GPU that fails while the server answers, end to end: model, engine and HTTP server in this
// process, on the CUDA backend. Runs in a folder that has models/needle-7m.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "break_device.h"
#include "engine/engine.h"
#include "engine/loaded_model.h"
#include "engine/sampling.h"
#include "server/server.h"
#include "server/testing/test_client.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kHello = R"({"messages":[{"role":"user","content":"Hi"}],"max_tokens":5})";

// A request whose answer takes seconds.
std::string LongAnswer(bool stream) {
  return fmt::format(R"({{"messages":[{{"role":"user","content":"Hi"}}],"max_tokens":60000,)"
                     R"("ignore_eos":true,"stream":{}}})",
                     stream);
}

// Waits until so many requests run; false after 20 s.
bool AwaitRunning(const Engine& engine, int64_t count) {
  for (int i = 0; i < 10000; ++i) {
    if (engine.stats(0).running == count) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

void ExpectFailed(const TestReply& reply, const std::string& words) {
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.error("code"), "failed");
  EXPECT_THAT(reply.error("message"), HasSubstr(words));
}

// The only test of this program: nothing works on the GPU after it.
TEST(CudaDeviceLost, EndsEveryRequestWithTheDevicesWords) {
  if (const auto backend = MakeBackend("cuda", BackendOptions{}); !backend.ok()) {
    GTEST_SKIP() << backend.status().message();
  }
  Settings settings;
  settings.device = "cuda";
  settings.max_num_seqs = 2;
  settings.kv_cache_gib = 1;
  LoadedModel model = LoadedModel::Open("models/needle-7m", settings).value();
  ASSERT_EQ(model.LoadWeights(nullptr).message(), "");
  std::vector<std::unique_ptr<Runner>> runners;
  runners.push_back(model.MakeRunner("lserve").value());
  EngineOptions options;
  options.eos_token_ids = model.config.eos_token_ids;
  Engine engine(std::move(runners), model.tokenizer, options);
  ServerOptions server_options;
  server_options.port = 0;
  const std::unique_ptr<Server> server = Server::Start(server_options).value();
  ASSERT_TRUE(server
                  ->Attach({.engine = &engine,
                            .tokenizer = model.tokenizer,
                            .chat_template = &model.chat_template.value(),
                            .models = {{"needle-7m", 0}},
                            .defaults = DefaultSampling(model.config.generation),
                            .settings = {}})
                  .ok());
  const uint16_t port = server->port();
  ASSERT_EQ(Fetch(port, "POST", kChat, kHello).status, 200);
  ASSERT_EQ(Fetch(port, "GET", "/health").status, 200);

  TestClient streamed(port);
  streamed.SendRequest("POST", kChat, LongAnswer(true));
  ASSERT_EQ(streamed.ReadHead().status, 200);
  TestClient whole(port);
  whole.SendRequest("POST", kChat, LongAnswer(false));
  ASSERT_TRUE(AwaitRunning(engine, 2));
  const std::string words = BreakDevice();
  ASSERT_NE(words, "no error");

  // Requests under way end, and nothing is accepted any more.
  ExpectFailed(whole.ReadReply(), words);
  std::string stream;
  while (const auto chunk = streamed.ReadChunk()) {
    stream += *chunk;
  }
  const std::vector<Json> events = StreamObjects(stream);
  ASSERT_FALSE(events.empty());
  ASSERT_TRUE(events.back().contains("error")) << events.back();
  EXPECT_EQ(events.back()["error"]["code"], "failed");
  EXPECT_THAT(events.back()["error"]["message"].get<std::string>(), HasSubstr(words));
  ExpectFailed(Fetch(port, "POST", kChat, kHello), words);
  const TestReply health = Fetch(port, "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.json()["status"], "error");
  EXPECT_THAT(health.json()["error"].get<std::string>(), HasSubstr(words));
  EXPECT_EQ(Fetch(port, "GET", "/metrics").status, 200);

  server->Stop();  // engine, runner, weights and backend go with this scope
}

}  // namespace
}  // namespace lserve
