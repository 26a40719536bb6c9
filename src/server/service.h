// Service: the API on top of the HTTP server: routes, keys, models, errors, metrics. Owned by the
// Server; answers on the connections' strands, parses and tokenises on its own threads.
// Thread-safe.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/thread_pool.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "server/server.h"

namespace lserve {

// What Attach brought and what follows from it; immutable, shared with requests under way.
struct AttachedModels {
  Serving serving;
  std::vector<std::string> metric_names;  // by model index of the engine
  int64_t created = 0;                    // Unix seconds
  size_t max_token_bytes = 1;             // of the text of a single token
  int64_t max_json_values = 0;            // of a request body

  // The served model of that name, the first if it is empty; null: there is none.
  const ServedModel* Find(std::string_view id) const;
  int64_t max_model_len(const ServedModel& model) const;
  // The prompt's tokens. `start`: a chat ends with the header of the answer, or a text begins with
  // the special tokens of the tokenizer.
  Result<std::vector<int32_t>> Encode(const Prompt& prompt, bool start) const;
};

class Service : public HttpHandler {
 public:
  explicit Service(const ServerOptions& options);
  ~Service() override;

  Status Attach(Serving serving);
  void Fail(const Status& why);
  void BeginDrain();
  // Ends the worker threads; what waits for them is dropped. Nothing may be handled any more.
  void StopThreads();
  void set_connection_count(std::function<int32_t()> count) {
    connection_count_ = std::move(count);
  }

  // Null until Attach.
  std::shared_ptr<const AttachedModels> attached() const;
  // Requests handed to the engine whose answers are not written yet.
  int32_t active() const { return active_; }

  std::optional<HttpResponse> Precheck(const HttpHead& head) override;
  boost::asio::awaitable<void> Handle(HttpExchange& exchange) override;
  std::vector<std::pair<std::string, std::string>> CommonHeaders(const HttpHead& head) override;
  void OnReply(const HttpHead& head, int status, double seconds) override;

 private:
  friend class Generation;
  enum class State { kLoading, kReady, kDraining, kFailed };

  State state() const;
  // Under State::kFailed, why.
  Status failure() const;
  // The threads that parse and tokenise bodies of this size.
  boost::asio::any_io_executor WorkerFor(size_t body_bytes);
  HttpResponse Get(std::string_view path) const;
  HttpResponse Health() const;
  HttpResponse Models(std::string_view path) const;
  HttpResponse Tokenize(std::string body) const;
  HttpResponse Detokenize(std::string body) const;

  const ServerOptions options_;
  const ApiKeys keys_;
  std::function<int32_t()> connection_count_;
  Metrics metrics_;

  mutable std::mutex mutex_;
  State state_ = State::kLoading;
  Status failure_;  // of loading
  std::shared_ptr<const AttachedModels> attached_;

  std::atomic<int32_t> active_{0};
  // Long bodies have threads apart, so that short requests need not wait for them.
  std::unique_ptr<boost::asio::thread_pool> short_workers_;
  std::unique_ptr<boost::asio::thread_pool> long_workers_;
};

// An error as a reply.
HttpResponse ErrorReply(const ApiError& error);

}  // namespace lserve
