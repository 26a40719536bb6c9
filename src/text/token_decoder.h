// The "decoder" of a tokenizer.json, compiled to one piece of bytes a token. Owned by the
// Tokenizer; immutable once loaded; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

class TokenDecoder {
 public:
  struct Piece {
    std::string bytes;
    bool known = false;          // some token has this id
    bool byte_fallback = false;  // one byte of a character that the vocabulary lacks
  };

  // Types: ByteLevel, Metaspace, and Sequence of Replace (literal), ByteFallback, Fuse, Strip (of
  // the start, after Fuse). Errors: kUnimplemented naming the type, kInvalidArgument.
  static Result<TokenDecoder> FromJson(const Json& decoder);

  // What a token says. `token` is its text in tokenizer.json.
  Piece MakePiece(std::string_view token) const;

  // Byte-level: pieces join to one byte string, in which a maximal ill-formed subpart becomes one
  // U+FFFD. Else pieces are text, and each byte-fallback byte that is part of no character becomes
  // one U+FFFD.
  bool byte_level() const { return byte_level_; }
  // The character that is removed from the front of the decoded text, at most strip_count times,
  // and from the first token's piece alone if first_piece_only.
  const std::string& strip_character() const { return strip_character_; }
  int strip_count() const { return strip_count_; }
  bool first_piece_only() const { return first_piece_only_; }

 private:
  struct Replacement {
    std::string pattern;
    std::string content;
  };

  Status Add(const Json& decoder, int depth);

  std::vector<Replacement> replacements_;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
  std::string strip_character_;
  int strip_count_ = 0;
  bool first_piece_only_ = false;
};

}  // namespace lserve
