#include "server/openai_response.h"

#include <fmt/format.h>

namespace lserve {
namespace {

double Rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0.0; }

OrderedJson Envelope(const AnswerHead& head, const char* chat_object, const char* text_object) {
  OrderedJson json;
  json["id"] = head.id;
  json["object"] = head.chat ? chat_object : text_object;
  json["created"] = head.created;
  json["model"] = head.model;
  return json;
}

OrderedJson ChunkEnvelope(const AnswerHead& head) {
  return Envelope(head, "chat.completion.chunk", "text_completion");
}

OrderedJson FinishJson(FinishReason finish) {
  return finish == FinishReason::kNone ? OrderedJson(nullptr)
                                       : OrderedJson(FinishReasonName(finish));
}

std::string Event(const OrderedJson& json) { return "data: " + DumpJsonLine(json) + "\n\n"; }

// A chunk with one choice.
OrderedJson ChoiceChunk(const AnswerHead& head, OrderedJson delta, std::string_view text,
                        FinishReason finish) {
  OrderedJson json = ChunkEnvelope(head);
  OrderedJson choice;
  choice["index"] = 0;
  if (head.chat) {
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = FinishJson(finish);
  json["choices"] = OrderedJson::array({std::move(choice)});
  if (head.include_usage) {
    json["usage"] = nullptr;
  }
  return json;
}

OrderedJson CardJson(const ModelCard& card) {
  OrderedJson json;
  json["id"] = card.id;
  json["object"] = "model";
  json["created"] = card.created;
  json["owned_by"] = "lserve";
  json["max_model_len"] = card.max_model_len;
  return json;
}

}  // namespace

OrderedJson UsageJson(const RequestStats& stats) {
  OrderedJson json;
  json["prompt_tokens"] = stats.prompt_tokens;
  json["completion_tokens"] = stats.generated_tokens;
  json["total_tokens"] = stats.prompt_tokens + stats.generated_tokens;
  json["prompt_tokens_details"] = OrderedJson{{"cached_tokens", 0}};
  return json;
}

OrderedJson TimingsJson(const RequestStats& stats) {
  const auto prompt_n = static_cast<double>(stats.prompt_tokens);
  const double decode_steps =
      stats.generated_tokens > 1 ? static_cast<double>(stats.generated_tokens - 1) : 0.0;
  OrderedJson json;
  json["cache_n"] = 0;
  json["prompt_n"] = stats.prompt_tokens;
  json["prompt_ms"] = stats.prefill_seconds * 1e3;
  json["prompt_per_token_ms"] = Rate(stats.prefill_seconds * 1e3, prompt_n);
  json["prompt_per_second"] = Rate(prompt_n, stats.prefill_seconds);
  json["predicted_n"] = stats.generated_tokens;
  json["predicted_ms"] = stats.decode_seconds * 1e3;
  json["predicted_per_token_ms"] = Rate(stats.decode_seconds * 1e3, decode_steps);
  json["predicted_per_second"] = Rate(decode_steps, stats.decode_seconds);
  return json;
}

std::string AnswerBody(const AnswerHead& head, std::string_view text, FinishReason finish,
                       const RequestStats& stats) {
  OrderedJson json = Envelope(head, "chat.completion", "text_completion");
  OrderedJson choice;
  choice["index"] = 0;
  if (head.chat) {
    choice["message"] = OrderedJson{{"role", "assistant"}, {"content", text}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = FinishJson(finish);
  json["choices"] = OrderedJson::array({std::move(choice)});
  json["usage"] = UsageJson(stats);
  json["timings"] = TimingsJson(stats);
  json["kv_bytes"] = stats.kv_bytes;
  return DumpJsonLine(json);
}

std::string TextEvent(const AnswerHead& head, std::string_view text, bool first) {
  OrderedJson delta;
  if (first) {
    delta["role"] = "assistant";
  }
  delta["content"] = text;
  return Event(ChoiceChunk(head, std::move(delta), text, FinishReason::kNone));
}

std::string FinishEvent(const AnswerHead& head, FinishReason finish, const RequestStats& stats) {
  OrderedJson json = ChoiceChunk(head, OrderedJson::object(), "", finish);
  json["timings"] = TimingsJson(stats);
  json["kv_bytes"] = stats.kv_bytes;
  return Event(json);
}

std::string UsageEvent(const AnswerHead& head, const RequestStats& stats) {
  OrderedJson json = ChunkEnvelope(head);
  json["choices"] = OrderedJson::array();
  json["usage"] = UsageJson(stats);
  return Event(json);
}

std::string ErrorEvent(std::string_view error_body) {
  return fmt::format("data: {}\n\n", error_body);
}

std::string ModelBody(const ModelCard& card) { return DumpJsonLine(CardJson(card)); }

std::string ModelListBody(const std::vector<ModelCard>& cards) {
  OrderedJson data = OrderedJson::array();
  for (const ModelCard& card : cards) {
    data.push_back(CardJson(card));
  }
  return DumpJsonLine(OrderedJson{{"object", "list"}, {"data", std::move(data)}});
}

}  // namespace lserve
