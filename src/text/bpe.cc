#include "text/bpe.h"

#include <algorithm>
#include <limits>

#include "text/utf8.h"

namespace lserve {
namespace {

// The character that stands for each byte: printable Latin-1 for itself, the rest from U+0100 on.
struct ByteAlphabet {
  std::array<char32_t, 256> to_character{};
  std::array<int16_t, 0x200> to_byte{};  // -1: no byte

  ByteAlphabet() {
    to_byte.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
      to_character[byte] = printable ? byte : next++;
      to_byte[to_character[byte]] = static_cast<int16_t>(byte);
    }
  }
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

Result<bool> ReadFlag(const Json& model, const char* key) {
  const Json* value = FindKey(model, key);
  if (value == nullptr || value->is_null()) {
    return false;
  }
  if (!value->is_boolean()) {
    return InvalidArgument("the tokenizer's model has {} = {}, not a boolean", key, value->dump());
  }
  return value->get<bool>();
}

// Affixes, when present, must be empty.
Status RefuseAffix(const Json& model, const char* key) {
  const Json* value = FindKey(model, key);
  if (value == nullptr || value->is_null() || *value == "") {
    return OkStatus();
  }
  return Unimplemented("the tokenizer's model has {} = {}, which is not supported", key,
                       value->dump());
}

}  // namespace

std::optional<std::string> ByteLevelToBytes(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const CodePoint c = FirstCodePoint(token);
    const int byte = c.value < 0x200 ? Alphabet().to_byte[c.value] : -1;
    if (byte < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(byte));
    token.remove_prefix(c.length);
  }
  return bytes;
}

void Bpe::MergeTable::Reserve(size_t count) {
  size_t capacity = 16;
  while (capacity < count * 2) {
    capacity *= 2;
  }
  keys_.assign(capacity, std::numeric_limits<uint64_t>::max());
  merges_.assign(capacity, Merge{});
  mask_ = capacity - 1;
}

size_t Bpe::MergeTable::Slot(uint64_t key) const {
  // Fibonacci hashing; the high bits are the mixed ones.
  size_t slot = static_cast<size_t>((key * 0x9E3779B97F4A7C15ULL) >> 20) & mask_;
  while (keys_[slot] != key && keys_[slot] != std::numeric_limits<uint64_t>::max()) {
    slot = (slot + 1) & mask_;
  }
  return slot;
}

void Bpe::MergeTable::Insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = (static_cast<uint64_t>(left) << 32) | static_cast<uint32_t>(right);
  const size_t slot = Slot(key);
  keys_[slot] = key;
  merges_[slot] = merge;
}

const Bpe::Merge* Bpe::MergeTable::Find(int32_t left, int32_t right) const {
  const uint64_t key = (static_cast<uint64_t>(left) << 32) | static_cast<uint32_t>(right);
  const size_t slot = Slot(key);
  return keys_[slot] == key ? &merges_[slot] : nullptr;
}

Result<Bpe> Bpe::FromJson(const Json& model, bool byte_level) {
  if (!model.is_object()) {
    return InvalidArgument("the tokenizer has no \"model\" object");
  }
  const Json* type = FindKey(model, "type");
  if (type != nullptr && *type != "BPE") {
    return Unimplemented("the tokenizer's model is of type {}; supported is \"BPE\"", type->dump());
  }
  RETURN_IF_ERROR(RefuseAffix(model, "continuing_subword_prefix"));
  RETURN_IF_ERROR(RefuseAffix(model, "end_of_word_suffix"));
  const Json* dropout = FindKey(model, "dropout");
  if (dropout != nullptr && !dropout->is_null() && *dropout != 0) {
    return Unimplemented("the tokenizer's model has dropout = {}", dropout->dump());
  }
  Bpe bpe;
  bpe.byte_level_ = byte_level;
  ASSIGN_OR_RETURN(bpe.byte_fallback_, ReadFlag(model, "byte_fallback"));
  ASSIGN_OR_RETURN(bpe.fuse_unknown_, ReadFlag(model, "fuse_unk"));
  ASSIGN_OR_RETURN(bpe.ignore_merges_, ReadFlag(model, "ignore_merges"));
  RETURN_IF_ERROR(bpe.ReadVocabulary(model));
  RETURN_IF_ERROR(bpe.ReadMerges(model));
  const Json* unknown = FindKey(model, "unk_token");
  if (unknown != nullptr && !unknown->is_null()) {
    const auto found = unknown->is_string()
                           ? bpe.vocabulary_.find(unknown->get_ref<const std::string&>())
                           : bpe.vocabulary_.end();
    if (found == bpe.vocabulary_.end()) {
      return InvalidArgument("the tokenizer's unk_token {} is not in its vocabulary",
                             unknown->dump());
    }
    bpe.unknown_id_ = found->second;
  }
  return bpe;
}

Status Bpe::ReadVocabulary(const Json& model) {
  const Json* vocab = FindKey(model, "vocab");
  if (vocab == nullptr || !vocab->is_object() || vocab->empty()) {
    return InvalidArgument("the tokenizer's model has no \"vocab\" object, or an empty one");
  }
  byte_ids_.fill(-1);
  fallback_ids_.fill(-1);
  std::vector<bool> used;
  vocabulary_.reserve(vocab->size());
  for (const auto& [token, value] : vocab->items()) {
    if (!value.is_number_integer() || value < 0 || value > kMaxTokenId) {
      return InvalidArgument("token \"{}\" has the id {}, outside [0, {}]", token, value.dump(),
                             kMaxTokenId);
    }
    const auto id = value.get<int32_t>();
    if (static_cast<size_t>(id) >= used.size()) {
      used.resize(std::max(static_cast<size_t>(id) + 1, used.size() * 2), false);
    }
    if (used[static_cast<size_t>(id)]) {
      return InvalidArgument("two tokens have the id {}; one is \"{}\"", id, token);
    }
    used[static_cast<size_t>(id)] = true;
    vocabulary_.emplace(token, id);
    if (byte_level_) {
      const std::optional<std::string> bytes = ByteLevelToBytes(token);
      if (bytes && bytes->size() == 1) {
        byte_ids_[static_cast<unsigned char>((*bytes)[0])] = id;
      }
      if (bytes && ignore_merges_) {
        words_.emplace(*bytes, id);
      }
    } else if (!token.empty()) {
      const CodePoint c = FirstCodePoint(token);
      if (c.length == token.size()) {
        character_ids_.emplace(c.value, id);
      }
    }
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    if (found != vocabulary_.end()) {
      fallback_ids_[byte] = found->second;
    }
  }
  return OkStatus();
}

Status Bpe::ReadMerges(const Json& model) {
  const Json* merges = FindKey(model, "merges");
  if (merges == nullptr || !merges->is_array()) {
    return InvalidArgument("the tokenizer's model has no \"merges\" list");
  }
  if (merges->size() > static_cast<size_t>(kMaxTokenId) * 2) {
    return InvalidArgument("the tokenizer has {} merges, more than {}", merges->size(),
                           kMaxTokenId * 2);
  }
  merges_.Reserve(merges->size());
  int32_t rank = 0;
  std::string merged;
  for (const Json& entry : *merges) {
    std::string_view left;
    std::string_view right;
    if (entry.is_string()) {
      const std::string_view text = entry.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return InvalidArgument("merge {} is \"{}\", not two tokens with a space between", rank,
                               text);
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>();
      right = entry[1].get_ref<const std::string&>();
    } else {
      return InvalidArgument("merge {} is neither \"a b\" nor [\"a\", \"b\"]", rank);
    }
    merged.assign(left);
    merged.append(right);
    const auto left_id = vocabulary_.find(left);
    const auto right_id = vocabulary_.find(right);
    const auto merged_id = vocabulary_.find(merged);
    for (const auto& [found, name] :
         {std::pair{left_id, left}, {right_id, right}, {merged_id, std::string_view(merged)}}) {
      if (found == vocabulary_.end()) {
        return InvalidArgument(
            "merge {} (\"{}\" with \"{}\") needs the token \"{}\", which is not "
            "in the vocabulary",
            rank, left, right, name);
      }
    }
    merges_.Insert(left_id->second, right_id->second, {rank, merged_id->second});
    ++rank;
  }
  return OkStatus();
}

void Bpe::EncodeWord(std::string_view word, std::vector<int32_t>* out) const {
  if (word.empty()) {
    return;
  }
  if (ignore_merges_) {
    const TokenMap& words = byte_level_ ? words_ : vocabulary_;
    if (const auto found = words.find(word); found != words.end()) {
      out->push_back(found->second);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  SplitToSymbols(word, &symbols);
  MergeAll(symbols, out);
}

void Bpe::SplitToSymbols(std::string_view word, std::vector<int32_t>* symbols) const {
  if (byte_level_) {
    for (const char c : word) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
      if (id >= 0) {
        symbols->push_back(id);
      } else if (unknown_id_) {
        symbols->push_back(*unknown_id_);
      }
    }
    return;
  }
  bool unknown_open = false;  // an unknown symbol that a fused one would join
  while (!word.empty()) {
    const CodePoint c = FirstCodePoint(word);
    const std::string_view bytes = word.substr(0, c.length);
    word.remove_prefix(c.length);
    if (const auto found = character_ids_.find(c.value); found != character_ids_.end()) {
      symbols->push_back(found->second);
      unknown_open = false;
      continue;
    }
    const bool all_bytes =
        byte_fallback_ && std::all_of(bytes.begin(), bytes.end(), [&](char byte) {
          return fallback_ids_[static_cast<unsigned char>(byte)] >= 0;
        });
    if (all_bytes) {
      for (const char byte : bytes) {
        symbols->push_back(fallback_ids_[static_cast<unsigned char>(byte)]);
      }
      unknown_open = false;
    } else if (unknown_id_ && !(unknown_open && fuse_unknown_)) {
      symbols->push_back(*unknown_id_);
      unknown_open = true;
    }
  }
}

void Bpe::MergeAll(const std::vector<int32_t>& symbols, std::vector<int32_t>* out) const {
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;  // -1 after the last; -2 once merged into the symbol to the left
  };
  struct Candidate {
    int32_t rank;
    int32_t position;  // of the left symbol
    int32_t merged;
    // A heap's top is its greatest, so the lowest rank, then the leftmost, compares greatest.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  if (symbols.size() < 2) {
    out->insert(out->end(), symbols.begin(), symbols.end());
    return;
  }
  CHECK_LT(symbols.size(), static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  const auto count = static_cast<int32_t>(symbols.size());
  thread_local std::vector<Symbol> chain;
  thread_local std::vector<Candidate> heap;
  chain.clear();
  heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    chain.push_back({symbols[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  const auto at = [&](int32_t i) -> Symbol& { return chain[static_cast<size_t>(i)]; };
  const auto consider = [&](int32_t left) {
    if (left < 0 || at(left).next < 0) {
      return false;
    }
    const Merge* merge = merges_.Find(at(left).id, at(at(left).next).id);
    if (merge == nullptr) {
      return false;
    }
    heap.push_back({merge->rank, left, merge->merged});
    return true;
  };
  for (int32_t i = 0; i + 1 < count; ++i) {
    consider(i);
  }
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = at(top.position);
    if (left.next < 0) {
      continue;
    }
    Symbol& right = at(left.next);
    const Merge* merge = merges_.Find(left.id, right.id);
    if (merge == nullptr || merge->merged != top.merged) {
      continue;  // a neighbour has changed since
    }
    left.id = top.merged;
    left.next = right.next;
    right.next = -2;
    if (left.next >= 0) {
      at(left.next).previous = top.position;
    }
    if (consider(left.previous)) {
      std::push_heap(heap.begin(), heap.end());
    }
    if (consider(top.position)) {
      std::push_heap(heap.begin(), heap.end());
    }
  }
  for (int32_t i = 0; i >= 0; i = at(i).next) {
    out->push_back(at(i).id);
  }
}

}  // namespace lserve
