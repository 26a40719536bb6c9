// One client connection: a coroutine that reads requests and has them answered, a watchdog that
// closes it when a deadline passes, and, while a request is being answered, an outstanding read
// that notices a client that leaves. Owned by its coroutines; everything runs on the socket's
// strand, but for Shutdown and BeginDrain, which may be called from any thread.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/http.h"

namespace lserve {

class HttpConnection : public HttpExchange, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(boost::asio::ip::tcp::socket socket, const HttpLimits& limits,
                 HttpHandler* handler, bool draining);

  // Starts the coroutines; `on_end` is called once after the socket is closed.
  void Start(std::function<void()> on_end);
  void BeginDrain();
  void Shutdown();

  const HttpHead& head() const override { return head_; }
  std::string& body() override { return body_; }
  boost::asio::any_io_executor executor() const override { return executor_; }
  boost::asio::awaitable<bool> Reply(const HttpResponse& response) override;
  boost::asio::awaitable<bool> BeginStream(const HttpResponse& head) override;
  boost::asio::awaitable<bool> WriteStream(std::string_view bytes) override;
  boost::asio::awaitable<bool> EndStream(bool close) override;
  bool client_left() const override { return left_; }
  void set_on_client_left(std::function<void()> callback) override;

 private:
  using Clock = std::chrono::steady_clock;
  using Parser = boost::beast::http::request_parser<boost::beast::http::buffer_body>;
  enum class Next { kServe, kRefuse, kClose };

  boost::asio::awaitable<void> Run();
  boost::asio::awaitable<void> Watchdog();
  boost::asio::awaitable<bool> ServeOne();
  boost::asio::awaitable<bool> ReadHeader(Parser& parser);
  void TakeHead(const Parser& parser);
  boost::asio::awaitable<Next> ReadBody(Parser& parser);
  boost::asio::awaitable<void> Answer();
  boost::asio::awaitable<void> Refuse(const ApiError& error);
  boost::asio::awaitable<void> Linger();
  boost::asio::awaitable<bool> WriteAll(std::string_view bytes);
  std::string ResponseHead(const HttpResponse& response, std::string_view framing);

  void SetDeadline(double seconds);
  void ClearDeadline();
  void StartWatch();
  boost::asio::awaitable<void> StopWatch();
  void ClientLeft();
  void CloseSocket();

  boost::asio::ip::tcp::socket socket_;
  const boost::asio::any_io_executor executor_;
  const HttpLimits limits_;
  HttpHandler* const handler_;

  boost::beast::flat_buffer buffer_;  // bytes read and not yet consumed
  std::vector<char> piece_;           // where a body's next bytes go
  HttpHead head_;
  std::string body_;
  Clock::time_point request_start_;
  bool http_1_0_ = false;
  bool keep_alive_ = true;
  bool replied_ = false;    // a reply's head went out
  bool streaming_ = false;  // and its body is a stream under way
  bool unread_body_ = false;

  boost::asio::steady_timer watchdog_;
  Clock::time_point deadline_ = Clock::time_point::max();
  bool ended_ = false;
  bool idle_ = true;
  std::atomic<bool> draining_;

  bool left_ = false;
  std::function<void()> on_left_;
  bool watching_ = false;
  bool watch_stopping_ = false;
  std::array<char, 4096> watch_bytes_;
  boost::asio::cancellation_signal watch_cancel_;
  boost::asio::steady_timer watch_ended_;
};

}  // namespace lserve
