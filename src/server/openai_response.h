// OpenAI response bodies and stream chunks as JSON text. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "engine/request.h"

namespace lserve {

// What all parts of one answer share.
struct AnswerHead {
  bool chat = false;
  bool include_usage = false;  // a stream then carries "usage": null until its last chunk
  std::string id;              // "chatcmpl-…" or "cmpl-…"
  int64_t created = 0;         // Unix seconds
  std::string model;           // as the client named it
};

// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}.
OrderedJson UsageJson(const RequestStats& stats);

// llama-server's names. prompt_ms: first chunk to first token. predicted_ms: first token to last,
// so the per-token figures divide by the tokens after the first; without one they are 0.
OrderedJson TimingsJson(const RequestStats& stats);

// The body of an answer that is not streamed; finish is kStop or kLength.
std::string AnswerBody(const AnswerHead& head, std::string_view text, FinishReason finish,
                       const RequestStats& stats);

// Server-sent events, "data: …\n\n" each. `first`: the first delta of a chat names the role.
std::string TextEvent(const AnswerHead& head, std::string_view text, bool first);
// The chunk with the finish reason, timings and kv_bytes; its delta (text) is empty.
std::string FinishEvent(const AnswerHead& head, FinishReason finish, const RequestStats& stats);
// The chunk that stream_options.include_usage asks for: no choices.
std::string UsageEvent(const AnswerHead& head, const RequestStats& stats);
// An error inside a stream; the connection closes after it.
std::string ErrorEvent(std::string_view error_body);

inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";
inline constexpr std::string_view kKeepAliveComment = ": keep-alive\n\n";

struct ModelCard {
  std::string id;
  int64_t created = 0;
  int64_t max_model_len = 0;
};
std::string ModelBody(const ModelCard& card);
std::string ModelListBody(const std::vector<ModelCard>& cards);

}  // namespace lserve
