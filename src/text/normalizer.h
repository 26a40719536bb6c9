// The "normalizer" of a tokenizer.json: Unicode normal forms, Prepend, literal Replace, and
// sequences of them. Owned by the Tokenizer; immutable once loaded; thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace lserve {

// UTF-8 in which every byte is trusted or not. `trust` holds one char a byte (1 trusted), or
// nothing if no byte is trusted.
struct TrustedText {
  std::string text;
  std::string trust;

  bool IsTrusted(size_t begin, size_t end) const {
    return !trust.empty() &&
           std::string_view(trust).substr(begin, end - begin).find('\0') == std::string::npos;
  }
};

class Normalizer {
 public:
  // `normalizer` may be null. Errors: kUnimplemented naming the type, kInvalidArgument.
  static Result<Normalizer> FromJson(const Json& normalizer);

  bool empty() const { return steps_.empty(); }

  // What a step makes of trusted and untrusted characters together is untrusted.
  void Apply(TrustedText* text) const;
  std::string Apply(std::string_view text) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string pattern;  // kReplace
    std::string content;  // kPrepend, kReplace
  };

  Status Add(const Json& normalizer, int depth);

  std::vector<Step> steps_;
};

}  // namespace lserve
