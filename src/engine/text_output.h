// TextOutput: from sampled tokens to the text that a client may see: detokenised, cut at a stop
// string. Belongs to one request; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/stop_strings.h"
#include "text/tokenizer.h"

namespace lserve {

class TextOutput {
 public:
  // A null tokenizer gives no text. It must outlive this.
  TextOutput(const Tokenizer* tokenizer, std::vector<std::string> stop_strings);

  // The text that the token made certain; once stopped(): what precedes the stop string.
  std::string Push(int32_t token);

  // The text still held back, an unfinished character as U+FFFD. May find a stop string yet.
  std::string Finish();

  bool stopped() const { return matcher_.matched(); }

 private:
  std::optional<StreamDecoder> decoder_;
  StopMatcher matcher_;
};

}  // namespace lserve
