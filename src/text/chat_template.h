// A model's chat template: a list of messages to prompt text. Immutable and thread-safe; copies
// share the parsed template.
#pragma once

#include <ctime>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja_ast.h"
#include "text/tokenizer.h"

namespace lserve {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  // Reads chat_template.jinja, or else tokenizer_config.json's chat_template: a string, or a list
  // of named templates of which "default" is taken. The special tokens come from
  // tokenizer_config.json. Errors: kNotFound (the folder has no template), kInvalidArgument
  // (malformed), kUnimplemented (outside the supported part of Jinja).
  static Result<ChatTemplate> Load(const std::string& model_dir);

  static Result<ChatTemplate> Parse(std::string_view source, std::string bos_token,
                                    std::string eos_token);

  // The prompt. Every byte that came out of a message is untrusted, all else trusted; neighbouring
  // runs differ in trust, and none is empty. Messages that are not UTF-8 are repaired with U+FFFD.
  // The template writes BOS itself, so nothing may be put before the runs. `local_time` is what
  // strftime_now prints; null: the system's local time.
  // Errors: kInvalidArgument (raise_exception, with its message; what the template cannot do with
  // these messages), kResourceExhausted (a limit on steps, text or recursion).
  Result<std::vector<TextRun>> Render(std::span<const ChatMessage> messages,
                                      bool add_generation_prompt,
                                      const std::tm* local_time = nullptr) const;

 private:
  ChatTemplate() = default;

  std::shared_ptr<const jinja::Body> body_;
  std::vector<std::pair<std::string, std::string>> tokens_;  // bos_token and so on
};

}  // namespace lserve
