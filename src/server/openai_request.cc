#include "server/openai_request.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "text/utf8.h"

namespace lserve {
namespace {

using MaybeError = std::optional<ApiError>;

constexpr int kMaxJsonDepth = 64;

#define RETURN_IF_API_ERROR(expr)    \
  do {                               \
    if (MaybeError error = (expr)) { \
      return error;                  \
    }                                \
  } while (false)

// A field that is there and not null: clients spell "not set" either way.
Json* FindSet(Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

MaybeError WrongType(std::string_view param, std::string_view expected, const Json& value) {
  return BadRequest(param, fmt::format("{} must be {}, not {}.", param, expected,
                                       value.is_number_float() ? "a fraction" : value.type_name()));
}

MaybeError ReadBool(Json& body, std::string_view key, bool* out) {
  if (const Json* value = FindSet(body, key)) {
    if (!value->is_boolean()) {
      return WrongType(key, "true or false", *value);
    }
    *out = value->get<bool>();
  }
  return std::nullopt;
}

MaybeError ReadString(Json& body, std::string_view key, std::string* out) {
  if (Json* value = FindSet(body, key)) {
    if (!value->is_string()) {
      return WrongType(key, "a string", *value);
    }
    *out = std::move(value->get_ref<std::string&>());
  }
  return std::nullopt;
}

// An integer; 3.0 counts as one, since languages with a single number type write it so.
std::optional<int64_t> AsInteger(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return std::nullopt;
    }
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) {
    return value.get<int64_t>();
  }
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) <= 9007199254740992.0 && std::trunc(number) == number) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;
}

MaybeError ReadInteger(Json& body, std::string_view key, int64_t low, int64_t high, int64_t* out,
                       bool* given = nullptr) {
  const Json* value = FindSet(body, key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_number()) {
    return WrongType(key, "an integer", *value);
  }
  const std::optional<int64_t> number = AsInteger(*value);
  if (!number.has_value() || *number < low || *number > high) {
    return BadRequest(key, fmt::format("{} must be an integer from {} to {}, not {}.", key, low,
                                       high, value->dump()));
  }
  *out = *number;
  if (given != nullptr) {
    *given = true;
  }
  return std::nullopt;
}

struct Range {
  double low;
  double high;
  bool low_included = true;

  bool Holds(double value) const {  // false for NaN
    return (low_included ? value >= low : value > low) && value <= high;
  }
};

constexpr Range kTemperatureRange{0.0, 2.0};
constexpr Range kTopPRange{0.0, 1.0, false};
constexpr Range kMinPRange{0.0, 1.0};
constexpr Range kRepetitionRange{0.0, 10.0, false};
constexpr Range kPenaltyRange{-2.0, 2.0};

MaybeError ReadNumber(Json& body, std::string_view key, Range range, double* out) {
  const Json* value = FindSet(body, key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_number()) {
    return WrongType(key, "a number", *value);
  }
  const double number = value->get<double>();
  if (!range.Holds(number)) {
    return BadRequest(key, fmt::format("{} must be {} {} and at most {}, not {}.", key,
                                       range.low_included ? "at least" : "above", range.low,
                                       range.high, value->dump()));
  }
  *out = number;
  return std::nullopt;
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

MaybeError ReadSeed(Json& body, uint64_t* out) {
  const Json* value = FindSet(body, "seed");
  if (value == nullptr) {
    *out = RandomSeed();
    return std::nullopt;
  }
  if (value->is_number_unsigned()) {
    *out = value->get<uint64_t>();
    return std::nullopt;
  }
  int64_t number = 0;
  RETURN_IF_API_ERROR(ReadInteger(body, "seed", std::numeric_limits<int64_t>::min(),
                                  std::numeric_limits<int64_t>::max(), &number));
  *out = static_cast<uint64_t>(number);
  return std::nullopt;
}

MaybeError AddStop(Json& value, std::vector<std::string>* out) {
  if (!value.is_string()) {
    return WrongType("stop", "a string or a list of strings", value);
  }
  std::string text = std::move(value.get_ref<std::string&>());
  if (text.empty() || text.size() > static_cast<size_t>(kMaxStopStringBytes)) {
    return BadRequest("stop", fmt::format("A stop string must have 1 to {} bytes, not {}.",
                                          kMaxStopStringBytes, text.size()));
  }
  out->push_back(std::move(text));
  return std::nullopt;
}

MaybeError ReadStop(Json& body, std::vector<std::string>* out) {
  Json* value = FindSet(body, "stop");
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_array()) {
    return AddStop(*value, out);
  }
  if (value->size() > static_cast<size_t>(kMaxStopStrings)) {
    return BadRequest("stop", fmt::format("stop may hold at most {} strings, not {}.",
                                          kMaxStopStrings, value->size()));
  }
  for (Json& text : *value) {
    RETURN_IF_API_ERROR(AddStop(text, out));
  }
  return std::nullopt;
}

MaybeError ReadTokenIds(const Json& list, std::string_view param, std::vector<int32_t>* out) {
  out->reserve(list.size());
  for (const Json& value : list) {
    const std::optional<int64_t> id = value.is_number() ? AsInteger(value) : std::nullopt;
    if (!id.has_value() || *id < 0 || *id > std::numeric_limits<int32_t>::max()) {
      std::string shown = value.is_number() ? value.dump() : value.type_name();
      return BadRequest(
          param, fmt::format("{}[{}] must be a token id, not {}.", param, out->size(), shown));
    }
    out->push_back(static_cast<int32_t>(*id));
  }
  return std::nullopt;
}

MaybeError ReadStopTokenIds(Json& body, std::vector<int32_t>* out) {
  const Json* value = FindSet(body, "stop_token_ids");
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_array()) {
    return WrongType("stop_token_ids", "a list of token ids", *value);
  }
  if (value->size() > static_cast<size_t>(kMaxStopTokenIds)) {
    return BadRequest("stop_token_ids", fmt::format("stop_token_ids may hold at most {} ids, not "
                                                    "{}.",
                                                    kMaxStopTokenIds, value->size()));
  }
  return ReadTokenIds(*value, "stop_token_ids", out);
}

// A field whose only accepted values mean "no": anything else would be silently ignored work.
bool MeansNo(std::string_view key, const Json& value) {
  if (key == "n" || key == "best_of") {
    return value.is_number() && AsInteger(value) == 1;
  }
  if (key == "top_logprobs") {
    return value.is_number() && AsInteger(value) == 0;
  }
  if (key == "tool_choice" || key == "function_call") {
    return value.is_string() && value.get_ref<const std::string&>() == "none";
  }
  if (key == "response_format") {
    const Json* type = FindKey(value, "type");
    return type != nullptr && *type == "text";
  }
  if (key == "suffix") {
    return value.is_string() && value.get_ref<const std::string&>().empty();
  }
  if (key == "tools" || key == "functions" || key == "logit_bias") {
    return value.is_structured() && value.empty();
  }
  return value.is_boolean() && !value.get<bool>();  // logprobs, echo
}

MaybeError RefuseUnsupported(Json& body) {
  constexpr std::array<std::string_view, 12> kFields = {
      "n",     "best_of",     "logprobs",        "top_logprobs", "echo",      "suffix",
      "tools", "tool_choice", "response_format", "logit_bias",   "functions", "function_call"};
  for (const std::string_view key : kFields) {
    const Json* value = FindSet(body, key);
    if (value == nullptr || MeansNo(key, *value)) {
      continue;
    }
    if (key == "n" || key == "best_of") {
      return Unsupported(key, fmt::format("{} must be 1: one choice a request is supported.", key));
    }
    return Unsupported(key, fmt::format("{} is not supported by this server.", key));
  }
  return std::nullopt;
}

MaybeError ReadStreamOptions(Json& body, GenerationRequest* out) {
  Json* options = FindSet(body, "stream_options");
  if (options == nullptr) {
    return std::nullopt;
  }
  if (!options->is_object()) {
    return WrongType("stream_options", "an object", *options);
  }
  bool include_usage = false;
  if (MaybeError error = ReadBool(*options, "include_usage", &include_usage)) {
    error->param = "stream_options.include_usage";
    return error;
  }
  out->include_usage = include_usage && out->stream;
  return std::nullopt;
}

// What completions and chats share.
MaybeError ReadCommon(Json& body, const SamplingParams& defaults, GenerationRequest* out) {
  RETURN_IF_API_ERROR(ReadString(body, "model", &out->model));
  RETURN_IF_API_ERROR(RefuseUnsupported(body));
  SamplingParams& sampling = out->sampling;
  sampling = defaults;
  RETURN_IF_API_ERROR(ReadNumber(body, "temperature", kTemperatureRange, &sampling.temperature));
  RETURN_IF_API_ERROR(ReadNumber(body, "top_p", kTopPRange, &sampling.top_p));
  RETURN_IF_API_ERROR(ReadInteger(body, "top_k", -1, kMaxTopK, &sampling.top_k));
  RETURN_IF_API_ERROR(ReadNumber(body, "min_p", kMinPRange, &sampling.min_p));
  RETURN_IF_API_ERROR(
      ReadNumber(body, "repetition_penalty", kRepetitionRange, &sampling.repetition_penalty));
  RETURN_IF_API_ERROR(
      ReadNumber(body, "presence_penalty", kPenaltyRange, &sampling.presence_penalty));
  RETURN_IF_API_ERROR(
      ReadNumber(body, "frequency_penalty", kPenaltyRange, &sampling.frequency_penalty));
  RETURN_IF_API_ERROR(ReadSeed(body, &sampling.seed));
  RETURN_IF_API_ERROR(ReadBool(body, "ignore_eos", &sampling.ignore_eos));
  RETURN_IF_API_ERROR(ReadStop(body, &sampling.stop));
  RETURN_IF_API_ERROR(ReadStopTokenIds(body, &sampling.stop_token_ids));
  RETURN_IF_API_ERROR(ReadBool(body, "stream", &out->stream));
  return ReadStreamOptions(body, out);
}

constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();

MaybeError ReadMaxTokens(Json& body, std::string_view key, GenerationRequest* out) {
  return ReadInteger(body, key, 1, kMaxTokens, &out->sampling.max_tokens, &out->max_tokens_given);
}

// The text of a message's content: a string, or a list of text parts, which are joined.
MaybeError ReadContent(Json& content, const std::string& param, std::string* out) {
  if (content.is_string()) {
    *out = std::move(content.get_ref<std::string&>());
    return std::nullopt;
  }
  if (!content.is_array()) {
    return WrongType(param, "a string or a list of text parts", content);
  }
  for (size_t i = 0; i < content.size(); ++i) {
    Json& part = content[i];
    const std::string part_param = fmt::format("{}[{}]", param, i);
    if (part.is_string()) {
      out->append(part.get_ref<const std::string&>());
      continue;
    }
    if (!part.is_object()) {
      return WrongType(part_param, "an object", part);
    }
    const Json* type = FindSet(part, "type");
    if (type == nullptr || !type->is_string()) {
      return BadRequest(part_param + ".type", fmt::format("{}.type must be a string.", part_param));
    }
    if (type->get_ref<const std::string&>() != "text") {
      return Unsupported(part_param + ".type",
                         fmt::format("{}.type: only \"text\" is supported.", part_param));
    }
    const Json* text = FindSet(part, "text");
    if (text == nullptr || !text->is_string()) {
      return BadRequest(part_param + ".text", fmt::format("{}.text must be a string.", part_param));
    }
    out->append(text->get_ref<const std::string&>());
  }
  return std::nullopt;
}

MaybeError ReadMessage(Json& value, const std::string& param, ChatMessage* out) {
  if (!value.is_object()) {
    return WrongType(param, "an object", value);
  }
  const Json* role = FindSet(value, "role");
  if (role == nullptr || !role->is_string()) {
    return BadRequest(param + ".role", fmt::format("{}.role must be a string.", param));
  }
  out->role = role->get_ref<const std::string&>();
  if (out->role == "developer") {
    out->role = "system";  // OpenAI's newer name; no open model's template knows it
  } else if (out->role != "system" && out->role != "user" && out->role != "assistant" &&
             out->role != "tool" && out->role != "function") {
    return BadRequest(param + ".role", fmt::format("{}.role must be system, developer, user, "
                                                   "assistant or tool.",
                                                   param));
  }
  for (const char* key : {"tool_calls", "function_call"}) {
    const Json* call = FindSet(value, key);
    if (call != nullptr && !(call->is_array() && call->empty())) {
      return Unsupported(fmt::format("{}.{}", param, key),
                         fmt::format("{}.{}: tools are not supported by this server.", param, key));
    }
  }
  Json* content = FindSet(value, "content");
  if (content == nullptr) {
    if (out->role == "assistant") {
      return std::nullopt;  // an empty turn
    }
    return BadRequest(param + ".content", fmt::format("{}.content is missing.", param));
  }
  return ReadContent(*content, param + ".content", &out->content);
}

MaybeError ReadMessages(Json& body, Prompt* out) {
  Json* list = FindSet(body, "messages");
  if (list == nullptr) {
    return BadRequest("messages", "messages is missing.");
  }
  if (!list->is_array()) {
    return WrongType("messages", "a list of messages", *list);
  }
  if (list->empty()) {
    return BadRequest("messages", "messages is empty.");
  }
  std::vector<ChatMessage> messages(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    RETURN_IF_API_ERROR(ReadMessage((*list)[i], fmt::format("messages[{}]", i), &messages[i]));
  }
  *out = std::move(messages);
  return std::nullopt;
}

MaybeError ReadPrompt(Json& body, Prompt* out) {
  Json* value = FindSet(body, "prompt");
  if (value == nullptr) {
    return BadRequest("prompt", "prompt is missing.");
  }
  if (value->is_array()) {
    if (value->empty()) {
      return BadRequest("prompt", "prompt is empty.");
    }
    if (!value->front().is_number()) {
      if (value->size() > 1) {
        return Unsupported("prompt",
                           "prompt may hold one prompt only: a string, a list of one "
                           "string, or a list of token ids.");
      }
      Json only = std::move(value->front());
      *value = std::move(only);
    }
  }
  if (value->is_string()) {
    *out = std::move(value->get_ref<std::string&>());
    return std::nullopt;
  }
  if (!value->is_array()) {
    return WrongType("prompt", "a string, a list of one string, or a list of token ids", *value);
  }
  if (value->empty()) {
    return BadRequest("prompt", "prompt is empty.");
  }
  std::vector<int32_t> ids;
  RETURN_IF_API_ERROR(ReadTokenIds(*value, "prompt", &ids));
  *out = std::move(ids);
  return std::nullopt;
}

// An upper bound of the values in a JSON text: separators and openings outside of strings.
int64_t CountJsonValues(std::string_view text) {
  int64_t count = 1;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == ',' || c == '[' || c == '{') {
      ++count;
    }
  }
  return count;
}

}  // namespace

std::optional<ApiError> ParseBody(std::string_view body, int64_t max_values, Json* out) {
  if (!IsValidUtf8(body)) {
    return BadRequest("", "The request body is not valid UTF-8.");
  }
  if (CountJsonValues(body) > max_values) {
    return BadRequest("",
                      fmt::format("The request body holds more than {} JSON values.", max_values));
  }
  Result<Json> parsed = ParseJson(body, "The request body", kMaxJsonDepth);
  if (!parsed.ok()) {
    return BadRequest("", parsed.status().message());
  }
  if (!parsed->is_object()) {
    return BadRequest(
        "", fmt::format("The request body must be a JSON object, not {}.", parsed->type_name()));
  }
  *out = std::move(parsed).value();
  return std::nullopt;
}

std::optional<ApiError> ParseCompletionRequest(Json body, const SamplingParams& defaults,
                                               GenerationRequest* out) {
  RETURN_IF_API_ERROR(ReadCommon(body, defaults, out));
  out->sampling.max_tokens = 16;  // OpenAI's default of this route
  RETURN_IF_API_ERROR(ReadMaxTokens(body, "max_tokens", out));
  return ReadPrompt(body, &out->prompt);
}

std::optional<ApiError> ParseChatRequest(Json body, const SamplingParams& defaults,
                                         GenerationRequest* out) {
  RETURN_IF_API_ERROR(ReadCommon(body, defaults, out));
  RETURN_IF_API_ERROR(ReadMaxTokens(body, "max_tokens", out));
  RETURN_IF_API_ERROR(ReadMaxTokens(body, "max_completion_tokens", out));  // the newer name wins
  return ReadMessages(body, &out->prompt);
}

std::optional<ApiError> ParseTokenizeRequest(Json body, TokenizeRequest* out) {
  RETURN_IF_API_ERROR(ReadString(body, "model", &out->model));
  RETURN_IF_API_ERROR(ReadBool(body, "add_special_tokens", &out->add_special_tokens));
  RETURN_IF_API_ERROR(ReadBool(body, "add_generation_prompt", &out->add_generation_prompt));
  RETURN_IF_API_ERROR(ReadBool(body, "return_token_strs", &out->return_token_strings));
  if (FindSet(body, "messages") != nullptr) {
    return ReadMessages(body, &out->prompt);
  }
  const Json* prompt = FindSet(body, "prompt");
  if (prompt == nullptr) {
    return BadRequest("prompt", "prompt or messages is missing.");
  }
  if (!prompt->is_string()) {
    return WrongType("prompt", "a string", *prompt);
  }
  return ReadPrompt(body, &out->prompt);
}

std::optional<ApiError> ParseDetokenizeRequest(Json body, DetokenizeRequest* out) {
  RETURN_IF_API_ERROR(ReadString(body, "model", &out->model));
  const Json* tokens = FindSet(body, "tokens");
  if (tokens == nullptr) {
    return BadRequest("tokens", "tokens is missing.");
  }
  if (!tokens->is_array()) {
    return WrongType("tokens", "a list of token ids", *tokens);
  }
  return ReadTokenIds(*tokens, "tokens", &out->tokens);
}

}  // namespace lserve
