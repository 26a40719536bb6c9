// OpenAI request bodies: JSON text to checked values. Pure functions, thread-safe.
// What is wrong is an ApiError that names the field; fields nobody knows are ignored, as clients
// send new ones all the time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/api_error.h"
#include "text/chat_template.h"

namespace lserve {

// The prompt of a completion or of /tokenize: text or token ids, or the messages of a chat.
using Prompt = std::variant<std::string, std::vector<int32_t>, std::vector<ChatMessage>>;

struct GenerationRequest {
  std::string model;  // empty: the first served
  Prompt prompt;
  SamplingParams sampling;  // max_tokens -1: what the context leaves
  bool max_tokens_given = false;
  bool stream = false;
  bool include_usage = false;  // stream_options.include_usage

  bool chat() const { return std::holds_alternative<std::vector<ChatMessage>>(prompt); }
  const char* prompt_field() const { return chat() ? "messages" : "prompt"; }
};

struct TokenizeRequest {
  std::string model;
  Prompt prompt;  // text or messages
  bool add_special_tokens = true;
  bool add_generation_prompt = true;
  bool return_token_strings = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

// The body as one JSON object. Errors (400): not UTF-8, not JSON, deeper than 64 levels, no object,
// more than max_values values (a body of 64 MiB could else grow to gigabytes of parsed values).
std::optional<ApiError> ParseBody(std::string_view body, int64_t max_values, Json* out);

// `defaults` is the sampling where a request does not say.
// `body` is an object and is consumed (long strings are moved out). On an error `out` is unusable.
std::optional<ApiError> ParseCompletionRequest(Json body, const SamplingParams& defaults,
                                               GenerationRequest* out);
std::optional<ApiError> ParseChatRequest(Json body, const SamplingParams& defaults,
                                         GenerationRequest* out);
std::optional<ApiError> ParseTokenizeRequest(Json body, TokenizeRequest* out);
std::optional<ApiError> ParseDetokenizeRequest(Json body, DetokenizeRequest* out);

}  // namespace lserve
