// ApiError: what a client gets instead of an answer, in OpenAI's shape: an HTTP status and
// {"error": {"message", "type", "param", "code"}}. Values and free functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lserve {

struct ApiError {
  int http_status = 400;
  std::string type = "invalid_request_error";
  std::string message;
  std::string param;  // the field that is wrong; empty: null on the wire
  std::string code;   // empty: null on the wire
  // Set under code context_length_exceeded: both numbers also stand as fields of the error.
  std::optional<int64_t> context_tokens;
  std::optional<int64_t> prompt_tokens;
  int retry_after_seconds = 0;  // 0: no Retry-After header
};

// 400, naming the field (empty: none).
ApiError BadRequest(std::string_view param, std::string message);
// 400: well-formed, but not offered by this program.
ApiError Unsupported(std::string_view param, std::string message);
// 400 context_length_exceeded. param: "messages" or "prompt". completion_tokens: what the client
// asked for, 0 if it did not say. at_least: prompt_tokens is a lower bound (nothing was tokenised).
ApiError ContextLengthExceeded(std::string_view param, int64_t context_tokens,
                               int64_t prompt_tokens, int64_t completion_tokens, bool at_least);
ApiError ModelNotFound(std::string_view model);                             // 404
ApiError RouteNotFound(std::string_view path);                              // 404
ApiError MethodNotAllowed(std::string_view method, std::string_view path);  // 405
ApiError InvalidApiKey(bool given);                                         // 401
ApiError BodyTooLarge(int64_t limit_bytes);                                 // 413
ApiError HeaderTooLarge(int64_t limit_bytes);                               // 431
ApiError QueueFull(std::string message);                                    // 429, Retry-After
ApiError Unavailable(std::string_view code, std::string message);           // 503, Retry-After
ApiError Failed(const Status& why);                                         // 503
ApiError ServerError(std::string message);                                  // 500

// What Engine::Submit answered, as an error for the client. param: the prompt's field.
ApiError FromSubmitStatus(const Status& status, std::string_view param);

// The JSON body, one line. The message is cut at 1000 bytes: it may quote the client's own text.
std::string ErrorBody(const ApiError& error);

}  // namespace lserve
