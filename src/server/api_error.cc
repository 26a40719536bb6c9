#include "server/api_error.h"

#include <fmt/format.h>

#include "base/json.h"

namespace lserve {
namespace {

constexpr size_t kMaxMessageBytes = 1000;

// The longest prefix of at most max_bytes that does not end inside a code point.
std::string_view Shortened(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) {
    return text;
  }
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {
    --end;
  }
  return text.substr(0, end);
}

OrderedJson TextOrNull(const std::string& text) {
  return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
}

}  // namespace

ApiError BadRequest(std::string_view param, std::string message) {
  ApiError error;
  error.message = std::move(message);
  error.param = std::string(param);
  return error;
}

ApiError Unsupported(std::string_view param, std::string message) {
  ApiError error = BadRequest(param, std::move(message));
  error.code = "unsupported_parameter";
  return error;
}

ApiError ContextLengthExceeded(std::string_view param, int64_t context_tokens,
                               int64_t prompt_tokens, int64_t completion_tokens, bool at_least) {
  // OpenAI's own wording: agents recognise an overflow by it.
  std::string message;
  if (completion_tokens > 0 && prompt_tokens < context_tokens) {
    message = fmt::format(
        "This model's maximum context length is {} tokens. However, you requested {} tokens ({} "
        "in the {}, {} in the completion). Please reduce the length of the {} or completion.",
        context_tokens, prompt_tokens + completion_tokens, prompt_tokens, param, completion_tokens,
        param);
  } else {
    message = fmt::format(
        "This model's maximum context length is {} tokens. However, your {} resulted in {}{} "
        "tokens. Please reduce the length of the {}.",
        context_tokens, param, at_least ? "at least " : "", prompt_tokens, param);
  }
  ApiError error = BadRequest(param, std::move(message));
  error.code = "context_length_exceeded";
  error.context_tokens = context_tokens;
  error.prompt_tokens = prompt_tokens;
  return error;
}

ApiError ModelNotFound(std::string_view model) {
  ApiError error =
      BadRequest("model", fmt::format("The model `{}` does not exist.", Shortened(model, 200)));
  error.http_status = 404;
  error.code = "model_not_found";
  return error;
}

ApiError RouteNotFound(std::string_view path) {
  ApiError error = BadRequest("", fmt::format("There is nothing at {}.", Shortened(path, 200)));
  error.http_status = 404;
  error.code = "not_found";
  return error;
}

ApiError MethodNotAllowed(std::string_view method, std::string_view path) {
  ApiError error = BadRequest(
      "", fmt::format("{} is not allowed on {}.", Shortened(method, 32), Shortened(path, 200)));
  error.http_status = 405;
  error.code = "method_not_allowed";
  return error;
}

ApiError InvalidApiKey(bool given) {
  ApiError error = BadRequest("", given ? "Incorrect API key provided."
                                        : "You didn't provide an API key: send it in the "
                                          "Authorization header as \"Bearer KEY\".");
  error.http_status = 401;
  error.code = "invalid_api_key";
  return error;
}

ApiError BodyTooLarge(int64_t limit_bytes) {
  ApiError error =
      BadRequest("", fmt::format("The request body is larger than {} bytes.", limit_bytes));
  error.http_status = 413;
  error.code = "request_too_large";
  return error;
}

ApiError HeaderTooLarge(int64_t limit_bytes) {
  ApiError error =
      BadRequest("", fmt::format("The request header is larger than {} bytes.", limit_bytes));
  error.http_status = 431;
  error.code = "header_too_large";
  return error;
}

ApiError QueueFull(std::string message) {
  ApiError error = BadRequest("", std::move(message));
  error.http_status = 429;
  error.type = "rate_limit_error";
  error.code = "queue_full";
  error.retry_after_seconds = 2;
  return error;
}

ApiError Unavailable(std::string_view code, std::string message) {
  ApiError error = BadRequest("", std::move(message));
  error.http_status = 503;
  error.type = "service_unavailable_error";
  error.code = std::string(code);
  error.retry_after_seconds = 5;
  return error;
}

ApiError Failed(const Status& why) {
  return Unavailable(
      "failed", fmt::format("The server has failed and must be restarted: {}.", why.message()));
}

ApiError ServerError(std::string message) {
  ApiError error = BadRequest("", std::move(message));
  error.http_status = 500;
  error.type = "server_error";
  error.code = "internal_error";
  return error;
}

ApiError FromSubmitStatus(const Status& status, std::string_view param) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument: return BadRequest("", status.message());
    case StatusCode::kResourceExhausted:
      // The engine says which of the two it is: a queue that others fill, or a cache that could
      // never hold this request.
      if (status.message().find("queue") != std::string::npos) {
        return QueueFull(status.message());
      } else {
        ApiError error = BadRequest(param, status.message());
        error.code = "kv_cache_too_small";
        return error;
      }
    case StatusCode::kFailedPrecondition: return Unavailable("unavailable", status.message());
    default: return ServerError(status.message());
  }
}

std::string ErrorBody(const ApiError& error) {
  OrderedJson body;
  body["message"] = std::string(Shortened(error.message, kMaxMessageBytes));
  body["type"] = error.type;
  body["param"] = TextOrNull(error.param);
  body["code"] = TextOrNull(error.code);
  if (error.context_tokens.has_value()) {
    body["n_ctx"] = *error.context_tokens;
  }
  if (error.prompt_tokens.has_value()) {
    body["n_prompt_tokens"] = *error.prompt_tokens;
  }
  return DumpJsonLine(OrderedJson{{"error", body}});
}

}  // namespace lserve
