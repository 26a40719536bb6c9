#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <mutex>
#include <unordered_map>

#include "base/log.h"
#include "server/http.h"
#include "server/http_connection.h"

namespace lserve {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

class ListeningServer : public HttpServer, public std::enable_shared_from_this<ListeningServer> {
 public:
  ListeningServer(asio::io_context& context, const HttpLimits& limits, HttpHandler* handler)
      : context_(context),
        strand_(asio::make_strand(context)),
        acceptor_(strand_),
        limits_(limits),
        handler_(handler) {}

  Status Open(const std::string& host, uint16_t port) {
    error_code failure;
    const asio::ip::address address =
        asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, failure);
    if (failure) {
      return InvalidArgument("host \"{}\" is no IP address", host);
    }
    const tcp::endpoint endpoint(address, port);
    acceptor_.open(endpoint.protocol(), failure);
    if (!failure) {
      acceptor_.set_option(tcp::acceptor::reuse_address(true), failure);
    }
    if (!failure) {
      acceptor_.bind(endpoint, failure);
    }
    if (!failure) {
      acceptor_.listen(asio::socket_base::max_listen_connections, failure);
    }
    if (failure) {
      return Internal("cannot listen on {} port {}: {}", host, port, failure.message());
    }
    port_ = acceptor_.local_endpoint().port();
    asio::co_spawn(
        strand_, [self = shared_from_this()] { return self->Accept(); }, asio::detached);
    return OkStatus();
  }

  uint16_t port() const override { return port_; }

  int32_t connections() const override {
    const std::lock_guard lock(mutex_);
    return static_cast<int32_t>(connections_.size());
  }

  void BeginDrain() override {
    draining_ = true;
    for (const auto& connection : Snapshot()) {
      connection->BeginDrain();
    }
  }

  void Close() override {
    closed_ = true;
    asio::post(strand_, [self = shared_from_this()] {
      error_code ignored;
      self->acceptor_.close(ignored);
    });
    for (const auto& connection : Snapshot()) {
      connection->Shutdown();
    }
  }

 private:
  std::vector<std::shared_ptr<HttpConnection>> Snapshot() const {
    std::vector<std::shared_ptr<HttpConnection>> alive;
    const std::lock_guard lock(mutex_);
    for (const auto& [id, connection] : connections_) {
      if (auto shared = connection.lock()) {
        alive.push_back(std::move(shared));
      }
    }
    return alive;
  }

  asio::awaitable<void> Accept() {
    asio::steady_timer pause(strand_);
    while (!closed_) {
      auto [failure, socket] = co_await acceptor_.async_accept(
          asio::any_io_executor(asio::make_strand(context_)), kAwait);
      if (closed_ || failure == asio::error::operation_aborted) {
        co_return;
      }
      if (failure) {  // out of file descriptors, mostly: wait for some to close
        SPDLOG_WARN("accepting a connection failed: {}", failure.message());
        pause.expires_after(std::chrono::milliseconds(100));
        co_await pause.async_wait(kAwait);
        continue;
      }
      Admit(std::move(socket));
    }
  }

  void Admit(tcp::socket socket) {
    if (connections() >= limits_.max_connections) {
      // The text fits any socket buffer, so this does not block.
      static constexpr std::string_view kFull =
          "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\n"
          "Connection: close\r\n\r\n";
      error_code ignored;
      socket.non_blocking(true, ignored);
      socket.write_some(asio::buffer(kFull.data(), kFull.size()), ignored);
      return;
    }
    const auto connection =
        std::make_shared<HttpConnection>(std::move(socket), limits_, handler_, draining_.load());
    const int64_t id = next_id_++;
    {
      const std::lock_guard lock(mutex_);
      connections_.emplace(id, connection);
    }
    connection->Start([self = shared_from_this(), id] {
      const std::lock_guard lock(self->mutex_);
      self->connections_.erase(id);
    });
  }

  asio::io_context& context_;
  asio::any_io_executor strand_;
  tcp::acceptor acceptor_;
  const HttpLimits limits_;
  HttpHandler* const handler_;
  uint16_t port_ = 0;
  std::atomic<bool> draining_{false};
  std::atomic<bool> closed_{false};
  int64_t next_id_ = 0;  // on the strand
  mutable std::mutex mutex_;
  std::unordered_map<int64_t, std::weak_ptr<HttpConnection>> connections_;
};

}  // namespace

Result<std::shared_ptr<HttpServer>> HttpServer::Listen(asio::io_context& context,
                                                       const std::string& host, uint16_t port,
                                                       const HttpLimits& limits,
                                                       HttpHandler* handler) {
  auto server = std::make_shared<ListeningServer>(context, limits, handler);
  RETURN_IF_ERROR(server->Open(host, port));
  return std::shared_ptr<HttpServer>(std::move(server));
}

}  // namespace lserve
