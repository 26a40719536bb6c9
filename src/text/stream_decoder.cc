#include "text/tokenizer.h"
#include "text/utf8.h"

namespace lserve {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special, bool continues_text)
    : tokenizer_(&tokenizer),
      skip_special_(skip_special),
      strip_left_(continues_text ? 0 : tokenizer.decoder_.strip_count()) {}

std::string StreamDecoder::Push(int32_t token) {
  std::string out;
  if (token < 0 || token >= tokenizer_->vocab_size() ||
      (skip_special_ && tokenizer_->IsSpecial(token))) {
    return out;
  }
  const TokenDecoder::Piece& piece = tokenizer_->pieces_[static_cast<size_t>(token)];
  if (!piece.known) {
    return out;
  }
  if (tokenizer_->decoder_.byte_level() || piece.byte_fallback) {
    pending_ += piece.bytes;
    EmitPending(/*final=*/false, &out);
  } else {
    EmitPending(/*final=*/true, &out);
    Emit(piece.bytes, &out);
  }
  if (tokenizer_->decoder_.first_piece_only()) {
    strip_left_ = 0;
  }
  return out;
}

std::string StreamDecoder::Finish() {
  std::string out;
  EmitPending(/*final=*/true, &out);
  return out;
}

void StreamDecoder::EmitPending(bool final, std::string* out) {
  std::string_view rest = pending_;
  while (!rest.empty()) {
    Utf8Unit unit = NextUtf8Unit(rest);
    if (unit.form == Utf8Form::kIncomplete && !final) {
      break;
    }
    if (unit.form == Utf8Form::kValid) {
      Emit(rest.substr(0, unit.length), out);
    } else {
      if (!tokenizer_->decoder_.byte_level()) {
        unit.length = 1;  // byte fallback: one replacement a byte
      }
      Emit(kReplacementCharacter, out);
    }
    rest.remove_prefix(unit.length);
  }
  pending_ = std::string(rest);
}

void StreamDecoder::Emit(std::string_view text, std::string* out) {
  const std::string& strip = tokenizer_->decoder_.strip_character();
  while (strip_left_ > 0 && !text.empty()) {
    if (!text.starts_with(strip)) {
      strip_left_ = 0;
      break;
    }
    text.remove_prefix(strip.size());
    --strip_left_;
  }
  out->append(text);
}

}  // namespace lserve
