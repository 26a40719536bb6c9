// A regular expression that cuts text into pieces: the "Split" of a tokenizer.json, matched by
// PCRE2. Move-only, immutable once made; thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lserve {

class SplitPattern {
 public:
  // What happens to the matches; text between matches is always a piece of its own, unless a match
  // is merged into it.
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext };

  // `regex` is in the dialect of tokenizer.json files (Oniguruma): `\s` is the Unicode property
  // White_Space. `invert` swaps matches and what lies between. Errors: kInvalidArgument (does not
  // compile), kUnimplemented (a construct that PCRE2 reads differently).
  static Result<SplitPattern> FromRegex(std::string_view regex, Behavior behavior, bool invert);
  // The pattern is the literal text.
  static Result<SplitPattern> FromLiteral(std::string_view text, Behavior behavior, bool invert);

  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;
  ~SplitPattern();

  // Calls `piece` with every piece, in order, none empty. `text` must be valid UTF-8: it is not
  // checked again, as a check at every match would make the work quadratic.
  void ForEachPiece(std::string_view text,
                    const std::function<void(std::string_view)>& piece) const;

 private:
  struct Code;

  SplitPattern(std::unique_ptr<Code> code, Behavior behavior, bool invert);
  static Result<SplitPattern> Compile(std::string_view pattern, uint32_t options, Behavior behavior,
                                      bool invert);

  std::unique_ptr<Code> code_;
  Behavior behavior_;
  bool invert_;
};

}  // namespace lserve
