#include "server/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <ctime>

#include "base/clock.h"
#include "base/log.h"
#include "server/ids.h"

namespace lserve {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kPieceBytes = size_t{64} << 10;
constexpr size_t kMaxPipelinedBytes = size_t{64} << 10;
constexpr double kLingerSeconds = 5;

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

const char* ReasonPhrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "Status";
  }
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The path of a request target, percent-decoded; what is no valid escape stays as it is.
std::string DecodedPath(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] == '%' && i + 2 < target.size() && HexDigit(target[i + 1]) >= 0 &&
        HexDigit(target[i + 2]) >= 0) {
      path.push_back(static_cast<char>(HexDigit(target[i + 1]) * 16 + HexDigit(target[i + 2])));
      i += 2;
    } else {
      path.push_back(target[i]);
    }
  }
  return path;
}

// A client's request id is repeated in a header and in the log, so only plain ones are taken.
bool IsPlainId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

std::string HttpDate() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 40> text{};
  const size_t length = std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return std::string(text.data(), length);
}

std::chrono::steady_clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}

}  // namespace

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, const HttpLimits& limits,
                               HttpHandler* handler, bool draining)
    : socket_(std::move(socket)),
      executor_(socket_.get_executor()),
      limits_(limits),
      handler_(handler),
      buffer_(static_cast<size_t>(limits.max_header_bytes) + kMaxPipelinedBytes),
      watchdog_(executor_),
      draining_(draining),
      watch_ended_(executor_) {}

void HttpConnection::Start(std::function<void()> on_end) {
  asio::co_spawn(
      executor_, [self = shared_from_this()] { return self->Watchdog(); }, asio::detached);
  asio::co_spawn(
      executor_, [self = shared_from_this()] { return self->Run(); },
      [self = shared_from_this(), on_end = std::move(on_end)](const std::exception_ptr& failure) {
        if (failure) {
          SPDLOG_WARN("a connection ended by an exception");
          self->ClientLeft();
        }
        self->ended_ = true;
        self->watchdog_.cancel();
        self->CloseSocket();
        on_end();
      });
}

void HttpConnection::BeginDrain() {
  draining_ = true;
  asio::post(executor_, [self = shared_from_this()] {
    if (self->idle_) {
      self->CloseSocket();
    }
  });
}

void HttpConnection::Shutdown() {
  asio::post(executor_, [self = shared_from_this()] {
    self->ClientLeft();
    self->CloseSocket();
  });
}

void HttpConnection::CloseSocket() {
  error_code ignored;
  socket_.close(ignored);
}

void HttpConnection::SetDeadline(double seconds) {
  deadline_ = Clock::now() + Seconds(seconds);
  if (deadline_ < watchdog_.expiry()) {
    watchdog_.cancel();  // the watchdog wakes and waits for the nearer deadline
  }
}

void HttpConnection::ClearDeadline() { deadline_ = Clock::time_point::max(); }

asio::awaitable<void> HttpConnection::Watchdog() {
  while (!ended_) {
    if (Clock::now() >= deadline_) {
      ClientLeft();
      CloseSocket();
      co_return;
    }
    watchdog_.expires_at(deadline_);
    co_await watchdog_.async_wait(kAwait);
  }
}

void HttpConnection::ClientLeft() {
  if (!left_) {
    left_ = true;
    if (on_left_) {
      on_left_();
    }
  }
}

void HttpConnection::set_on_client_left(std::function<void()> callback) {
  on_left_ = std::move(callback);
  if (left_ && on_left_) {
    on_left_();
  }
}

asio::awaitable<void> HttpConnection::Run() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  for (bool more = true; more;) {
    more = co_await ServeOne();
  }
}

// False: the connection is to be closed.
asio::awaitable<bool> HttpConnection::ServeOne() {
  Parser parser;
  const bool got_header = co_await ReadHeader(parser);
  if (!got_header) {
    co_return false;
  }
  TakeHead(parser);
  if (std::optional<HttpResponse> refusal = handler_->Precheck(head_)) {
    if (!parser.is_done()) {
      unread_body_ = true;
      keep_alive_ = false;
    }
    co_await Reply(*refusal);
  } else {
    const Next next = co_await ReadBody(parser);
    if (next == Next::kClose) {
      co_return false;
    }
    if (next == Next::kServe) {
      co_await Answer();
    }
  }
  if (unread_body_ && !left_) {
    co_await Linger();
  }
  co_return keep_alive_&& replied_ && !streaming_ && !left_;
}

asio::awaitable<bool> HttpConnection::ReadHeader(Parser& parser) {
  head_ = HttpHead();
  body_ = std::string();
  replied_ = false;
  keep_alive_ = true;
  unread_body_ = false;
  if (buffer_.size() == 0) {
    if (draining_ && !idle_) {
      co_return false;
    }
    idle_ = true;
    SetDeadline(limits_.idle_seconds);
    const auto [waited] = co_await socket_.async_wait(asio::ip::tcp::socket::wait_read, kAwait);
    if (waited) {
      co_return false;
    }
  }
  idle_ = false;
  request_start_ = Clock::now();
  SetDeadline(limits_.header_seconds);
  parser.header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
  parser.body_limit(boost::none);  // checked by ReadBody, which can answer
  const auto [failure, bytes] = co_await http::async_read_header(socket_, buffer_, parser, kAwait);
  ClearDeadline();
  if (!failure) {
    co_return true;
  }
  static_cast<void>(bytes);
  const bool too_large =
      failure == http::error::header_limit || failure == http::error::buffer_overflow;
  const bool malformed =
      failure.category() == http::make_error_code(http::error::bad_version).category() &&
      failure != http::error::end_of_stream && failure != http::error::partial_message;
  if (too_large || malformed) {
    head_.request_id = "req-" + RandomHex(24);
    const ApiError error =
        too_large ? HeaderTooLarge(limits_.max_header_bytes)
                  : BadRequest("", fmt::format("Malformed HTTP request: {}.", failure.message()));
    co_await Refuse(error);
    co_await Linger();
  }
  co_return false;
}

void HttpConnection::TakeHead(const Parser& parser) {
  const auto& message = parser.get();
  head_.method = std::string(View(message.method_string()));
  head_.path = DecodedPath(View(message.target()));
  head_.authorization = std::string(View(message[http::field::authorization]));
  head_.origin = std::string(View(message[http::field::origin]));
  const std::string_view request_id = View(message["x-request-id"]);
  head_.request_id = IsPlainId(request_id) ? std::string(request_id) : "req-" + RandomHex(24);
  http_1_0_ = message.version() < 11;
  keep_alive_ = parser.keep_alive();
}

asio::awaitable<HttpConnection::Next> HttpConnection::ReadBody(Parser& parser) {
  const boost::optional<uint64_t> length = parser.content_length();
  const auto limit = static_cast<uint64_t>(limits_.max_body_bytes);
  if (length && *length > limit) {
    const ApiError error = BodyTooLarge(limits_.max_body_bytes);
    co_await Refuse(error);
    co_return Next::kRefuse;
  }
  if (!parser.is_done() && View(parser.get()[http::field::expect]) == "100-continue") {
    const bool sent = co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n");
    if (!sent) {
      co_return Next::kClose;
    }
  }
  piece_.resize(parser.is_done() ? 0 : kPieceBytes);
  while (!parser.is_done()) {
    parser.get().body().data = piece_.data();
    parser.get().body().size = piece_.size();
    parser.get().body().more = true;
    // The time that a body may take grows with what has come: a trickle is cut off.
    const std::chrono::duration<double> spent = Clock::now() - request_start_;
    const double allowed =
        limits_.body_seconds + static_cast<double>(body_.size()) / limits_.min_body_rate;
    SetDeadline(std::max(0.0, allowed - spent.count()));
    auto [failure, bytes] = co_await http::async_read_some(socket_, buffer_, parser, kAwait);
    static_cast<void>(bytes);
    ClearDeadline();
    body_.append(piece_.data(), piece_.size() - parser.get().body().size);
    if (body_.size() > limit) {
      const ApiError error = BodyTooLarge(limits_.max_body_bytes);
      co_await Refuse(error);
      co_return Next::kRefuse;
    }
    if (failure && failure != http::error::need_buffer) {
      if (failure.category() == http::make_error_code(http::error::bad_chunk).category() &&
          failure != http::error::partial_message && failure != http::error::end_of_stream) {
        const ApiError error =
            BadRequest("", fmt::format("Malformed HTTP request: {}.", failure.message()));
        co_await Refuse(error);
        co_return Next::kRefuse;
      }
      co_return Next::kClose;
    }
  }
  piece_ = std::vector<char>();
  co_return Next::kServe;
}

asio::awaitable<void> HttpConnection::Answer() {
  StartWatch();
  bool failed = false;
  try {
    co_await handler_->Handle(*this);
  } catch (const std::exception& exception) {
    SPDLOG_ERROR("{}: request failed: {}", head_.request_id, exception.what());
    failed = true;
  }
  on_left_ = nullptr;
  if (failed && !replied_) {
    const ApiError error = ServerError("The server failed to handle the request.");
    co_await Refuse(error);
  }
  co_await StopWatch();
}

asio::awaitable<void> HttpConnection::Refuse(const ApiError& error) {
  unread_body_ = true;
  keep_alive_ = false;
  HttpResponse response;
  response.status = error.http_status;
  response.body = ErrorBody(error);
  co_await Reply(response);
}

// Reads what the client still sends and throws it away, so that closing does not reset the
// connection before the client has read the reply.
asio::awaitable<void> HttpConnection::Linger() {
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  SetDeadline(kLingerSeconds);
  piece_.resize(kPieceBytes);
  while (true) {
    const auto [failure, bytes] =
        co_await socket_.async_read_some(asio::buffer(piece_.data(), piece_.size()), kAwait);
    if (failure) {
      co_return;
    }
    static_cast<void>(bytes);
  }
}

void HttpConnection::StartWatch() {
  if (watching_ || left_ || buffer_.size() >= kMaxPipelinedBytes) {
    return;
  }
  watching_ = true;
  socket_.async_read_some(asio::buffer(watch_bytes_),
                          asio::bind_cancellation_slot(
                              watch_cancel_.slot(),
                              [self = shared_from_this()](const error_code& failure, size_t bytes) {
                                self->watching_ = false;
                                if (bytes > 0) {  // the next request of a client that pipelines
                                  const auto room = self->buffer_.prepare(bytes);
                                  asio::buffer_copy(room,
                                                    asio::buffer(self->watch_bytes_.data(), bytes));
                                  self->buffer_.commit(bytes);
                                }
                                if (self->watch_stopping_) {
                                  self->watch_ended_.cancel();
                                } else if (failure) {
                                  self->ClientLeft();
                                } else {
                                  self->StartWatch();
                                }
                              }));
}

asio::awaitable<void> HttpConnection::StopWatch() {
  if (watching_) {
    watch_stopping_ = true;
    watch_ended_.expires_at(Clock::time_point::max());
    watch_cancel_.emit(asio::cancellation_type::all);
    while (watching_) {
      co_await watch_ended_.async_wait(kAwait);
    }
    watch_stopping_ = false;
  }
}

asio::awaitable<bool> HttpConnection::WriteAll(std::string_view bytes) {
  while (!bytes.empty() && !left_) {
    const std::string_view slice = bytes.substr(0, kPieceBytes);
    SetDeadline(limits_.stall_seconds);
    const auto [failure, written] =
        co_await asio::async_write(socket_, asio::buffer(slice.data(), slice.size()), kAwait);
    ClearDeadline();
    if (failure) {
      ClientLeft();
      CloseSocket();
      break;
    }
    bytes.remove_prefix(written);
  }
  co_return !left_;
}

std::string HttpConnection::ResponseHead(const HttpResponse& response, std::string_view framing) {
  if (draining_) {
    keep_alive_ = false;
  }
  std::string text =
      fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nx-request-id: {}\r\n", response.status,
                  ReasonPhrase(response.status), HttpDate(), head_.request_id);
  if (!response.content_type.empty()) {
    text += fmt::format("Content-Type: {}\r\n", response.content_type);
  }
  for (const auto& [name, value] : handler_->CommonHeaders(head_)) {
    text += fmt::format("{}: {}\r\n", name, value);
  }
  for (const auto& [name, value] : response.headers) {
    text += fmt::format("{}: {}\r\n", name, value);
  }
  text += framing;
  text += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  const std::chrono::duration<double> spent = Clock::now() - request_start_;
  handler_->OnReply(head_, response.status, spent.count());
  replied_ = true;
  return text;
}

asio::awaitable<bool> HttpConnection::Reply(const HttpResponse& response) {
  std::string text =
      ResponseHead(response, response.status == 204
                                 ? std::string()
                                 : fmt::format("Content-Length: {}\r\n", response.body.size()));
  if (head_.method != "HEAD" && response.status != 204) {
    text += response.body;
  }
  const bool sent = co_await WriteAll(text);
  co_return sent;
}

asio::awaitable<bool> HttpConnection::BeginStream(const HttpResponse& head) {
  if (http_1_0_) {
    keep_alive_ = false;  // the end of the stream is the end of the connection
  }
  const std::string text = ResponseHead(head, http_1_0_ ? "" : "Transfer-Encoding: chunked\r\n");
  streaming_ = true;
  const bool sent = co_await WriteAll(text);
  co_return sent;
}

asio::awaitable<bool> HttpConnection::WriteStream(std::string_view bytes) {
  if (bytes.empty()) {
    co_return !left_;
  }
  bool sent = false;
  if (http_1_0_) {
    sent = co_await WriteAll(bytes);
  } else {
    const std::string chunk = fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
    sent = co_await WriteAll(chunk);
  }
  co_return sent;
}

asio::awaitable<bool> HttpConnection::EndStream(bool close) {
  keep_alive_ = keep_alive_ && !close;
  bool sent = !left_;
  if (!http_1_0_) {
    sent = co_await WriteAll("0\r\n\r\n");
  }
  streaming_ = false;
  co_return sent;
}

}  // namespace lserve
