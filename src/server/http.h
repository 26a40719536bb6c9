// The HTTP/1.1 server below the API: listens, reads requests within limits, notices clients that
// leave while they wait, writes replies and streams. Knows nothing of models.
//
// An HttpServer belongs to the Server and runs on its io_context; its public methods are
// thread-safe. An HttpExchange belongs to one connection's coroutine, on that connection's strand.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace lserve {

struct HttpLimits {
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_header_bytes = int64_t{64} << 10;
  int32_t max_connections = 1024;
  double idle_seconds = 75;     // between requests of one connection
  double header_seconds = 15;   // for a whole header, once begun
  double body_seconds = 30;     // grace for a body, beyond min_body_rate
  double min_body_rate = 8192;  // bytes a second
  double stall_seconds = 30;    // a write without progress
};

// What is known of a request before its body is read.
struct HttpHead {
  std::string method;
  std::string path;  // percent-decoded, without the query
  std::string authorization;
  std::string origin;
  std::string request_id;  // the client's x-request-id if it is harmless, else a new one
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // further ones
  std::string body;
};

// One request and its reply. Replies are written by Reply, or by BeginStream, WriteStream..., and
// EndStream; all return false once the client has left, and then do nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual const HttpHead& head() const = 0;
  virtual std::string& body() = 0;
  virtual boost::asio::any_io_executor executor() const = 0;

  virtual boost::asio::awaitable<bool> Reply(const HttpResponse& response) = 0;

  virtual boost::asio::awaitable<bool> BeginStream(const HttpResponse& head) = 0;
  virtual boost::asio::awaitable<bool> WriteStream(std::string_view bytes) = 0;
  // `close`: the connection is closed too, as after an error inside the stream.
  virtual boost::asio::awaitable<bool> EndStream(bool close) = 0;

  // The client closed or half-closed the connection, or a write failed or stalled.
  virtual bool client_left() const = 0;
  // Called once, on the strand, at the moment the client leaves. Empty: no call.
  virtual void set_on_client_left(std::function<void()> callback) = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // Answers a request before its body is read (no such route, no key); nothing: go on.
  virtual std::optional<HttpResponse> Precheck(const HttpHead& head) = 0;
  // Must reply, unless the client left.
  virtual boost::asio::awaitable<void> Handle(HttpExchange& exchange) = 0;
  // Headers that every reply to this request carries.
  virtual std::vector<std::pair<std::string, std::string>> CommonHeaders(const HttpHead& head) = 0;
  // A reply's head went out.
  virtual void OnReply(const HttpHead& head, int status, double seconds) = 0;
};

class HttpServer {
 public:
  // Binds and listens; connections are served by whoever runs `context`. `handler` must outlive the
  // context's last run. Errors: kInvalidArgument (the host is no address), kInternal (in use, ...).
  static Result<std::shared_ptr<HttpServer>> Listen(boost::asio::io_context& context,
                                                    const std::string& host, uint16_t port,
                                                    const HttpLimits& limits, HttpHandler* handler);
  virtual ~HttpServer() = default;

  virtual uint16_t port() const = 0;
  virtual int32_t connections() const = 0;

  // From here on every connection closes after the reply under way, and idle ones at once. New
  // connections are still accepted (and so learn that the server drains) until Close.
  virtual void BeginDrain() = 0;
  // Stops listening and closes every connection.
  virtual void Close() = 0;
};

}  // namespace lserve
