#include "text/tokenizer.h"

#include <algorithm>

#include "base/file.h"
#include "text/utf8.h"

namespace lserve {
namespace {

const Json& Member(const Json& object, std::string_view key) {
  static const Json null;
  const Json* value = FindKey(object, key);
  return value == nullptr ? null : *value;
}

// tokenizer_config.json writes a token as its text or as an object with "content".
std::optional<std::string> ConfiguredToken(const Json& config, std::string_view key) {
  const Json* value = FindKey(config, key);
  if (value != nullptr && value->is_object()) {
    value = FindKey(*value, "content");
  }
  if (value == nullptr || !value->is_string()) {
    return std::nullopt;
  }
  return value->get<std::string>();
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::string path = JoinPath(model_dir, "tokenizer.json");
  ASSIGN_OR_RETURN(const Json tokenizer, ReadJsonFile(path));
  Json config;
  const std::string config_path = JoinPath(model_dir, "tokenizer_config.json");
  if (FileExists(config_path)) {
    ASSIGN_OR_RETURN(config, ReadJsonFile(config_path));
  }
  auto loaded = FromJson(tokenizer, config);
  if (!loaded.ok()) {
    return loaded.status().Annotate(path);
  }
  return loaded;
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(const Json& json, const Json& config) {
  if (!json.is_object()) {
    return InvalidArgument("the tokenizer is not a JSON object");
  }
  std::unique_ptr<Tokenizer> t(new Tokenizer);
  ASSIGN_OR_RETURN(t->normalizer_, Normalizer::FromJson(Member(json, "normalizer")));
  ASSIGN_OR_RETURN(t->pre_tokenizer_, PreTokenizer::FromJson(Member(json, "pre_tokenizer")));
  ASSIGN_OR_RETURN(t->bpe_, Bpe::FromJson(Member(json, "model"), t->pre_tokenizer_.byte_level()));
  ASSIGN_OR_RETURN(t->added_, AddedTokens::FromJson(Member(json, "added_tokens"),
                                                    t->bpe_.vocabulary(), t->normalizer_));
  ASSIGN_OR_RETURN(t->decoder_, TokenDecoder::FromJson(Member(json, "decoder")));

  const auto set_piece = [&](int32_t id, std::string_view token) {
    const auto index = static_cast<size_t>(id);
    if (index >= t->pieces_.size()) {
      t->pieces_.resize(index + 1);
    }
    t->pieces_[index] = t->decoder_.MakePiece(token);
  };
  for (const auto& [token, id] : t->bpe_.vocabulary()) {
    set_piece(id, token);
  }
  for (const AddedToken& token : t->added_.tokens()) {
    set_piece(token.id, token.content);
  }
  t->special_.assign(t->pieces_.size(), false);
  for (const AddedToken& token : t->added_.tokens()) {
    t->special_[static_cast<size_t>(token.id)] = token.special;
  }
  RETURN_IF_ERROR(t->ReadPostProcessor(Member(json, "post_processor"), 0));
  RETURN_IF_ERROR(t->ReadConfig(config));
  return t;
}

Status Tokenizer::ReadPostProcessor(const Json& post_processor, int depth) {
  if (post_processor.is_null()) {
    return OkStatus();
  }
  const Json& type = Member(post_processor, "type");
  if (!type.is_string() || depth > 4) {
    return InvalidArgument("the post_processor has no type, or is nested too deep");
  }
  if (type == "ByteLevel") {  // moves offsets only
    return OkStatus();
  }
  if (type == "Sequence") {
    const Json& parts = Member(post_processor, "processors");
    if (!parts.is_array()) {
      return InvalidArgument("the post_processor Sequence has no \"processors\" list");
    }
    for (const Json& part : parts) {
      RETURN_IF_ERROR(ReadPostProcessor(part, depth + 1));
    }
    return OkStatus();
  }
  if (type != "TemplateProcessing") {
    return Unimplemented("the post_processor is of type {}, which is not supported", type.dump());
  }
  const Json& single = Member(post_processor, "single");
  const Json& special_tokens = Member(post_processor, "special_tokens");
  if (!single.is_array()) {
    return InvalidArgument("the post_processor TemplateProcessing has no \"single\" list");
  }
  bool after = false;
  std::vector<int32_t> before_ids;
  std::vector<int32_t> after_ids;
  for (const Json& part : single) {
    if (const Json* sequence = FindKey(part, "Sequence")) {
      if (after || Member(*sequence, "id") != "A") {
        return Unimplemented("the post_processor's template has more than the sequence A");
      }
      after = true;
      continue;
    }
    const Json& name = Member(Member(part, "SpecialToken"), "id");
    const Json* ids =
        name.is_string()
            ? FindKey(Member(special_tokens, name.get_ref<const std::string&>()), "ids")
            : nullptr;
    if (ids == nullptr || !ids->is_array()) {
      return InvalidArgument("the post_processor's template names {} without ids", part.dump());
    }
    for (const Json& id : *ids) {
      if (!id.is_number_integer() || id < 0 || id >= vocab_size()) {
        return InvalidArgument("the post_processor adds the id {}, outside [0, {})", id.dump(),
                               vocab_size());
      }
      (after ? after_ids : before_ids).push_back(id.get<int32_t>());
    }
  }
  if (!after) {
    return InvalidArgument("the post_processor's template lacks the sequence A");
  }
  prefix_.insert(prefix_.begin(), before_ids.begin(), before_ids.end());
  suffix_.insert(suffix_.end(), after_ids.begin(), after_ids.end());
  return OkStatus();
}

Status Tokenizer::ReadConfig(const Json& config) {
  const auto apply = [&](const char* flag, const char* token_key, bool front) -> Status {
    const Json& value = Member(config, flag);
    const std::optional<std::string> token = ConfiguredToken(config, token_key);
    if (!value.is_boolean() || !token) {
      return OkStatus();
    }
    const std::optional<int32_t> id = TokenToId(*token);
    if (!id) {
      return InvalidArgument("tokenizer_config.json: the {} \"{}\" is no token", token_key, *token);
    }
    std::vector<int32_t>& ids = front ? prefix_ : suffix_;
    const bool there = std::find(ids.begin(), ids.end(), *id) != ids.end();
    if (value.get<bool>() && !there) {
      ids.insert(front ? ids.begin() : ids.end(), *id);
    } else if (!value.get<bool>() && there) {
      std::erase(ids, *id);
    }
    return OkStatus();
  };
  RETURN_IF_ERROR(apply("add_bos_token", "bos_token", true));
  return apply("add_eos_token", "eos_token", false);
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::vector<int32_t> out;
  EncodeTrusted({IsValidUtf8(text) ? std::string(text) : RepairUtf8(text), ""}, &out);
  return out;
}

std::vector<int32_t> Tokenizer::EncodeRuns(std::span<const TextRun> runs) const {
  TrustedText all;
  for (const TextRun& run : runs) {
    all.text += run.text;
    all.trust.append(run.text.size(), run.trusted ? '\1' : '\0');
  }
  if (!IsValidUtf8(all.text)) {
    // Repaired run by run, so that each keeps its trust.
    all = TrustedText{};
    for (const TextRun& run : runs) {
      const std::string repaired = RepairUtf8(run.text);
      all.text += repaired;
      all.trust.append(repaired.size(), run.trusted ? '\1' : '\0');
    }
  }
  std::vector<int32_t> out;
  EncodeTrusted(all, &out);
  return out;
}

std::vector<int32_t> Tokenizer::EncodeWithBos(std::string_view text, bool parse_special) const {
  std::vector<int32_t> out = prefix_;
  const TextRun run{std::string(text), parse_special};
  const std::vector<int32_t> tokens = EncodeRuns({&run, 1});
  out.insert(out.end(), tokens.begin(), tokens.end());
  out.insert(out.end(), suffix_.begin(), suffix_.end());
  return out;
}

void Tokenizer::EncodeTrusted(const TrustedText& text, std::vector<int32_t>* out) const {
  const auto on_token = [&](int32_t id) { out->push_back(id); };
  const auto on_word = [&](std::string_view word) { bpe_.EncodeWord(word, out); };
  added_.Split(
      text, /*normalized=*/false,
      [&](size_t begin, size_t end) {
        TrustedText segment{text.text.substr(begin, end - begin),
                            text.trust.empty() ? "" : text.trust.substr(begin, end - begin)};
        normalizer_.Apply(&segment);
        added_.Split(
            segment, /*normalized=*/true,
            [&](size_t from, size_t to) {
              pre_tokenizer_.ForEachWord(std::string_view(segment.text).substr(from, to - from),
                                         begin == 0 && from == 0, on_word);
            },
            on_token);
      },
      on_token);
}

std::string Tokenizer::Decode(std::span<const int32_t> tokens, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const int32_t token : tokens) {
    text += stream.Push(token);
  }
  text += stream.Finish();
  return text;
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  for (const AddedToken& added : added_.tokens()) {
    if (added.content == token) {
      return added.id;
    }
  }
  const auto found = bpe_.vocabulary().find(token);
  return found == bpe_.vocabulary().end() ? std::nullopt : std::optional(found->second);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && special_[static_cast<size_t>(id)];
}

}  // namespace lserve
