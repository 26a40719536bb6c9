// Text to tokens and back, as a Hugging Face tokenizer.json defines it: byte-level BPE (Llama-3,
// Qwen) and SentencePiece-style BPE with byte fallback (Llama-2, Mistral). A Tokenizer is owned by
// whoever loaded the model, immutable after Load and thread-safe; a StreamDecoder belongs to one
// generation and is not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"

namespace lserve {

// A run of prompt text. Special tokens are parsed only where every byte is trusted (what the
// template wrote), never in what a user wrote; otherwise runs are seen as one string, so BPE merges
// across their bounds.
struct TextRun {
  std::string text;
  bool trusted = false;

  bool operator==(const TextRun&) const = default;
};

class Tokenizer {
 public:
  // Reads tokenizer.json, and tokenizer_config.json if it is there (add_bos_token, add_eos_token).
  // Errors: kNotFound (no tokenizer.json), kInvalidArgument (malformed), kUnimplemented (a part
  // of a type that is not supported, named).
  static Result<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  // The same from parsed files; `config` may be null.
  static Result<std::unique_ptr<Tokenizer>> FromJson(const Json& tokenizer, const Json& config);

  // Plain text: special tokens are neither parsed nor added. Added tokens that are not special are
  // parsed, as they are part of the language ("<think>"). Bytes that are not UTF-8 count as U+FFFD.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Prompt runs: special tokens are parsed in trusted ones, none are added.
  std::vector<int32_t> EncodeRuns(std::span<const TextRun> runs) const;

  // Text between the special tokens that the post-processor adds (BOS, mostly), for prompts that
  // no template writes. `parse_special`: special tokens in the text are parsed, as the Python
  // tokenizers do; only for a caller who may write a whole prompt.
  std::vector<int32_t> EncodeWithBos(std::string_view text, bool parse_special = false) const;

  // Ids without a token are passed over. The result is valid UTF-8, and never "cleaned up"
  // (clean_up_tokenization_spaces is ignored: it changes what the model said).
  std::string Decode(std::span<const int32_t> tokens, bool skip_special) const;

  // The largest id + 1.
  int32_t vocab_size() const { return static_cast<int32_t>(pieces_.size()); }

  // The id of a token, written as in tokenizer.json ("Ġthe", "<|eot_id|>").
  std::optional<int32_t> TokenToId(std::string_view token) const;

  bool IsSpecial(int32_t id) const;

 private:
  friend class StreamDecoder;

  Tokenizer() = default;
  Status ReadPostProcessor(const Json& post_processor, int depth);
  Status ReadConfig(const Json& config);
  void EncodeTrusted(const TrustedText& text, std::vector<int32_t>* out) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  AddedTokens added_;
  TokenDecoder decoder_;
  std::vector<TokenDecoder::Piece> pieces_;  // by id
  std::vector<bool> special_;                // by id
  std::vector<int32_t> prefix_;              // what the post-processor puts before and after
  std::vector<int32_t> suffix_;
};

// Streaming detokenisation: the concatenation of what Push and Finish return equals Decode of all
// tokens, and every part of it is valid UTF-8: bytes are held until they make a character or cannot
// any more.
class StreamDecoder {
 public:
  // `continues_text`: the tokens continue a text, so the space that SentencePiece-style decoders
  // remove from the front of a text stays.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true,
                         bool continues_text = false);

  // The text that the token made certain.
  std::string Push(int32_t token);

  // The rest: an unfinished character becomes U+FFFD. The decoder may not be used again.
  std::string Finish();

 private:
  void EmitPending(bool final, std::string* out);
  void Emit(std::string_view text, std::string* out);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  int strip_left_;       // how many characters may still be removed from the front
  std::string pending_;  // bytes that do not make a character yet
};

}  // namespace lserve
