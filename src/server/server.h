// Server: the OpenAI-compatible HTTP server of one loaded model. Owned by the command that serves;
// public methods are thread-safe but for Start and Stop, which one thread calls once each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "server/openai_request.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lserve {

struct ServerOptions {
  std::string host = "127.0.0.1";            // an IP address, or localhost
  uint16_t port = 8000;                      // 0: any free one
  std::vector<std::string> api_keys;         // none: no key is asked for
  std::vector<std::string> allowed_origins;  // CORS; "*": any; none: off
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_header_bytes = int64_t{64} << 10;
  int32_t max_connections = 1024;
  double idle_seconds = 75;                     // between two requests of a connection
  double header_seconds = 15;                   // for a request's header
  double stall_seconds = 30;                    // for a client that does not read
  double keep_alive_seconds = 10;               // a stream without news gets a comment so often
  double drain_seconds = 30;                    // Stop: for requests under way
  double log_interval_seconds = 5;              // the throughput line; 0: none
  int64_t max_output_bytes = int64_t{1} << 20;  // of an answer, waiting for a slow reader
  int32_t io_threads = 1;
  int32_t tokenizer_threads = 1;  // for long bodies; short ones have a thread of their own
};

// A name under which clients find one of the engine's models. Several may share an index; the first
// name of an index labels its metrics.
struct ServedModel {
  std::string id;
  int32_t engine_model = 0;
};

// What the server serves once the model is loaded. Engine and chat template must outlive the
// Server.
struct Serving {
  Engine* engine = nullptr;
  std::shared_ptr<const Tokenizer> tokenizer;
  const ChatTemplate* chat_template = nullptr;  // null: chats are refused
  std::vector<ServedModel> models;              // the first is the default
  SamplingParams defaults;                      // sampling where a request does not say
  std::vector<std::pair<std::string, std::string>> settings;  // shown in /metrics
};

class Server {
 public:
  // Opens the socket; every request but /health, /version and the page gets 503 until Attach.
  // Errors: kInvalidArgument (host, option out of range), kInternal (the port is in use).
  static Result<std::unique_ptr<Server>> Start(const ServerOptions& options);
  ~Server();  // Stop, if it was not called

  // The model is loaded: serve it. Call at most once.
  Status Attach(Serving serving);
  // The model cannot be loaded: /health says so.
  void Fail(const Status& reason);

  uint16_t port() const;
  std::string url() const;  // "http://127.0.0.1:8000"

  // Drains: /health turns 503, new requests are refused, those under way have drain_seconds and
  // then end with an error; closes every connection and joins the threads. Leaves the engine
  // drained, so that it takes no more requests.
  void Stop();

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lserve
