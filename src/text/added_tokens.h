// The "added_tokens" of a tokenizer.json: tokens that are found in text as they stand, before BPE
// sees it. Owned by the Tokenizer; immutable once loaded; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "text/bpe.h"
#include "text/normalizer.h"

namespace lserve {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // parsed only where every byte is trusted; may be skipped in decoding
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool normalized = false;   // sought in normalised text, itself normalised
};

class AddedTokens {
 public:
  // `added` is the list, or null. `normalizer` normalises what is sought in normalised text.
  // Errors: kInvalidArgument (malformed, empty content, id out of range or used twice, another id
  // than the vocabulary's).
  static Result<AddedTokens> FromJson(const Json& added, const TokenMap& vocabulary,
                                      const Normalizer& normalizer);

  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // Cuts text at the tokens found, leftmost first and then longest. Calls `plain(begin, end)` for
  // the text between, never empty, and `token(id)`. `normalized` says which tokens are sought.
  void Split(const TrustedText& text, bool normalized,
             const std::function<void(size_t, size_t)>& plain,
             const std::function<void(int32_t)>& token) const;

 private:
  // A byte trie.
  struct TrieNode {
    std::map<char, int32_t> children;
    int32_t token = -1;  // index into tokens_
  };
  using Trie = std::vector<TrieNode>;

  void AddToTrie(const std::string& content, int32_t token, Trie* trie);
  // The longest token at `begin` that may stand there: its index and end, or -1.
  int32_t FindAt(const Trie& trie, const TrustedText& text, size_t begin, size_t* end) const;

  std::vector<AddedToken> tokens_;
  Trie raw_;
  Trie normalized_;
};

}  // namespace lserve
