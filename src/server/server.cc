#include "server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "server/http.h"
#include "server/service.h"

namespace lserve {
namespace {

namespace asio = boost::asio;

constexpr double kFlushSeconds = 5;  // for the last bytes of drained answers

Status Validate(const ServerOptions& options) {
  if (options.max_body_bytes < 1 || options.max_header_bytes < 256 ||
      options.max_header_bytes > (int64_t{16} << 20) || options.max_output_bytes < 1) {
    return InvalidArgument(
        "server limits out of range: body {}, header {} (256 to 16 MiB), output {} bytes",
        options.max_body_bytes, options.max_header_bytes, options.max_output_bytes);
  }
  if (options.max_connections < 1 || options.io_threads < 1 || options.tokenizer_threads < 1) {
    return InvalidArgument(
        "connections ({}), I/O threads ({}) and tokenizer threads ({}) must be at least 1",
        options.max_connections, options.io_threads, options.tokenizer_threads);
  }
  if (!(options.idle_seconds > 0 && options.header_seconds > 0 && options.stall_seconds > 0 &&
        options.drain_seconds >= 0)) {
    return InvalidArgument(
        "times must be above 0: idle {}, header {}, stall {}; drain at least 0: {}",
        options.idle_seconds, options.header_seconds, options.stall_seconds, options.drain_seconds);
  }
  return OkStatus();
}

}  // namespace

class Server::Impl {
 public:
  explicit Impl(const ServerOptions& options)
      : options_(options),
        service_(options),
        context_(options.io_threads),
        work_(context_.get_executor()),
        log_timer_(context_) {}

  Status Start() {
    HttpLimits limits;
    limits.max_body_bytes = options_.max_body_bytes;
    limits.max_header_bytes = options_.max_header_bytes;
    limits.max_connections = options_.max_connections;
    limits.idle_seconds = options_.idle_seconds;
    limits.header_seconds = options_.header_seconds;
    limits.body_seconds = options_.stall_seconds;
    limits.stall_seconds = options_.stall_seconds;
    ASSIGN_OR_RETURN(http_,
                     HttpServer::Listen(context_, options_.host, options_.port, limits, &service_));
    service_.set_connection_count([http = http_.get()] { return http->connections(); });
    if (options_.log_interval_seconds > 0) {
      ScheduleLog();
    }
    for (int32_t i = 0; i < options_.io_threads; ++i) {
      threads_.emplace_back([this] { Serve(); });
    }
    return OkStatus();
  }

  Service& service() { return service_; }
  uint16_t port() const { return http_->port(); }

  void Stop() {
    if (stopped_ || http_ == nullptr) {
      return;
    }
    stopped_ = true;
    service_.BeginDrain();
    http_->BeginDrain();
    if (const auto models = service_.attached()) {
      models->serving.engine->Drain(options_.drain_seconds);
    }
    const double flush_until = NowSeconds() + kFlushSeconds;
    while (service_.active() > 0 && NowSeconds() < flush_until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    http_->Close();
    context_.stop();
    threads_.clear();  // joins
    service_.StopThreads();
  }

  std::string url() const {
    const bool v6 = options_.host.find(':') != std::string::npos;
    return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", options_.host, v6 ? "]" : "", port());
  }

 private:
  void Serve() {
    while (true) {
      try {
        context_.run();
        return;
      } catch (const std::exception& exception) {
        SPDLOG_ERROR("an I/O handler failed: {}", exception.what());
      }
    }
  }

  void ScheduleLog() {
    log_timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(options_.log_interval_seconds)));
    log_timer_.async_wait([this](const boost::system::error_code& failure) {
      if (!failure) {
        LogThroughput();
        ScheduleLog();
      }
    });
  }

  void LogThroughput() {
    const auto models = service_.attached();
    if (models == nullptr) {
      return;
    }
    const Engine& engine = *models->serving.engine;
    logged_.resize(static_cast<size_t>(engine.num_models()));
    for (int32_t i = 0; i < engine.num_models(); ++i) {
      const EngineModelStats now = engine.stats(i);
      EngineModelStats& before = logged_[static_cast<size_t>(i)];
      const auto prompt = static_cast<double>(now.prompt_tokens - before.prompt_tokens);
      const auto generated = static_cast<double>(now.generation_tokens - before.generation_tokens);
      if (now.running > 0 || now.waiting > 0 || prompt > 0 || generated > 0) {
        spdlog::info(
            "{}: prefill {:.0f} tok/s, decode {:.1f} tok/s, running {}, waiting {}, KV cache "
            "{:.1f} %",
            models->metric_names[static_cast<size_t>(i)], prompt / options_.log_interval_seconds,
            generated / options_.log_interval_seconds, now.running, now.waiting,
            100.0 * static_cast<double>(now.kv_pages_used) /
                static_cast<double>(std::max<int64_t>(1, now.kv_pages)));
      }
      before = now;
    }
  }

  const ServerOptions options_;
  Service service_;  // outlives the context, whose last coroutines it answers
  asio::io_context context_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  asio::steady_timer log_timer_;
  std::vector<EngineModelStats> logged_;
  std::shared_ptr<HttpServer> http_;
  std::vector<std::jthread> threads_;
  bool stopped_ = false;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { Stop(); }

Result<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  RETURN_IF_ERROR(Validate(options));
  auto impl = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Status Server::Attach(Serving serving) { return impl_->service().Attach(std::move(serving)); }

void Server::Fail(const Status& reason) {
  spdlog::error("the model cannot be served: {}", reason.message());
  impl_->service().Fail(reason);
}

uint16_t Server::port() const { return impl_->port(); }

std::string Server::url() const { return impl_->url(); }

void Server::Stop() { impl_->Stop(); }

}  // namespace lserve
