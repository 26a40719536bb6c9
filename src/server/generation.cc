#include "server/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <ctime>
#include <mutex>

#include "base/clock.h"
#include "base/log.h"
#include "server/ids.h"

namespace lserve {
namespace {

namespace asio = boost::asio;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kNewsOverheadBytes = 256;  // of the JSON around a piece of text

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// A lower bound of the tokens in a text. Normalisation (NFC) may shorten text that is not ASCII, to
// a third at most.
int64_t LeastTokensOf(std::string_view text, size_t max_token_bytes) {
  const size_t divisor = max_token_bytes * (IsAscii(text) ? 1 : 3);
  return static_cast<int64_t>(text.size() / divisor);
}

int64_t LeastTokens(const Prompt& prompt, size_t max_token_bytes) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    return static_cast<int64_t>(ids->size());
  }
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    return LeastTokensOf(*text, max_token_bytes);
  }
  int64_t tokens = 0;
  for (const ChatMessage& message : std::get<std::vector<ChatMessage>>(prompt)) {
    tokens += LeastTokensOf(message.content, max_token_bytes);
  }
  return tokens;
}

std::optional<ApiError> CheckTokenIds(const std::vector<int32_t>& ids, int32_t vocab_size,
                                      std::string_view param) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size) {
      return BadRequest(param, fmt::format("{}[{}] is {}, but the vocabulary has {} tokens.", param,
                                           i, ids[i], vocab_size));
    }
  }
  return std::nullopt;
}

}  // namespace

struct Generation::News {
  OutputEvent event;
  double time = 0;
};

// Takes the engine's news on its thread and wakes the coroutine on its strand. Outlives the
// generation while the engine holds its sink.
class Generation::Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  Mailbox(asio::any_io_executor executor, asio::steady_timer* timer, int64_t max_bytes)
      : executor_(std::move(executor)), timer_(timer), max_bytes_(static_cast<size_t>(max_bytes)) {}

  // Engine thread.
  void Push(const OutputEvent& event) {
    const bool final = event.finish != FinishReason::kNone;
    if (!final && event.tokens.empty() && event.text.empty()) {
      return;  // progress of a prefill
    }
    const std::lock_guard lock(mutex_);
    if (closed_) {
      return;
    }
    bytes_ += event.text.size() + kNewsOverheadBytes;
    overflowed_ = overflowed_ || bytes_ > max_bytes_;
    if (!overflowed_ || final) {
      news_.push_back({event, NowSeconds()});
    }
    if (!posted_) {
      posted_ = true;
      // Posted under the lock: Close, which waits for it, comes before the end of the executor.
      asio::post(executor_, [self = shared_from_this()] { self->Wake(); });
    }
  }

  // On the strand, as all below.
  std::vector<News> Take() {
    const std::lock_guard lock(mutex_);
    bytes_ = 0;
    return std::exchange(news_, {});
  }
  bool empty() const {
    const std::lock_guard lock(mutex_);
    return news_.empty();
  }
  bool overflowed() const {
    const std::lock_guard lock(mutex_);
    return overflowed_;
  }
  void set_on_overflow(std::function<void()> callback) { on_overflow_ = std::move(callback); }
  void Close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    executor_ = {};  // the io_context may end before the engine drops its sink
    timer_ = nullptr;
    on_overflow_ = nullptr;
  }

 private:
  void Wake() {
    bool overflowed = false;
    {
      const std::lock_guard lock(mutex_);
      posted_ = false;
      overflowed = overflowed_;
    }
    if (timer_ != nullptr) {
      timer_->cancel();
    }
    if (overflowed && on_overflow_) {
      std::exchange(on_overflow_, nullptr)();
    }
  }

  asio::any_io_executor executor_;
  asio::steady_timer* timer_;          // strand only
  std::function<void()> on_overflow_;  // strand only
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  std::vector<News> news_;
  size_t bytes_ = 0;
  bool overflowed_ = false;
  bool posted_ = false;
  bool closed_ = false;
};

// What the worker thread reads and writes; shared with it, as it may outlive the generation.
struct Generation::Job {
  std::shared_ptr<const AttachedModels> models;
  std::shared_ptr<Mailbox> mailbox;
  std::string body;
  bool chat = false;
  std::atomic<bool> abandoned{false};

  std::optional<ApiError> error;
  GenerationRequest request;
  std::string model_id;
  int32_t engine_model = 0;
  std::optional<RequestId> id;
};

Generation::Generation(Service& service, HttpExchange& exchange, bool chat)
    : service_(service),
      exchange_(exchange),
      timer_(exchange.executor()),
      arrived_(NowSeconds()),
      job_(std::make_shared<Job>()),
      mailbox_(std::make_shared<Mailbox>(exchange.executor(), &timer_,
                                         service.options_.max_output_bytes)) {
  job_->models = service.attached();
  job_->mailbox = mailbox_;
  job_->chat = chat;
  head_.chat = chat;
  ++service_.active_;
}

Generation::~Generation() {
  exchange_.set_on_client_left(nullptr);
  mailbox_->Close();
  job_->abandoned = true;
  if (submitted_ && facts_.reason == FinishReason::kNone) {
    CancelEngineRequest();
  }
  --service_.active_;
}

void Generation::CancelEngineRequest() {
  job_->abandoned = true;
  if (submitted_) {
    job_->models->serving.engine->Cancel(*job_->id);
  }
}

// On a worker thread: all that takes time in proportion to the body.
void Generation::Prepare(Job& job) {
  const AttachedModels& models = *job.models;
  const Serving& serving = models.serving;
  GenerationRequest& request = job.request;
  Json json;
  job.error = ParseBody(job.body, models.max_json_values, &json);
  job.body = std::string();
  if (!job.error) {
    job.error = job.chat ? ParseChatRequest(std::move(json), serving.defaults, &request)
                         : ParseCompletionRequest(std::move(json), serving.defaults, &request);
  }
  if (job.error) {
    return;
  }
  const ServedModel* model = models.Find(request.model);
  if (model == nullptr) {
    job.error = ModelNotFound(request.model);
    return;
  }
  job.model_id = model->id;
  job.engine_model = model->engine_model;

  const std::string_view param = request.prompt_field();
  const RunnerLimits& limits = serving.engine->limits(model->engine_model);
  if (const int64_t least = LeastTokens(request.prompt, models.max_token_bytes);
      least >= limits.max_model_len) {
    const bool exact = std::holds_alternative<std::vector<int32_t>>(request.prompt);
    job.error = ContextLengthExceeded(param, limits.max_model_len, least, 0, !exact);
    return;
  }
  Result<std::vector<int32_t>> tokens = models.Encode(request.prompt, true);
  request.prompt = std::string();
  if (!tokens.ok()) {
    job.error = BadRequest(param, tokens.status().message());
    return;
  }
  const auto prompt_tokens = static_cast<int64_t>(tokens->size());
  const int64_t left = limits.max_model_len - prompt_tokens;
  SamplingParams& sampling = request.sampling;
  if (left <= 0) {
    job.error = ContextLengthExceeded(param, limits.max_model_len, prompt_tokens, 0, false);
    return;
  }
  if (request.max_tokens_given && sampling.max_tokens > left) {
    job.error = ContextLengthExceeded(param, limits.max_model_len, prompt_tokens,
                                      sampling.max_tokens, false);
    return;
  }
  sampling.max_tokens = std::min(sampling.max_tokens, left);  // -1 stays
  job.error = CheckTokenIds(*tokens, limits.vocab_size, "prompt");
  if (!job.error) {
    job.error = CheckTokenIds(sampling.stop_token_ids, limits.vocab_size, "stop_token_ids");
  }
  if (job.error || job.abandoned) {
    return;
  }
  Request engine_request;
  engine_request.prompt = std::move(tokens).value();
  engine_request.sampling = sampling;
  engine_request.model = job.engine_model;
  const Result<RequestId> id = serving.engine->Submit(
      std::move(engine_request),
      [mailbox = job.mailbox](const OutputEvent& event) { mailbox->Push(event); });
  if (id.ok()) {
    job.id = *id;
  } else if (const Status health = serving.engine->health(); !health.ok()) {
    job.error = Failed(health);
  } else {
    job.error = FromSubmitStatus(id.status(), param);
  }
}

asio::awaitable<void> Generation::Run() {
  exchange_.set_on_client_left([this] {
    CancelEngineRequest();
    timer_.cancel();
  });
  mailbox_->set_on_overflow([this] { CancelEngineRequest(); });
  job_->body = std::move(exchange_.body());
  const asio::any_io_executor worker = service_.WorkerFor(job_->body.size());
  // Named: g++ 12 destroys closures that are temporaries of a co_await expression twice.
  auto work = [job = job_]() -> asio::awaitable<void> {
    if (!job->abandoned) {
      Prepare(*job);
    }
    co_return;
  };
  co_await asio::co_spawn(worker, std::move(work), asio::use_awaitable);
  if (job_->error) {
    HttpResponse response = ErrorReply(*job_->error);
    co_await exchange_.Reply(response);
    co_return;
  }
  if (!job_->id.has_value()) {
    co_return;  // the client left before anything was queued
  }
  submitted_ = true;
  head_.id = (head_.chat ? "chatcmpl-" : "cmpl-") + RandomHex(24);
  head_.created = std::time(nullptr);
  head_.model = job_->request.model.empty() ? job_->model_id : job_->request.model;
  head_.include_usage = job_->request.include_usage;
  if (exchange_.client_left()) {
    CancelEngineRequest();
  }
  if (job_->request.stream) {
    co_await Stream();
  } else {
    co_await AnswerWhole();
  }
  Finish();
}

asio::awaitable<bool> Generation::Wait(double seconds) {
  if (!mailbox_->empty()) {
    co_return false;
  }
  if (seconds > 0) {
    timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(seconds)));
  } else {
    timer_.expires_at(std::chrono::steady_clock::time_point::max());
  }
  const auto [cancelled] = co_await timer_.async_wait(kAwait);
  co_return !cancelled;
}

void Generation::Account(const News& news) {
  const OutputEvent& event = news.event;
  facts_.stats = event.stats;
  if (!event.tokens.empty()) {
    if (last_token_ > 0) {
      facts_.inter_token_seconds.push_back(news.time - last_token_);
    }
    last_token_ = news.time;
  }
  if (event.finish != FinishReason::kNone) {
    facts_.reason = event.finish;
    failure_ = event.error;
    facts_.e2e_seconds = news.time - arrived_;
  }
}

// Why an answer ends that neither stopped nor reached its length.
ApiError Generation::EndError() const {
  if (overflowed_) {
    return Unavailable("slow_reader", "The client did not read its stream fast enough.");
  }
  if (facts_.reason == FinishReason::kCancelled) {
    return Unavailable("shutting_down", "The server is shutting down.");
  }
  return Failed(failure_);
}

asio::awaitable<void> Generation::AnswerWhole() {
  std::string text;
  while (facts_.reason == FinishReason::kNone) {
    co_await Wait(0);
    const std::vector<News> taken = mailbox_->Take();
    for (const News& news : taken) {
      Account(news);
      text += news.event.text;
    }
  }
  HttpResponse response;
  if (facts_.reason == FinishReason::kStop || facts_.reason == FinishReason::kLength) {
    response.body = AnswerBody(head_, text, facts_.reason, facts_.stats);
  } else {
    response = ErrorReply(EndError());
  }
  co_await exchange_.Reply(response);
}

std::string Generation::StreamEvents(const std::vector<News>& taken) {
  std::string out;
  for (const News& news : taken) {
    Account(news);
    // A chat's first chunk comes with the first token, also while its text is held back: what
    // measures the time to the first token looks for it.
    const bool answered =
        facts_.reason != FinishReason::kCancelled && facts_.reason != FinishReason::kError;
    if (!news.event.text.empty() || (head_.chat && !role_sent_ && answered)) {
      out += TextEvent(head_, news.event.text, !role_sent_);
      role_sent_ = true;
    }
  }
  return out;
}

asio::awaitable<void> Generation::Stream() {
  HttpResponse response;
  response.content_type = "text/event-stream; charset=utf-8";
  response.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  co_await exchange_.BeginStream(response);
  while (facts_.reason == FinishReason::kNone) {
    const bool expired = co_await Wait(service_.options_.keep_alive_seconds);
    const std::vector<News> taken = mailbox_->Take();
    overflowed_ = overflowed_ || mailbox_->overflowed();
    std::string events = StreamEvents(taken);
    if (expired && taken.empty()) {
      events = kKeepAliveComment;
    }
    if (!exchange_.client_left() && facts_.reason == FinishReason::kNone) {
      co_await exchange_.WriteStream(events);
    } else if (!exchange_.client_left()) {
      std::string last = events;
      const bool whole = !overflowed_ && (facts_.reason == FinishReason::kStop ||
                                          facts_.reason == FinishReason::kLength);
      if (whole) {
        last += FinishEvent(head_, facts_.reason, facts_.stats);
        if (head_.include_usage) {
          last += UsageEvent(head_, facts_.stats);
        }
        last += kDoneEvent;
      } else {
        last += ErrorEvent(ErrorBody(EndError()));
      }
      co_await exchange_.WriteStream(last);
      co_await exchange_.EndStream(!whole);
    }
  }
}

void Generation::Finish() {
  facts_.model = job_->models->metric_names[static_cast<size_t>(job_->engine_model)];
  facts_.max_tokens = job_->request.max_tokens_given ? job_->request.sampling.max_tokens : -1;
  const RequestStats& stats = facts_.stats;
  const double rate = stats.generated_tokens > 1 && stats.decode_seconds > 0
                          ? static_cast<double>(stats.generated_tokens - 1) / stats.decode_seconds
                          : 0.0;
  spdlog::info("{} {}: prompt {} tokens, generated {}, ttft {:.3f} s, {:.1f} tok/s, {}{}",
               exchange_.head().request_id, job_->model_id, stats.prompt_tokens,
               stats.generated_tokens, stats.queue_seconds + stats.prefill_seconds, rate,
               FinishReasonName(facts_.reason),
               exchange_.client_left() ? " (the client left)" : "");
  service_.metrics_.ObserveRequest(facts_);
}

}  // namespace lserve
