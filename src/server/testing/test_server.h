// TestServer: a Server on an ephemeral loopback port over an Engine of stub runners, with the
// tokenizer and chat template of the bundled model. For tests; used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/testing/stub_runner.h"
#include "server/server.h"

namespace lserve {

struct TestServerOptions {
  // What every answer says, token by token, then the end token; empty: the stub's own tokens.
  std::string answer;
  bool endless = false;  // the answer starts over instead of ending
  StubRunnerOptions stub;
  EngineOptions engine;
  ServerOptions server;
  bool attach = true;

  TestServerOptions();
};

class TestServer {
 public:
  static constexpr const char* kModel = "needle-7m";  // and "needle-7m:dense", the second model

  explicit TestServer(TestServerOptions options = {});
  ~TestServer();

  uint16_t port() const { return server_->port(); }
  Server& server() { return *server_; }
  Engine& engine() { return *engine_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  void Attach();

  // Waits until no request runs or waits and every page is free; false after 20 s.
  bool AwaitIdle();
  // Waits until so many requests run or wait; false after 20 s.
  bool AwaitRequests(int64_t count);

 private:
  int64_t Requests() const;

  const TestServerOptions options_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::vector<StubRunner*> runners_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
};

}  // namespace lserve
