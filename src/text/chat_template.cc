#include "text/chat_template.h"

#include <array>
#include <optional>

#include "base/file.h"
#include "base/json.h"
#include "text/jinja_evaluator.h"
#include "text/jinja_parser.h"
#include "text/utf8.h"

namespace lserve {
namespace {

constexpr int64_t kMaxTemplateBytes = int64_t{1} << 20;
constexpr int64_t kMaxSteps = 10'000'000;
// A template may copy each message a number of times; what it makes of little input is bounded.
constexpr int64_t kBaseBytes = int64_t{64} << 20;
constexpr int64_t kBytesPerInputByte = 256;

// A token is written as its text or as an object with "content".
std::optional<std::string> TokenText(const Json* value) {
  if (value != nullptr && value->is_object()) {
    value = FindKey(*value, "content");
  }
  if (value == nullptr || !value->is_string()) {
    return std::nullopt;
  }
  return value->get<std::string>();
}

Result<std::string> TemplateOfConfig(const Json& config, const std::string& model_dir) {
  const Json* source = FindKey(config, "chat_template");
  if (source == nullptr || source->is_null()) {
    return NotFound("{} has no chat template", model_dir);
  }
  if (source->is_string()) {
    return source->get<std::string>();
  }
  if (source->is_array()) {
    for (const Json& entry : *source) {
      const Json* name = FindKey(entry, "name");
      const Json* text = FindKey(entry, "template");
      if (name != nullptr && *name == "default" && text != nullptr && text->is_string()) {
        return text->get<std::string>();
      }
    }
    return NotFound("{}: none of the named chat templates is called \"default\"", model_dir);
  }
  return InvalidArgument("{}: chat_template is neither text nor a list of named templates",
                         model_dir);
}

std::vector<TextRun> ToRuns(const MarkedString& text) {
  std::vector<TextRun> runs;
  size_t begin = 0;
  while (begin < text.size()) {
    const char mark = text.marks()[begin];
    const size_t end = std::min(text.marks().find(mark == '\0' ? '\1' : '\0', begin), text.size());
    runs.push_back({text.text().substr(begin, end - begin), mark == '\0'});
    begin = end;
  }
  return runs;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::Load(const std::string& model_dir) {
  Json config;
  const std::string config_path = JoinPath(model_dir, "tokenizer_config.json");
  if (FileExists(config_path)) {
    ASSIGN_OR_RETURN(config, ReadJsonFile(config_path));
  }
  std::string source;
  const std::string template_path = JoinPath(model_dir, "chat_template.jinja");
  if (FileExists(template_path)) {
    ASSIGN_OR_RETURN(source, ReadFile(template_path, kMaxTemplateBytes));
  } else {
    ASSIGN_OR_RETURN(source, TemplateOfConfig(config, model_dir));
  }
  auto parsed = Parse(source, TokenText(FindKey(config, "bos_token")).value_or(""),
                      TokenText(FindKey(config, "eos_token")).value_or(""));
  if (!parsed.ok()) {
    return parsed.status().Annotate(model_dir);
  }
  for (const char* name : {"unk_token", "pad_token"}) {
    if (const std::optional<std::string> token = TokenText(FindKey(config, name))) {
      parsed->tokens_.emplace_back(name, *token);
    }
  }
  return parsed;
}

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source, std::string bos_token,
                                         std::string eos_token) {
  if (source.size() > static_cast<size_t>(kMaxTemplateBytes)) {
    return InvalidArgument("the chat template has {} bytes, more than {}", source.size(),
                           kMaxTemplateBytes);
  }
  ChatTemplate result;
  ASSIGN_OR_RETURN(jinja::Body body, jinja::Parse(source));
  result.body_ = std::make_shared<const jinja::Body>(std::move(body));
  result.tokens_ = {{"bos_token", std::move(bos_token)}, {"eos_token", std::move(eos_token)}};
  return result;
}

Result<std::vector<TextRun>> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                  bool add_generation_prompt,
                                                  const std::tm* local_time) const {
  using jinja::Value;
  const auto from_user = [](const std::string& text) {
    return Value(MarkedString(IsValidUtf8(text) ? text : RepairUtf8(text), /*from_user=*/true));
  };
  jinja::List list;
  int64_t input_bytes = 0;
  for (const ChatMessage& message : messages) {
    input_bytes += static_cast<int64_t>(message.role.size() + message.content.size()) + 64;
    ASSIGN_OR_RETURN(Value value, Value::FromDict({{"role", from_user(message.role)},
                                                   {"content", from_user(message.content)}}));
    list.push_back(std::move(value));
  }
  ASSIGN_OR_RETURN(Value all, Value::FromList(std::move(list)));
  std::vector<std::pair<std::string, Value>> globals = {
      {"messages", std::move(all)},
      {"add_generation_prompt", Value(add_generation_prompt)},
      {"tools", Value(jinja::None{})},
      {"documents", Value(jinja::None{})}};
  for (const auto& [name, text] : tokens_) {
    globals.emplace_back(name, Value::Text(text));
  }
  std::tm now{};
  if (local_time == nullptr) {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
    local_time = &now;
  }
  jinja::Budget budget(kMaxSteps, kBaseBytes + kBytesPerInputByte * input_bytes);
  ASSIGN_OR_RETURN(const MarkedString text,
                   jinja::Evaluate(*body_, std::move(globals), *local_time, &budget));
  return ToRuns(text);
}

}  // namespace lserve
