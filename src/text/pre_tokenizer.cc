#include "text/pre_tokenizer.h"

#include <utility>

namespace lserve {
namespace {

// GPT-2's split pattern, which ByteLevel uses unless told not to.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Result<bool> ReadFlag(const Json& object, const char* key, bool missing) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) {
    return missing;
  }
  if (!value->is_boolean()) {
    return InvalidArgument("the tokenizer's pre_tokenizer has {} = {}, not a boolean", key,
                           value->dump());
  }
  return value->get<bool>();
}

Result<std::string> ReadText(const Json& object, const char* key) {
  const Json* value = FindKey(object, key);
  if (value == nullptr || !value->is_string()) {
    return InvalidArgument("the tokenizer's pre_tokenizer has no text \"{}\"", key);
  }
  return value->get<std::string>();
}

}  // namespace

Result<PreTokenizer> PreTokenizer::FromJson(const Json& pre_tokenizer) {
  PreTokenizer result;
  RETURN_IF_ERROR(result.Add(pre_tokenizer, 0));
  return result;
}

Status PreTokenizer::Add(const Json& pre_tokenizer, int depth) {
  if (pre_tokenizer.is_null()) {
    return OkStatus();
  }
  if (depth > 4) {
    return InvalidArgument("the tokenizer's pre_tokenizer is nested too deep");
  }
  ASSIGN_OR_RETURN(const std::string type, ReadText(pre_tokenizer, "type"));
  if (byte_level_) {
    return Unimplemented("the tokenizer's pre_tokenizer has a \"{}\" after ByteLevel", type);
  }
  if (type == "Sequence") {
    const Json* parts = FindKey(pre_tokenizer, "pretokenizers");
    if (parts == nullptr || !parts->is_array()) {
      return InvalidArgument("the pre_tokenizer Sequence has no \"pretokenizers\" list");
    }
    for (const Json& part : *parts) {
      RETURN_IF_ERROR(Add(part, depth + 1));
    }
    return OkStatus();
  }
  if (type == "Split") {
    return AddSplit(pre_tokenizer);
  }
  if (type == "Metaspace") {
    return AddMetaspace(pre_tokenizer);
  }
  if (type == "ByteLevel") {
    return AddByteLevel(pre_tokenizer);
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool single, ReadFlag(pre_tokenizer, "individual_digits", false));
    ASSIGN_OR_RETURN(SplitPattern digits,
                     SplitPattern::FromRegex(single ? R"(\p{N})" : R"(\p{N}+)",
                                             SplitPattern::Behavior::kIsolated, false));
    steps_.push_back({Kind::kSplit, {}, ""});
    steps_.back().split.push_back(std::move(digits));
    return OkStatus();
  }
  return Unimplemented("the tokenizer's pre_tokenizer is of type \"{}\", which is not supported",
                       type);
}

Status PreTokenizer::AddSplit(const Json& pre_tokenizer) {
  ASSIGN_OR_RETURN(const std::string name, ReadText(pre_tokenizer, "behavior"));
  ASSIGN_OR_RETURN(const bool invert, ReadFlag(pre_tokenizer, "invert", false));
  SplitPattern::Behavior behavior;
  if (name == "Isolated") {
    behavior = SplitPattern::Behavior::kIsolated;
  } else if (name == "Removed") {
    behavior = SplitPattern::Behavior::kRemoved;
  } else if (name == "MergedWithPrevious") {
    behavior = SplitPattern::Behavior::kMergedWithPrevious;
  } else if (name == "MergedWithNext") {
    behavior = SplitPattern::Behavior::kMergedWithNext;
  } else {
    return Unimplemented("the pre_tokenizer Split has the behavior \"{}\", which is not supported",
                         name);
  }
  const Json* pattern = FindKey(pre_tokenizer, "pattern");
  const Json* regex = pattern == nullptr ? nullptr : FindKey(*pattern, "Regex");
  const Json* literal = pattern == nullptr ? nullptr : FindKey(*pattern, "String");
  Step step{Kind::kSplit, {}, ""};
  if (regex != nullptr && regex->is_string()) {
    ASSIGN_OR_RETURN(
        SplitPattern split,
        SplitPattern::FromRegex(regex->get_ref<const std::string&>(), behavior, invert));
    step.split.push_back(std::move(split));
  } else if (literal != nullptr && literal->is_string()) {
    ASSIGN_OR_RETURN(
        SplitPattern split,
        SplitPattern::FromLiteral(literal->get_ref<const std::string&>(), behavior, invert));
    step.split.push_back(std::move(split));
  } else {
    return InvalidArgument("the pre_tokenizer Split has no pattern (Regex or String)");
  }
  steps_.push_back(std::move(step));
  return OkStatus();
}

Status PreTokenizer::AddMetaspace(const Json& pre_tokenizer) {
  Step step{Kind::kMetaspace, {}, ""};
  ASSIGN_OR_RETURN(step.replacement, ReadText(pre_tokenizer, "replacement"));
  if (step.replacement.empty()) {
    return InvalidArgument("the pre_tokenizer Metaspace has an empty replacement");
  }
  ASSIGN_OR_RETURN(const bool add_prefix, ReadFlag(pre_tokenizer, "add_prefix_space", true));
  std::string scheme = add_prefix ? "always" : "never";
  if (FindKey(pre_tokenizer, "prepend_scheme") != nullptr) {
    ASSIGN_OR_RETURN(scheme, ReadText(pre_tokenizer, "prepend_scheme"));
  }
  if (scheme == "always") {
    step.prepend = PrependScheme::kAlways;
  } else if (scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme != "never") {
    return InvalidArgument("the pre_tokenizer Metaspace has the prepend_scheme \"{}\"", scheme);
  }
  ASSIGN_OR_RETURN(const bool split, ReadFlag(pre_tokenizer, "split", true));
  if (split) {
    ASSIGN_OR_RETURN(SplitPattern pattern,
                     SplitPattern::FromLiteral(step.replacement,
                                               SplitPattern::Behavior::kMergedWithNext, false));
    step.split.push_back(std::move(pattern));
  }
  steps_.push_back(std::move(step));
  return OkStatus();
}

Status PreTokenizer::AddByteLevel(const Json& pre_tokenizer) {
  ASSIGN_OR_RETURN(const bool prefix, ReadFlag(pre_tokenizer, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, ReadFlag(pre_tokenizer, "use_regex", true));
  if (prefix) {
    steps_.push_back({Kind::kPrefixSpace, {}, ""});
  }
  if (use_regex) {
    ASSIGN_OR_RETURN(
        SplitPattern split,
        SplitPattern::FromRegex(kGpt2Pattern, SplitPattern::Behavior::kIsolated, false));
    steps_.push_back({Kind::kSplit, {}, ""});
    steps_.back().split.push_back(std::move(split));
  }
  byte_level_ = true;
  return OkStatus();
}

void PreTokenizer::ForEachWord(std::string_view text, bool at_start, const WordSink& sink) const {
  if (!text.empty()) {
    RunStep(0, text, at_start, sink);
  }
}

void PreTokenizer::RunStep(size_t index, std::string_view text, bool at_start,
                           const WordSink& sink) const {
  if (index == steps_.size()) {
    sink(text);
    return;
  }
  const Step& step = steps_[index];
  std::string changed;
  switch (step.kind) {
    case Kind::kSplit: break;
    case Kind::kPrefixSpace:
      if (text.front() != ' ') {
        changed = " ";
        changed += text;
        text = changed;
      }
      break;
    case Kind::kMetaspace: {
      for (const char c : text) {
        if (c == ' ') {
          changed += step.replacement;
        } else {
          changed += c;
        }
      }
      const bool wanted = step.prepend == PrependScheme::kAlways ||
                          (step.prepend == PrependScheme::kFirst && at_start);
      if (wanted && !changed.starts_with(step.replacement)) {
        changed.insert(0, step.replacement);
      }
      text = changed;
      break;
    }
  }
  if (step.split.empty()) {
    RunStep(index + 1, text, at_start, sink);
    return;
  }
  const char* begin = text.data();
  step.split.front().ForEachPiece(text, [&](std::string_view piece) {
    RunStep(index + 1, piece, at_start && piece.data() == begin, sink);
  });
}

}  // namespace lserve
