#include "engine/text_output.h"

#include <utility>

namespace lserve {

TextOutput::TextOutput(const Tokenizer* tokenizer, std::vector<std::string> stop_strings)
    : matcher_(std::move(stop_strings)) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer);
}

std::string TextOutput::Push(int32_t token) {
  return decoder_.has_value() ? matcher_.Push(decoder_->Push(token)) : "";
}

std::string TextOutput::Finish() {
  std::string text;
  if (decoder_.has_value() && !matcher_.matched()) text = matcher_.Push(decoder_->Finish());
  return text + matcher_.Finish();
}

}  // namespace lserve
