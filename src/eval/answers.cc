#include "eval/answers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "engine/offline.h"

namespace lserve {
namespace {

// A question's chat as it grows. The document stands above the first turn.
class Conversation {
 public:
  Conversation(const LoadedModel& model, const std::string& document, const Question& question)
      : model_(model), document_(document), question_(question) {}

  // The prompt of the next turn.
  Result<std::vector<int32_t>> NextPrompt() {
    if (question_.turns.empty()) {
      return RawPrompt();
    }
    const std::string& turn = question_.turns[turns_++];
    messages_.push_back({"user", turns_ == 1 ? document_ + "\n\n" + turn : turn});
    return EncodeChat(model_, messages_);
  }
  void AddAnswer(const std::string& answer) { messages_.push_back({"assistant", answer}); }
  size_t turns() const { return std::max<size_t>(1, question_.turns.size()); }

 private:
  // The text may bring its own BOS, as a chat template does.
  std::vector<int32_t> RawPrompt() const {
    std::vector<int32_t> tokens = model_.tokenizer->EncodeWithBos(document_, true);
    if (tokens.size() > 1 && tokens[0] == tokens[1] && model_.tokenizer->IsSpecial(tokens[0])) {
      tokens.erase(tokens.begin());
    }
    return tokens;
  }

  const LoadedModel& model_;
  const std::string& document_;
  const Question& question_;
  std::vector<ChatMessage> messages_;
  size_t turns_ = 0;
};

// Answers prompts that begin alike, one after the other.
class DocumentReader {
 public:
  DocumentReader(const LoadedModel& model, LlamaRunner& runner) : model_(model), runner_(runner) {}
  ~DocumentReader() {
    if (prefix_slot_ >= 0) {
      runner_.CloseSlot(prefix_slot_);
    }
  }
  DocumentReader(const DocumentReader&) = delete;
  DocumentReader& operator=(const DocumentReader&) = delete;

  // `prompts`: of every question's first turn.
  Status Open(const std::vector<std::vector<int32_t>>& prompts,
              const std::function<void(int64_t)>& progress) {
    size_t shared = prompts[0].size() - 1;  // the last token of a prompt is run by its fork
    for (const std::vector<int32_t>& prompt : prompts) {
      const size_t limit = std::min(shared, prompt.size() - 1);
      size_t same = 0;
      while (same < limit && prompt[same] == prompts[0][same]) {
        ++same;
      }
      shared = same;
    }
    prefix_.assign(prompts[0].begin(),
                   prompts[0].begin() +
                       static_cast<std::ptrdiff_t>(shared / kQueryBlockTokens * kQueryBlockTokens));
    ASSIGN_OR_RETURN(prefix_slot_, runner_.OpenSlot({}, kGreedySampling));
    return PrefillPrompt(runner_, prefix_slot_, prefix_, 0, model_.settings.max_num_batched_tokens,
                         false, progress)
        .status();
  }

  // A prompt that begins with the document, read to its end: answers are generated in forks of it.
  class Prompt {
   public:
    Prompt(LlamaRunner& runner, int32_t slot, std::span<const int32_t> tokens, int64_t held)
        : runner_(runner), slot_(slot), tokens_(tokens.begin(), tokens.end()), held_(held) {}
    ~Prompt() { runner_.CloseSlot(slot_); }
    Prompt(const Prompt&) = delete;
    Prompt& operator=(const Prompt&) = delete;

   private:
    friend class DocumentReader;
    LlamaRunner& runner_;
    const int32_t slot_;
    const std::vector<int32_t> tokens_;
    const int64_t held_;        // tokens that the slot shares with the document's
    int32_t first_token_ = -1;  // of every answer
  };

  Result<std::unique_ptr<Prompt>> Read(const std::vector<int32_t>& tokens) {
    ASSIGN_OR_RETURN(std::unique_ptr<Prompt> prompt, Start(tokens));
    ASSIGN_OR_RETURN(prompt->first_token_,
                     PrefillPrompt(runner_, prompt->slot_, tokens, prompt->held_,
                                   model_.settings.max_num_batched_tokens, true));
    return prompt;
  }

  // What is likeliest at tokens[first], tokens[first + 1], ..., given those before, all of them
  // prefilled.
  Result<std::string> Likeliest(const std::vector<int32_t>& tokens, int64_t first) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Prompt> prompt, Start(tokens));
    // The rows that predict them run one query block at a time: logits take memory.
    const int64_t whole = (first - 1) / kQueryBlockTokens * kQueryBlockTokens;
    RETURN_IF_ERROR(PrefillPrompt(runner_, prompt->slot_,
                                  std::span(tokens).first(static_cast<size_t>(whole)),
                                  prompt->held_, model_.settings.max_num_batched_tokens, false)
                        .status());
    const int64_t last = std::ssize(tokens) - 1;  // predicts what nobody asks for
    std::vector<int32_t> likeliest;
    int64_t end = 0;
    for (int64_t begin = std::max(whole, prompt->held_); begin < last; begin = end) {
      end = std::min(last, (begin / kQueryBlockTokens + 1) * kQueryBlockTokens);
      RETURN_IF_ERROR(runner_.Reserve(prompt->slot_, end));
      StepInput input;
      input.chunks.push_back(
          PromptChunk{.slot = prompt->slot_,
                      .first_position = begin,
                      .tokens = std::span(tokens).subspan(static_cast<size_t>(begin),
                                                          static_cast<size_t>(end - begin))});
      std::vector<int32_t> rows;
      for (int64_t position = std::max(begin, first - 1); position < end; ++position) {
        rows.push_back(static_cast<int32_t>(position - begin));
      }
      ASSIGN_OR_RETURN(const std::vector<float> logits, runner_.StepLogits(input, rows));
      const auto vocab = std::ssize(logits) / std::ssize(rows);
      for (auto row = logits.begin(); row != logits.end(); row += vocab) {
        likeliest.push_back(static_cast<int32_t>(std::max_element(row, row + vocab) - row));
      }
    }
    return model_.tokenizer->Decode(likeliest, true);
  }

  Result<std::string> Answer(const Prompt& prompt, int64_t max_tokens) {
    ASSIGN_OR_RETURN(const int32_t slot,
                     runner_.Fork(prompt.slot_, prompt.tokens_, kGreedySampling));
    const Result<std::string> answer = AnswerInSlot(slot, prompt, max_tokens);
    runner_.CloseSlot(slot);
    return answer;
  }

 private:
  // A slot for the prompt, which holds the tokens that it shares with the other prompts.
  Result<std::unique_ptr<Prompt>> Start(const std::vector<int32_t>& tokens) {
    // A template may rewrite what stands above a later turn; then nothing can be shared.
    const bool shares = tokens.size() > prefix_.size() &&
                        std::equal(prefix_.begin(), prefix_.end(), tokens.begin());
    ASSIGN_OR_RETURN(const int32_t slot, shares
                                             ? runner_.Fork(prefix_slot_, tokens, kGreedySampling)
                                             : runner_.OpenSlot(tokens, kGreedySampling));
    return std::make_unique<Prompt>(runner_, slot, tokens, shares ? std::ssize(prefix_) : 0);
  }

  Result<std::string> AnswerInSlot(int32_t slot, const Prompt& prompt, int64_t max_tokens) {
    const std::vector<int32_t>& eos = model_.config.eos_token_ids;
    int32_t token = prompt.first_token_;
    std::vector<int32_t> answer;
    auto position = std::ssize(prompt.tokens_);
    while (std::find(eos.begin(), eos.end(), token) == eos.end()) {
      answer.push_back(token);
      if (std::ssize(answer) == max_tokens || position + 1 > runner_.limits().max_model_len) {
        break;
      }
      RETURN_IF_ERROR(runner_.Reserve(slot, position + 1));
      StepInput input;
      input.decode.push_back(DecodeRow{.slot = slot, .position = position, .token = token});
      ASSIGN_OR_RETURN(const std::vector<SampledToken> sampled, runner_.Step(input));
      token = sampled[0].token;
      ++position;
    }
    return model_.tokenizer->Decode(answer, true);
  }

  const LoadedModel& model_;
  LlamaRunner& runner_;
  std::vector<int32_t> prefix_;
  int32_t prefix_slot_ = -1;
};

Status CheckFits(const std::vector<int32_t>& prompt, const Question& question,
                 const LlamaRunner& runner) {
  if (prompt.empty()) {
    return InvalidArgument("{}: the prompt is empty", question.id);
  }
  return std::ssize(prompt) <= runner.limits().max_model_len
             ? OkStatus()
             : InvalidArgument("{}: the prompt has {} tokens, the context {}", question.id,
                               prompt.size(), runner.limits().max_model_len);
}

// All turns of one question; `prompt` is the first turn's.
Result<std::string> AnswerTurns(DocumentReader& reader, Conversation conversation,
                                const DocumentReader::Prompt& prompt, const Question& question,
                                const LlamaRunner& runner) {
  ASSIGN_OR_RETURN(std::string prediction, reader.Answer(prompt, question.max_answer_tokens));
  conversation.AddAnswer(prediction);
  for (size_t turn = 1; turn < conversation.turns(); ++turn) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, conversation.NextPrompt());
    RETURN_IF_ERROR(CheckFits(tokens, question, runner));
    ASSIGN_OR_RETURN(const std::unique_ptr<DocumentReader::Prompt> next, reader.Read(tokens));
    ASSIGN_OR_RETURN(const std::string answer, reader.Answer(*next, question.max_answer_tokens));
    conversation.AddAnswer(answer);
    prediction += "\n" + answer;
  }
  return prediction;
}

// What a run has answered; the others are left.
class RunProgress {
 public:
  RunProgress(const EvalRun& run, const QuestionSet& set, PartialResults& partial)
      : run_(run), set_(set), partial_(partial), done_(set.questions.size(), false) {
    answers_.predictions.resize(set.questions.size());
    for (size_t i = 0; i < set.questions.size(); ++i) {
      const Json* done = partial.Find(run.name, set.questions[i].id);
      if (done != nullptr && done->is_array() && done->size() == 3) {
        answers_.predictions[i] = done->at(0).get<std::string>();
        answers_.selection.uses += done->at(1).get<int64_t>();
        answers_.selection.made += done->at(2).get<int64_t>();
        done_[i] = true;
      }
    }
  }

  const EvalRun& run() const { return run_; }
  bool done(size_t question) const { return done_[question]; }

  void Take(size_t question, std::string prediction, const SelectionStats& selection) {
    partial_.Write(run_.name, set_.questions[question].id,
                   Json::array({prediction, selection.uses, selection.made}));
    answers_.predictions[question] = std::move(prediction);
    answers_.selection.uses += selection.uses;
    answers_.selection.made += selection.made;
    done_[question] = true;
  }
  Answers TakeAnswers() && { return std::move(answers_); }

 private:
  const EvalRun& run_;
  const QuestionSet& set_;
  PartialResults& partial_;
  std::vector<bool> done_;
  Answers answers_;
};

// What the model makes of the right answer; nothing of it depends on decode, so all runs share it.
Status ForceAnswer(const LoadedModel& model, DocumentReader& reader, const LlamaRunner& runner,
                   const QuestionSet& set, size_t index, std::vector<int32_t> tokens,
                   std::vector<RunProgress>& runs) {
  const Question& question = set.questions[index];
  const auto first = std::ssize(tokens);
  const std::vector<int32_t> answer = model.tokenizer->Encode(*question.WholeAnswer());
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  RETURN_IF_ERROR(CheckFits(tokens, question, runner));
  ASSIGN_OR_RETURN(const std::string prediction, reader.Likeliest(tokens, first));
  for (RunProgress& progress : runs) {
    if (!progress.done(index)) {
      progress.Take(index, prediction, SelectionStats{});
    }
  }
  return OkStatus();
}

// A question's answers by all runs that have not given theirs.
Status AnswerQuestion(DocumentReader& reader, LlamaRunner& runner, const QuestionSet& set,
                      size_t index, const Conversation& conversation,
                      const std::vector<int32_t>& tokens, std::vector<RunProgress>& runs) {
  ASSIGN_OR_RETURN(const std::unique_ptr<DocumentReader::Prompt> prompt, reader.Read(tokens));
  for (RunProgress& progress : runs) {
    if (progress.done(index)) {
      continue;
    }
    if (!progress.run().dense()) {
      ASSIGN_OR_RETURN(const SelectionPolicy policy, PolicyOf(progress.run().settings));
      RETURN_IF_ERROR(runner.SetPolicy(policy));
    }
    ASSIGN_OR_RETURN(std::string prediction,
                     AnswerTurns(reader, conversation, *prompt, set.questions[index], runner));
    ASSIGN_OR_RETURN(const SelectionStats selection, runner.Selection());
    progress.Take(index, std::move(prediction), selection);
  }
  return OkStatus();
}

}  // namespace

Result<std::vector<Answers>> AnswerQuestions(const LoadedModel& model,
                                             std::span<const EvalRun> runs, const QuestionSet& set,
                                             AnswerMode mode, PartialResults& partial,
                                             const EvalProgress& progress) {
  const bool forced = mode == AnswerMode::kTeacherForced;
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner,
                   MakeRunner(model, runs[0], forced ? kQueryBlockTokens : 0));
  std::vector<RunProgress> states;
  std::map<size_t, std::vector<size_t>> by_document;  // questions that a run has left
  int64_t left = 0;
  for (const EvalRun& run : runs) {
    states.emplace_back(run, set, partial);
  }
  for (size_t i = 0; i < set.questions.size(); ++i) {
    if (std::any_of(states.begin(), states.end(),
                    [i](const RunProgress& state) { return !state.done(i); })) {
      by_document[set.questions[i].document].push_back(i);
      ++left;
    }
  }
  const std::string name = runs.size() == 1 ? runs[0].name : runs[0].attention;
  for (const auto& [document, rows] : by_document) {
    std::vector<Conversation> conversations;
    std::vector<std::vector<int32_t>> prompts;
    for (const size_t row : rows) {
      const Question& question = set.questions[row];
      conversations.emplace_back(model, set.documents[document], question);
      ASSIGN_OR_RETURN(std::vector<int32_t> prompt, conversations.back().NextPrompt());
      RETURN_IF_ERROR(CheckFits(prompt, question, *runner));
      prompts.push_back(std::move(prompt));
    }
    const auto answered = std::ssize(set.questions) - left;
    DocumentReader reader(model, *runner);
    RETURN_IF_ERROR(reader.Open(prompts, [&](int64_t tokens) {
      progress(static_cast<double>(answered) / static_cast<double>(set.questions.size()),
               fmt::format("{}: question {} of {}, {} of {} tokens", name, answered + 1,
                           set.questions.size(), tokens, prompts[0].size()));
    }));
    for (size_t i = 0; i < rows.size(); ++i, --left) {
      RETURN_IF_ERROR(forced ? ForceAnswer(model, reader, *runner, set, rows[i], prompts[i], states)
                             : AnswerQuestion(reader, *runner, set, rows[i], conversations[i],
                                              prompts[i], states));
    }
  }
  ASSIGN_OR_RETURN(const SelectionStats read, runner->Selection());
  std::vector<Answers> answers;
  for (RunProgress& state : states) {
    answers.push_back(std::move(state).TakeAnswers());
    answers.back().selection.prefill = read.prefill;
  }
  return answers;
}

}  // namespace lserve
