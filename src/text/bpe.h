// Byte-pair encoding: the vocabulary and merges of a tokenizer.json's "model" (Sennrich et al.,
// ACL 2016). Owned by the Tokenizer; immutable once loaded; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// Lookup by string_view without a temporary string.
struct TokenHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using TokenMap = std::unordered_map<std::string, int32_t, TokenHash, std::equal_to<>>;

// The bytes that a token of a byte-level vocabulary stands for ("Ġthe" -> " the"), where every
// byte is written as one printable character (Radford et al., GPT-2). Empty if a character is none
// of the 256.
std::optional<std::string> ByteLevelToBytes(std::string_view token);

class Bpe {
 public:
  static constexpr int32_t kMaxTokenId = (int32_t{1} << 22) - 1;

  // `model` is the "model" object. `byte_level`: words are raw bytes and the vocabulary is written
  // in byte-level characters; else words are UTF-8 and the vocabulary is plain.
  // Errors: kInvalidArgument (missing or malformed vocabulary, id out of [0, kMaxTokenId] or used
  // twice, merge of an unknown token), kUnimplemented (another model type, dropout, affixes).
  static Result<Bpe> FromJson(const Json& model, bool byte_level);

  // Appends the tokens of one word (a piece of the pre-tokenizer, or the whole text if there is
  // none). O(n log n) in its length.
  void EncodeWord(std::string_view word, std::vector<int32_t>* out) const;

  // Token text as tokenizer.json writes it -> id.
  const TokenMap& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;  // id of the new token
  };
  // Open addressing over (left id, right id): the inner loop of encoding is this lookup.
  class MergeTable {
   public:
    void Reserve(size_t count);
    // The last merge of a pair counts.
    void Insert(int32_t left, int32_t right, Merge merge);
    const Merge* Find(int32_t left, int32_t right) const;

   private:
    size_t Slot(uint64_t key) const;

    std::vector<uint64_t> keys_;
    std::vector<Merge> merges_;
    size_t mask_ = 0;
  };

  Status ReadVocabulary(const Json& model);
  Status ReadMerges(const Json& model);
  // The initial symbols: one a byte or character.
  void SplitToSymbols(std::string_view word, std::vector<int32_t>* symbols) const;
  void MergeAll(const std::vector<int32_t>& symbols, std::vector<int32_t>* out) const;

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  TokenMap vocabulary_;
  TokenMap words_;                           // byte-level, ignore_merges: bytes -> id
  std::array<int32_t, 256> byte_ids_{};      // byte-level: of the one-byte tokens, or -1
  std::array<int32_t, 256> fallback_ids_{};  // of "<0x00>" to "<0xFF>", or -1
  std::unordered_map<char32_t, int32_t> character_ids_;
  std::optional<int32_t> unknown_id_;
  MergeTable merges_;
};

}  // namespace lserve
