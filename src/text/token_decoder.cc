#include "text/token_decoder.h"

#include <limits>

#include "text/bpe.h"
#include "text/utf8.h"

namespace lserve {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  if (c >= 'A' && c <= 'F') {
    return c - 'A' + 10;
  }
  if (c >= 'a' && c <= 'f') {
    return c - 'a' + 10;
  }
  return -1;
}

}  // namespace

Result<TokenDecoder> TokenDecoder::FromJson(const Json& decoder) {
  TokenDecoder result;
  if (decoder.is_null()) {
    return Unimplemented("the tokenizer has no decoder, which is not supported");
  }
  RETURN_IF_ERROR(result.Add(decoder, 0));
  return result;
}

Status TokenDecoder::Add(const Json& decoder, int depth) {
  const Json* type = FindKey(decoder, "type");
  if (type == nullptr || !type->is_string() || depth > 4) {
    return InvalidArgument("the tokenizer has a decoder without a type, or nested too deep");
  }
  const auto& name = type->get_ref<const std::string&>();
  if (byte_level_ || (fused_ && name != "Strip" && name != "Fuse")) {
    return Unimplemented("the tokenizer's decoder has a \"{}\" after {}", name,
                         byte_level_ ? "ByteLevel" : "Fuse");
  }
  if (name == "Sequence") {
    const Json* parts = FindKey(decoder, "decoders");
    if (parts == nullptr || !parts->is_array()) {
      return InvalidArgument("the tokenizer's decoder Sequence has no \"decoders\" list");
    }
    for (const Json& part : *parts) {
      RETURN_IF_ERROR(Add(part, depth + 1));
    }
    return OkStatus();
  }
  if (name == "ByteLevel") {
    if (byte_fallback_ || !replacements_.empty()) {
      return Unimplemented("the tokenizer's decoder has a ByteLevel after other steps");
    }
    byte_level_ = true;
    return OkStatus();
  }
  if (name == "ByteFallback") {
    byte_fallback_ = true;
    return OkStatus();
  }
  if (name == "Fuse") {
    fused_ = true;
    return OkStatus();
  }
  if (name == "Replace") {
    const Json* pattern = FindKey(decoder, "pattern");
    const Json* literal = pattern == nullptr ? nullptr : FindKey(*pattern, "String");
    const Json* content = FindKey(decoder, "content");
    if (content == nullptr || !content->is_string()) {
      return InvalidArgument("the tokenizer's decoder Replace has no \"content\" text");
    }
    if (literal == nullptr || !literal->is_string() || *literal == "" || byte_fallback_) {
      return Unimplemented(
          "the tokenizer's decoder Replace has the pattern {}; supported is a "
          "String that is not empty, before ByteFallback",
          pattern ? pattern->dump() : "null");
    }
    replacements_.push_back({literal->get<std::string>(), content->get<std::string>()});
    return OkStatus();
  }
  if (name == "Strip") {
    const Json* content = FindKey(decoder, "content");
    const Json* start = FindKey(decoder, "start");
    const Json* stop = FindKey(decoder, "stop");
    if (content == nullptr || !content->is_string() || start == nullptr ||
        !start->is_number_unsigned() || *start > 1000) {
      return InvalidArgument("the tokenizer's decoder Strip is malformed: {}", decoder.dump());
    }
    if (!fused_ || (stop != nullptr && *stop != 0)) {
      return Unimplemented(
          "the tokenizer's decoder Strip is supported after Fuse and with "
          "stop 0 only: {}",
          decoder.dump());
    }
    strip_character_ = content->get<std::string>();
    strip_count_ = start->get<int>();
    return OkStatus();
  }
  if (name == "Metaspace") {
    const Json* replacement = FindKey(decoder, "replacement");
    const Json* scheme = FindKey(decoder, "prepend_scheme");
    const Json* prefix = FindKey(decoder, "add_prefix_space");
    if (replacement == nullptr || !replacement->is_string() || *replacement == "") {
      return InvalidArgument("the tokenizer's decoder Metaspace has no \"replacement\" text");
    }
    if (depth > 0) {
      return Unimplemented("the tokenizer's decoder has a Metaspace inside a Sequence");
    }
    replacements_.push_back({replacement->get<std::string>(), " "});
    const bool never = scheme != nullptr ? *scheme == "never" : prefix && *prefix == false;
    if (!never) {
      strip_character_ = std::string(1, ' ');
      strip_count_ = std::numeric_limits<int>::max();
      first_piece_only_ = true;
    }
    return OkStatus();
  }
  return Unimplemented("the tokenizer's decoder is of type \"{}\", which is not supported", name);
}

TokenDecoder::Piece TokenDecoder::MakePiece(std::string_view token) const {
  Piece piece;
  piece.known = true;
  if (byte_level_) {
    piece.bytes = ByteLevelToBytes(token).value_or(std::string(token));
    return piece;
  }
  piece.bytes = token;
  for (const Replacement& replacement : replacements_) {
    size_t at = 0;
    while ((at = piece.bytes.find(replacement.pattern, at)) != std::string::npos) {
      piece.bytes.replace(at, replacement.pattern.size(), replacement.content);
      at += replacement.content.size();
    }
  }
  const std::string& text = piece.bytes;
  if (byte_fallback_ && text.size() == 6 && text.starts_with("<0x") && text.ends_with(">") &&
      HexDigit(text[3]) >= 0 && HexDigit(text[4]) >= 0) {
    const int byte = HexDigit(text[3]) * 16 + HexDigit(text[4]);
    piece.bytes.assign(1, static_cast<char>(byte));
    piece.byte_fallback = true;
  }
  return piece;
}

}  // namespace lserve
