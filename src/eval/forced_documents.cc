#include "eval/forced_documents.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/file.h"

namespace lserve {
namespace {

constexpr int64_t kLeastPromptTokens = 512;

// A chat as it grows: its tokens so far and which of them are answers'.
class ForcedChat {
 public:
  ForcedChat(const LoadedModel& model, std::string opening)
      : model_(model), opening_(std::move(opening)) {}

  // Adds a question and its right answer.
  Status Add(const Fact& fact) {
    messages_.push_back({"user", messages_.empty() ? opening_ + fact.question : fact.question});
    ASSIGN_OR_RETURN(const std::vector<int32_t> asked, EncodeChat(model_, messages_));
    messages_.push_back({"assistant", fact.answer});
    ASSIGN_OR_RETURN(tokens_, EncodeChat(model_, messages_, false));
    is_answer_.resize(std::min(asked.size(), tokens_.size()), false);
    is_answer_.resize(tokens_.size(), true);
    return OkStatus();
  }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<bool>& is_answer() const { return is_answer_; }

 private:
  const LoadedModel& model_;
  const std::string opening_;
  std::vector<ChatMessage> messages_;
  std::vector<int32_t> tokens_;
  std::vector<bool> is_answer_;
};

Result<ForcedDocument> MakeChat(const LoadedModel& model, const PromptMeasure& measure,
                                int64_t length, int64_t decode_tokens, uint64_t seed) {
  ForcedDocument document;
  document.kind = kLongGeneration;
  document.length = length;
  document.decode_from = (length - decode_tokens) / kQueryBlockTokens * kQueryBlockTokens;
  FactSource source(DeriveSeed(seed, 0));
  const int64_t room = document.decode_from - measure.turn_tokens;
  std::vector<Fact> facts;
  for (int64_t i = 0; i < std::clamp<int64_t>(room / 192, 4, 96); ++i) {
    facts.push_back(source.DrawAny());
  }
  ASSIGN_OR_RETURN(const std::string text,
                   MakeFactDocument(facts, room, DeriveSeed(seed, 1), measure.count_tokens));
  ForcedChat chat(model, text + "\n\n");
  RandomStream order(DeriveSeed(seed, 2));
  for (size_t asked = 0; std::ssize(chat.tokens()) < length; ++asked) {
    if (asked % facts.size() == 0) {
      order.Shuffle(&facts);
    }
    RETURN_IF_ERROR(chat.Add(facts[asked % facts.size()]));
  }
  const auto end = static_cast<std::ptrdiff_t>(length);
  document.tokens.assign(chat.tokens().begin(), chat.tokens().begin() + end);
  document.is_answer.assign(chat.is_answer().begin(), chat.is_answer().begin() + end);
  return document;
}

}  // namespace

Result<std::vector<ForcedDocument>> MakeLongGeneration(const LoadedModel& model,
                                                       const SuiteOptions& options,
                                                       int64_t decode_tokens) {
  ASSIGN_OR_RETURN(const PromptMeasure measure, MeasureOf(model));
  std::vector<ForcedDocument> documents;
  for (const int64_t length : options.lengths) {
    if (length < decode_tokens + kLeastPromptTokens + kQueryBlockTokens) {
      return InvalidArgument("{} at {} tokens: --decode-tokens {} leave no room for a document",
                             kLongGeneration, length, decode_tokens);
    }
    const int64_t count = (options.samples + kQuestionsPerDocument - 1) / kQuestionsPerDocument;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t label =
          uint64_t{0xff} << 56 | static_cast<uint64_t>(length) << 24 | static_cast<uint64_t>(i);
      ASSIGN_OR_RETURN(ForcedDocument document, MakeChat(model, measure, length, decode_tokens,
                                                         DeriveSeed(options.seed, label)));
      document.id = fmt::format("{}-{}-{}", kLongGeneration, length, i);
      documents.push_back(std::move(document));
    }
  }
  return documents;
}

Result<std::vector<ForcedDocument>> MakeTextDocuments(const LoadedModel& model,
                                                      const std::string& path,
                                                      const std::vector<int64_t>& lengths,
                                                      int64_t context, int64_t decode_tokens) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const std::vector<int32_t> tokens = model.tokenizer->EncodeWithBos(text);
  std::vector<int64_t> wanted = lengths;
  if (wanted.empty()) {
    wanted = {std::min<int64_t>(std::ssize(tokens), context)};
  }
  std::vector<ForcedDocument> documents;
  for (const int64_t length : wanted) {
    if (length > std::ssize(tokens) || length < kLeastPromptTokens) {
      return InvalidArgument("{} has {} tokens; a text of {} was asked for, at least {}", path,
                             tokens.size(), length, kLeastPromptTokens);
    }
    ForcedDocument document;
    document.kind = "text";
    document.id =
        fmt::format("text-{}-{}", std::filesystem::path(path).filename().string(), length);
    document.length = length;
    document.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(length));
    document.decode_from =
        std::max(length / 2, length - decode_tokens) / kQueryBlockTokens * kQueryBlockTokens;
    document.prefill_loss = true;
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace lserve
