#include "text/added_tokens.h"

#include <algorithm>
#include <set>

#include "text/utf8.h"

namespace lserve {
namespace {

Status ReadFlag(const Json& entry, const char* key, bool* flag) {
  const Json* value = FindKey(entry, key);
  if (value == nullptr) {
    return OkStatus();
  }
  if (!value->is_boolean()) {
    return InvalidArgument("an added token of the tokenizer has {} = {}, not a boolean", key,
                           value->dump());
  }
  *flag = value->get<bool>();
  return OkStatus();
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !IsWordCharacter(LastCodePoint(text.substr(0, begin)).value)) &&
         (end == text.size() || !IsWordCharacter(FirstCodePoint(text.substr(end)).value));
}

}  // namespace

Result<AddedTokens> AddedTokens::FromJson(const Json& added, const TokenMap& vocabulary,
                                          const Normalizer& normalizer) {
  AddedTokens result;
  result.raw_.emplace_back();
  result.normalized_.emplace_back();
  if (added.is_null()) {
    return result;
  }
  if (!added.is_array()) {
    return InvalidArgument("the tokenizer's added_tokens is not a list");
  }
  std::set<int32_t> ids;
  std::set<std::string> contents;
  std::vector<std::string_view> token_of_id;
  for (const auto& [text, id] : vocabulary) {
    const auto index = static_cast<size_t>(id);
    token_of_id.resize(std::max(token_of_id.size(), index + 1));
    token_of_id[index] = text;
  }
  for (const Json& entry : added) {
    const Json* id = FindKey(entry, "id");
    const Json* content = FindKey(entry, "content");
    if (id == nullptr || content == nullptr || !content->is_string() || *content == "") {
      return InvalidArgument("an added token of the tokenizer lacks its id or its content: {}",
                             entry.dump());
    }
    AddedToken token;
    token.content = content->get<std::string>();
    if (!id->is_number_integer() || *id < 0 || *id > Bpe::kMaxTokenId) {
      return InvalidArgument("the added token \"{}\" has the id {}, outside [0, {}]", token.content,
                             id->dump(), Bpe::kMaxTokenId);
    }
    token.id = id->get<int32_t>();
    if (!ids.insert(token.id).second || !contents.insert(token.content).second) {
      return InvalidArgument("the added token \"{}\" with id {} is there twice", token.content,
                             token.id);
    }
    const auto known = vocabulary.find(token.content);
    const auto index = static_cast<size_t>(token.id);
    if (known != vocabulary.end() && known->second != token.id) {
      return InvalidArgument("the added token \"{}\" has the id {}, in the vocabulary it is {}",
                             token.content, token.id, known->second);
    }
    if (known == vocabulary.end() && index < token_of_id.size() && !token_of_id[index].empty()) {
      return InvalidArgument(
          "the added token \"{}\" has the id {}, which is the vocabulary's "
          "\"{}\"",
          token.content, token.id, token_of_id[index]);
    }
    RETURN_IF_ERROR(ReadFlag(entry, "special", &token.special));
    RETURN_IF_ERROR(ReadFlag(entry, "single_word", &token.single_word));
    RETURN_IF_ERROR(ReadFlag(entry, "lstrip", &token.lstrip));
    RETURN_IF_ERROR(ReadFlag(entry, "rstrip", &token.rstrip));
    token.normalized = !token.special;
    RETURN_IF_ERROR(ReadFlag(entry, "normalized", &token.normalized));
    const auto number = static_cast<int32_t>(result.tokens_.size());
    if (token.normalized) {
      result.AddToTrie(normalizer.Apply(token.content), number, &result.normalized_);
    } else {
      result.AddToTrie(token.content, number, &result.raw_);
    }
    result.tokens_.push_back(std::move(token));
  }
  return result;
}

void AddedTokens::AddToTrie(const std::string& content, int32_t token, Trie* trie) {
  int32_t node = 0;
  for (const char c : content) {
    const auto found = (*trie)[static_cast<size_t>(node)].children.find(c);
    if (found != (*trie)[static_cast<size_t>(node)].children.end()) {
      node = found->second;
      continue;
    }
    const auto next = static_cast<int32_t>(trie->size());
    trie->emplace_back();
    (*trie)[static_cast<size_t>(node)].children.emplace(c, next);
    node = next;
  }
  if ((*trie)[static_cast<size_t>(node)].token < 0) {
    (*trie)[static_cast<size_t>(node)].token = token;
  }
}

int32_t AddedTokens::FindAt(const Trie& trie, const TrustedText& text, size_t begin,
                            size_t* end) const {
  int32_t best = -1;
  size_t node = 0;
  for (size_t i = begin; i < text.text.size(); ++i) {
    const auto child = trie[node].children.find(text.text[i]);
    if (child == trie[node].children.end()) {
      break;
    }
    node = static_cast<size_t>(child->second);
    const int32_t found = trie[node].token;
    if (found < 0) {
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    if ((token.special && !text.IsTrusted(begin, i + 1)) ||
        (token.single_word && !StandsAlone(text.text, begin, i + 1))) {
      continue;
    }
    best = found;
    *end = i + 1;
  }
  return best;
}

void AddedTokens::Split(const TrustedText& text, bool normalized,
                        const std::function<void(size_t, size_t)>& plain,
                        const std::function<void(int32_t)>& token) const {
  const Trie& trie = normalized ? normalized_ : raw_;
  const std::string_view view = text.text;
  size_t held = 0;  // start of the plain text not handed out
  size_t i = 0;
  if (trie.size() == 1) {
    i = view.size();
  }
  while (i < view.size()) {
    size_t end = i;
    const int32_t index = FindAt(trie, text, i, &end);
    if (index < 0) {
      ++i;
      continue;
    }
    const AddedToken& found = tokens_[static_cast<size_t>(index)];
    size_t begin = i;
    while (found.lstrip && begin > held) {
      const CodePoint c = LastCodePoint(view.substr(held, begin - held));
      if (!IsWhiteSpace(c.value)) {
        break;
      }
      begin -= c.length;
    }
    while (found.rstrip && end < view.size()) {
      const CodePoint c = FirstCodePoint(view.substr(end));
      if (!IsWhiteSpace(c.value)) {
        break;
      }
      end += c.length;
    }
    if (begin > held) {
      plain(held, begin);
    }
    token(found.id);
    held = i = end;
  }
  if (held < view.size()) {
    plain(held, view.size());
  }
}

}  // namespace lserve
