// The "pre_tokenizer" of a tokenizer.json: cuts a segment of text into the words that BPE merges
// within. Owned by the Tokenizer; immutable once loaded; thread-safe.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "text/split_pattern.h"

namespace lserve {

class PreTokenizer {
 public:
  using WordSink = std::function<void(std::string_view)>;

  // `pre_tokenizer` may be null (one word). Types: Split, Digits, ByteLevel (last only), Metaspace
  // and Sequence of them. Errors: kUnimplemented naming the type, kInvalidArgument.
  static Result<PreTokenizer> FromJson(const Json& pre_tokenizer);

  // Words are raw bytes for a byte-level vocabulary.
  bool byte_level() const { return byte_level_; }

  // `at_start`: the segment begins at the first byte of the whole input (Metaspace's
  // prepend_scheme "first" asks). `text` is valid UTF-8.
  void ForEachWord(std::string_view text, bool at_start, const WordSink& sink) const;

 private:
  enum class Kind { kSplit, kMetaspace, kPrefixSpace };
  enum class PrependScheme { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    std::vector<SplitPattern> split;  // one for kSplit; for kMetaspace one if it splits, else none
    std::string replacement;          // kMetaspace
    PrependScheme prepend = PrependScheme::kNever;
  };

  Status Add(const Json& pre_tokenizer, int depth);
  Status AddSplit(const Json& pre_tokenizer);
  Status AddMetaspace(const Json& pre_tokenizer);
  Status AddByteLevel(const Json& pre_tokenizer);
  void RunStep(size_t step, std::string_view text, bool at_start, const WordSink& sink) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace lserve
