#include "server/testing/test_server.h"

#include <chrono>
#include <functional>
#include <thread>

#include "base/file.h"

namespace lserve {
namespace {

constexpr int32_t kEndToken = 4;

bool Await(const std::function<bool()>& condition) {
  for (int i = 0; i < 10000; ++i) {
    if (condition()) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

}  // namespace

TestServerOptions::TestServerOptions() {
  stub.limits.max_model_len = 4096;
  stub.limits.vocab_size = 4096;
  engine.eos_token_ids = {1, kEndToken};
  server.port = 0;
  server.log_interval_seconds = 0;
}

TestServer::TestServer(TestServerOptions options) : options_(std::move(options)) {
  const std::string folder = JoinPath(LSERVE_SOURCE_DIR, "models/needle-7m");
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder);
  CHECK_OK(tokenizer.status());
  tokenizer_ = std::move(tokenizer).value();
  Result<ChatTemplate> chat_template = ChatTemplate::Load(folder);
  CHECK_OK(chat_template.status());
  chat_template_ = std::move(chat_template).value();

  StubRunnerOptions stub = options_.stub;
  if (!options_.answer.empty()) {
    stub.script = [ids = tokenizer_->Encode(options_.answer), endless = options_.endless](
                      std::span<const int32_t>, int64_t index) {
      const auto at = static_cast<size_t>(index);
      return endless ? ids[at % ids.size()] : at < ids.size() ? ids[at] : kEndToken;
    };
  }
  std::vector<std::unique_ptr<Runner>> runners;
  for (int i = 0; i < 2; ++i) {
    auto runner = std::make_unique<StubRunner>(stub);
    runners_.push_back(runner.get());
    runners.push_back(std::move(runner));
  }
  engine_ = std::make_unique<Engine>(std::move(runners), tokenizer_, options_.engine);
  Result<std::unique_ptr<Server>> server = Server::Start(options_.server);
  CHECK_OK(server.status());
  server_ = std::move(server).value();
  if (options_.attach) {
    Attach();
  }
}

TestServer::~TestServer() {
  if (options_.stub.gate != nullptr) {
    options_.stub.gate->Open();
  }
  server_.reset();
}

void TestServer::Attach() {
  Serving serving;
  serving.engine = engine_.get();
  serving.tokenizer = tokenizer_;
  serving.chat_template = &*chat_template_;
  serving.models = {{kModel, 0}, {std::string(kModel) + ":dense", 1}};
  serving.defaults.temperature = 0;
  serving.settings = {{"token-budget", "4096"}};
  CHECK_OK(server_->Attach(std::move(serving)));
}

int64_t TestServer::Requests() const {
  int64_t requests = 0;
  for (int32_t model = 0; model < engine_->num_models(); ++model) {
    const EngineModelStats stats = engine_->stats(model);
    requests += stats.running + stats.waiting;
  }
  return requests;
}

bool TestServer::AwaitRequests(int64_t count) {
  return Await([&] { return Requests() == count; });
}

bool TestServer::AwaitIdle() {
  return Await([&] {
    bool idle = Requests() == 0;
    for (const StubRunner* runner : runners_) {
      idle =
          idle && runner->open_slots() == 0 && runner->FreePages() == options_.stub.limits.kv_pages;
    }
    return idle;
  });
}

}  // namespace lserve
