#include "server/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <ctime>

#include "base/build_info.h"
#include "base/json.h"
#include "server/generation.h"
#include "server/openai_response.h"
#include "server/web_page.h"

namespace lserve {
namespace {

namespace asio = boost::asio;

constexpr std::string_view kModelsPrefix = "/v1/models/";
constexpr size_t kShortBodyBytes = size_t{64} << 10;

struct Route {
  std::string_view path;
  bool post;
};

constexpr std::array<Route, 9> kRoutes = {{{"/", false},
                                           {"/health", false},
                                           {"/metrics", false},
                                           {"/version", false},
                                           {"/v1/models", false},
                                           {"/v1/completions", true},
                                           {"/v1/chat/completions", true},
                                           {"/tokenize", true},
                                           {"/detokenize", true}}};

constexpr Route kOneModelRoute = {"/v1/models/{id}", false};

const Route* FindRoute(std::string_view path) {
  if (path.size() > kModelsPrefix.size() && path.starts_with(kModelsPrefix)) {
    return &kOneModelRoute;
  }
  const auto found = std::find_if(kRoutes.begin(), kRoutes.end(),
                                  [&](const Route& route) { return route.path == path; });
  return found == kRoutes.end() ? nullptr : &*found;
}

HttpResponse JsonReply(std::string body, int status = 200) {
  HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

}  // namespace

HttpResponse ErrorReply(const ApiError& error) {
  HttpResponse response = JsonReply(ErrorBody(error), error.http_status);
  if (error.retry_after_seconds > 0) {
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_seconds));
  }
  if (error.http_status == 401) {
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  return response;
}

const ServedModel* AttachedModels::Find(std::string_view id) const {
  if (id.empty()) {
    return &serving.models.front();
  }
  const auto found = std::find_if(serving.models.begin(), serving.models.end(),
                                  [&](const ServedModel& model) { return model.id == id; });
  return found == serving.models.end() ? nullptr : &*found;
}

int64_t AttachedModels::max_model_len(const ServedModel& model) const {
  return serving.engine->limits(model.engine_model).max_model_len;
}

Result<std::vector<int32_t>> AttachedModels::Encode(const Prompt& prompt, bool start) const {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    return *ids;
  }
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    return start ? serving.tokenizer->EncodeWithBos(*text) : serving.tokenizer->Encode(*text);
  }
  if (serving.chat_template == nullptr) {
    return Unimplemented("This model has no chat template; use /v1/completions.");
  }
  ASSIGN_OR_RETURN(
      const std::vector<TextRun> runs,
      serving.chat_template->Render(std::get<std::vector<ChatMessage>>(prompt), start));
  return serving.tokenizer->EncodeRuns(runs);
}

Service::Service(const ServerOptions& options)
    : options_(options),
      keys_(options.api_keys),
      short_workers_(std::make_unique<asio::thread_pool>(1)),
      long_workers_(
          std::make_unique<asio::thread_pool>(static_cast<size_t>(options.tokenizer_threads))) {}

Service::~Service() { StopThreads(); }

void Service::StopThreads() {
  for (auto* pool : {&short_workers_, &long_workers_}) {
    if (*pool != nullptr) {
      (*pool)->stop();
      (*pool)->join();
      pool->reset();
    }
  }
}

Status Service::Attach(Serving serving) {
  CHECK(serving.engine != nullptr && serving.tokenizer != nullptr);
  if (serving.models.empty()) {
    return InvalidArgument("no model names to serve");
  }
  auto attached = std::make_shared<AttachedModels>();
  attached->metric_names.resize(static_cast<size_t>(serving.engine->num_models()));
  int64_t longest_context = 0;
  for (const ServedModel& model : serving.models) {
    if (model.engine_model < 0 || model.engine_model >= serving.engine->num_models()) {
      return InvalidArgument("model name {} stands for model {}, but there are {}", model.id,
                             model.engine_model, serving.engine->num_models());
    }
    std::string& name = attached->metric_names[static_cast<size_t>(model.engine_model)];
    if (name.empty()) {
      name = model.id;
      metrics_.AddModel(name);
    }
    longest_context =
        std::max(longest_context, serving.engine->limits(model.engine_model).max_model_len);
  }
  metrics_.SetSettings(serving.settings);
  for (int32_t id = 0; id < serving.tokenizer->vocab_size(); ++id) {
    const std::string text = serving.tokenizer->Decode(std::span(&id, 1), false);
    // One more for a leading space that SentencePiece-style decoders drop.
    attached->max_token_bytes = std::max(attached->max_token_bytes, text.size() + 1);
  }
  // Room for any prompt of token ids that is not hopeless, and for all else a request may hold.
  attached->max_json_values = 4 * longest_context + 65536;
  attached->created = std::time(nullptr);
  attached->serving = std::move(serving);
  const std::lock_guard lock(mutex_);
  attached_ = std::move(attached);
  if (state_ == State::kLoading) {
    state_ = State::kReady;
  }
  return OkStatus();
}

void Service::Fail(const Status& why) {
  const std::lock_guard lock(mutex_);
  state_ = State::kFailed;
  failure_ = why;
}

void Service::BeginDrain() {
  const std::lock_guard lock(mutex_);
  if (state_ != State::kFailed) {
    state_ = State::kDraining;
  }
}

std::shared_ptr<const AttachedModels> Service::attached() const {
  const std::lock_guard lock(mutex_);
  return attached_;
}

Service::State Service::state() const {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kReady && !attached_->serving.engine->health().ok()) {
    return State::kFailed;
  }
  return state_;
}

Status Service::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_.ok() && attached_ != nullptr ? attached_->serving.engine->health() : failure_;
}

asio::any_io_executor Service::WorkerFor(size_t body_bytes) {
  return body_bytes <= kShortBodyBytes ? short_workers_->get_executor()
                                       : long_workers_->get_executor();
}

std::optional<HttpResponse> Service::Precheck(const HttpHead& head) {
  if (head.method == "OPTIONS" && !options_.allowed_origins.empty()) {
    HttpResponse preflight;  // browsers send it without the key
    preflight.status = 204;
    preflight.content_type.clear();
    preflight.headers = {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                         {"Access-Control-Allow-Headers", "Authorization, Content-Type"},
                         {"Access-Control-Max-Age", "600"}};
    return preflight;
  }
  // The page holds nothing to protect, and asks for the key itself.
  const bool open = head.path == "/health" || head.path == "/";
  if (!open && !keys_.Accepts(head.authorization)) {
    return ErrorReply(InvalidApiKey(!head.authorization.empty()));
  }
  const Route* route = FindRoute(head.path);
  if (route == nullptr) {
    return ErrorReply(RouteNotFound(head.path));
  }
  const bool allowed =
      route->post ? head.method == "POST" : head.method == "GET" || head.method == "HEAD";
  if (!allowed) {
    HttpResponse response = ErrorReply(MethodNotAllowed(head.method, head.path));
    response.headers.emplace_back("Allow", route->post ? "POST" : "GET, HEAD");
    return response;
  }
  if (route->post || head.path.starts_with("/v1/")) {
    switch (state()) {
      case State::kReady: break;
      case State::kLoading:
        return ErrorReply(Unavailable("loading", "The model is still loading."));
      case State::kDraining:
        if (route->post) {
          return ErrorReply(Unavailable("shutting_down", "The server is shutting down."));
        }
        break;
      case State::kFailed: return ErrorReply(Failed(failure()));
    }
    if (attached() == nullptr) {  // draining before anything was loaded
      return ErrorReply(Unavailable("shutting_down", "The server is shutting down."));
    }
  }
  return std::nullopt;
}

std::vector<std::pair<std::string, std::string>> Service::CommonHeaders(const HttpHead& head) {
  for (const std::string& allowed : options_.allowed_origins) {
    if (allowed == "*") {
      return {{"Access-Control-Allow-Origin", "*"},
              {"Access-Control-Expose-Headers", "x-request-id"}};
    }
    if (allowed == head.origin) {
      return {{"Access-Control-Allow-Origin", allowed},
              {"Access-Control-Expose-Headers", "x-request-id"},
              {"Vary", "Origin"}};
    }
  }
  return {};
}

void Service::OnReply(const HttpHead& head, int status, double seconds) {
  const Route* route = FindRoute(head.path);
  constexpr std::array<std::string_view, 4> kMethods = {"GET", "HEAD", "POST", "OPTIONS"};
  const auto method = std::find(kMethods.begin(), kMethods.end(), head.method);
  metrics_.ObserveHttp(method == kMethods.end() ? "other" : *method,
                       route == nullptr ? "other" : route->path, status, seconds);
}

HttpResponse Service::Health() const {
  switch (state()) {
    case State::kReady: return JsonReply(R"({"status":"ok"})");
    case State::kLoading: return JsonReply(R"({"status":"loading"})", 503);
    case State::kDraining: return JsonReply(R"({"status":"draining"})", 503);
    case State::kFailed: break;
  }
  const OrderedJson body = {{"status", "error"}, {"error", failure().message()}};
  return JsonReply(DumpJsonLine(body), 503);
}

HttpResponse Service::Models(std::string_view path) const {
  const auto models = attached();
  std::vector<ModelCard> cards;
  for (const ServedModel& model : models->serving.models) {
    cards.push_back({model.id, models->created, models->max_model_len(model)});
  }
  if (!path.starts_with(kModelsPrefix)) {
    return JsonReply(ModelListBody(cards));
  }
  const std::string_view id = path.substr(kModelsPrefix.size());
  const auto found = std::find_if(cards.begin(), cards.end(),
                                  [&](const ModelCard& card) { return card.id == id; });
  return found == cards.end() ? ErrorReply(ModelNotFound(id)) : JsonReply(ModelBody(*found));
}

HttpResponse Service::Get(std::string_view path) const {
  if (path == "/health") {
    return Health();
  }
  if (path == "/version") {
    return JsonReply(
        DumpJsonLine(OrderedJson{{"version", BuildVersion()}, {"commit", BuildCommit()}}));
  }
  if (path == "/metrics") {
    const auto models = attached();
    HttpResponse response;
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = models == nullptr ? metrics_.Scrape(nullptr, {}, connection_count_())
                                      : metrics_.Scrape(models->serving.engine,
                                                        models->metric_names, connection_count_());
    return response;
  }
  if (path == "/") {
    HttpResponse response;
    response.content_type = "text/html; charset=utf-8";
    response.headers = {{"Cache-Control", "no-cache"},
                        {"Content-Security-Policy",
                         "default-src 'none'; style-src 'unsafe-inline'; script-src "
                         "'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
                         "form-action 'none'; frame-ancestors 'none'"}};
    response.body = WebPage();
    return response;
  }
  return Models(path);
}

HttpResponse Service::Tokenize(std::string body) const {
  const auto models = attached();
  Json json;
  TokenizeRequest request;
  std::optional<ApiError> error = ParseBody(body, models->max_json_values, &json);
  body = std::string();
  if (!error) {
    error = ParseTokenizeRequest(std::move(json), &request);
  }
  if (error) {
    return ErrorReply(*error);
  }
  const ServedModel* model = models->Find(request.model);
  if (model == nullptr) {
    return ErrorReply(ModelNotFound(request.model));
  }
  const bool chat = std::holds_alternative<std::vector<ChatMessage>>(request.prompt);
  const Result<std::vector<int32_t>> tokens = models->Encode(
      request.prompt, chat ? request.add_generation_prompt : request.add_special_tokens);
  if (!tokens.ok()) {
    return ErrorReply(BadRequest(chat ? "messages" : "prompt", tokens.status().message()));
  }
  OrderedJson answer;
  answer["count"] = tokens->size();
  answer["max_model_len"] = models->max_model_len(*model);
  answer["tokens"] = *tokens;
  answer["token_strs"] = nullptr;
  if (request.return_token_strings) {
    OrderedJson strings = OrderedJson::array();
    for (const int32_t& token : *tokens) {
      strings.push_back(models->serving.tokenizer->Decode(std::span(&token, 1), false));
    }
    answer["token_strs"] = std::move(strings);
  }
  return JsonReply(DumpJsonLine(answer));
}

HttpResponse Service::Detokenize(std::string body) const {
  const auto models = attached();
  Json json;
  DetokenizeRequest request;
  std::optional<ApiError> error = ParseBody(body, models->max_json_values, &json);
  if (!error) {
    error = ParseDetokenizeRequest(std::move(json), &request);
  }
  if (error) {
    return ErrorReply(*error);
  }
  if (models->Find(request.model) == nullptr) {
    return ErrorReply(ModelNotFound(request.model));
  }
  const int32_t vocab_size = models->serving.tokenizer->vocab_size();
  for (size_t i = 0; i < request.tokens.size(); ++i) {
    if (request.tokens[i] >= vocab_size) {
      return ErrorReply(
          BadRequest("tokens", fmt::format("tokens[{}] is {}, but the vocabulary has {} tokens.", i,
                                           request.tokens[i], vocab_size)));
    }
  }
  return JsonReply(DumpJsonLine(
      OrderedJson{{"prompt", models->serving.tokenizer->Decode(request.tokens, false)}}));
}

asio::awaitable<void> Service::Handle(HttpExchange& exchange) {
  const std::string& path = exchange.head().path;
  if (path == "/v1/completions" || path == "/v1/chat/completions") {
    Generation generation(*this, exchange, path == "/v1/chat/completions");
    co_await generation.Run();
    co_return;
  }
  if (path == "/tokenize" || path == "/detokenize") {
    const bool tokenize = path == "/tokenize";
    const size_t bytes = exchange.body().size();
    // Named: g++ 12 destroys closures that are temporaries of a co_await expression twice.
    auto work = [this, tokenize,
                 body = std::move(exchange.body())]() mutable -> asio::awaitable<HttpResponse> {
      co_return tokenize ? Tokenize(std::move(body)) : Detokenize(std::move(body));
    };
    const HttpResponse response =
        co_await asio::co_spawn(WorkerFor(bytes), std::move(work), asio::use_awaitable);
    co_await exchange.Reply(response);
    co_return;
  }
  const HttpResponse response = Get(path);
  co_await exchange.Reply(response);
}

}  // namespace lserve
