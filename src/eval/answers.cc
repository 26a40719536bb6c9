#include "eval/answers.h"

#include <algorithm>
#include <map>
#include <set>
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

  Result<std::string> Answer(const std::vector<int32_t>& prompt, int64_t max_tokens) {
    // A template may rewrite what stands above a later turn; then nothing can be shared.
    const bool shares = prompt.size() > prefix_.size() &&
                        std::equal(prefix_.begin(), prefix_.end(), prompt.begin());
    ASSIGN_OR_RETURN(const int32_t slot, shares
                                             ? runner_.Fork(prefix_slot_, prompt, kGreedySampling)
                                             : runner_.OpenSlot(prompt, kGreedySampling));
    const Result<std::string> answer =
        AnswerInSlot(slot, prompt, shares ? std::ssize(prefix_) : 0, max_tokens);
    runner_.CloseSlot(slot);
    return answer;
  }

 private:
  Result<std::string> AnswerInSlot(int32_t slot, const std::vector<int32_t>& prompt, int64_t first,
                                   int64_t max_tokens) {
    const std::vector<int32_t>& eos = model_.config.eos_token_ids;
    ASSIGN_OR_RETURN(int32_t token, PrefillPrompt(runner_, slot, prompt, first,
                                                  model_.settings.max_num_batched_tokens, true));
    std::vector<int32_t> answer;
    auto position = static_cast<int64_t>(prompt.size());
    while (std::find(eos.begin(), eos.end(), token) == eos.end()) {
      answer.push_back(token);
      if (std::ssize(answer) == max_tokens || position + 1 > runner_.limits().max_model_len) {
        break;
      }
      RETURN_IF_ERROR(runner_.Reserve(slot, position + 1));
      StepInput input;
      input.decode.push_back(DecodeRow{.slot = slot, .position = position});
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
Result<std::string> AnswerTurns(DocumentReader& reader, Conversation& conversation,
                                std::vector<int32_t> prompt, const Question& question,
                                const LlamaRunner& runner) {
  std::string prediction;
  for (size_t turn = 0; turn < conversation.turns(); ++turn) {
    if (turn > 0) {
      ASSIGN_OR_RETURN(prompt, conversation.NextPrompt());
      RETURN_IF_ERROR(CheckFits(prompt, question, runner));
      prediction += "\n";
    }
    ASSIGN_OR_RETURN(const std::string answer, reader.Answer(prompt, question.max_answer_tokens));
    conversation.AddAnswer(answer);
    prediction += answer;
  }
  return prediction;
}

// A run's own part of the work: what it has answered and what is left, by document.
struct RunState {
  Answers answers;
  std::map<size_t, std::vector<size_t>> left;
};

RunState WhatIsLeft(const EvalRun& run, const QuestionSet& set, const PartialResults& partial) {
  RunState state;
  state.answers.predictions.resize(set.questions.size());
  for (size_t i = 0; i < set.questions.size(); ++i) {
    const Json* done = partial.Find(run.name, set.questions[i].id);
    if (done != nullptr && done->is_string()) {
      state.answers.predictions[i] = done->get<std::string>();
    } else {
      state.left[set.questions[i].document].push_back(i);
    }
  }
  return state;
}

// The questions of one document, for every run that has some left.
class DocumentQuestions {
 public:
  DocumentQuestions(const LoadedModel& model, const QuestionSet& set, size_t document)
      : model_(model), set_(set), document_(set.documents[document]) {}

  // The first prompts of the questions `rows`.
  Result<std::vector<std::vector<int32_t>>> Prompts(const std::set<size_t>& rows,
                                                    const LlamaRunner& runner) const {
    std::vector<std::vector<int32_t>> prompts;
    for (const size_t row : rows) {
      ASSIGN_OR_RETURN(std::vector<int32_t> prompt, Begin(row).NextPrompt());
      RETURN_IF_ERROR(CheckFits(prompt, set_.questions[row], runner));
      prompts.push_back(std::move(prompt));
    }
    return prompts;
  }

  Result<std::string> Answer(DocumentReader& reader, size_t row, const LlamaRunner& runner) const {
    Conversation conversation = Begin(row);
    ASSIGN_OR_RETURN(std::vector<int32_t> prompt, conversation.NextPrompt());
    return AnswerTurns(reader, conversation, std::move(prompt), set_.questions[row], runner);
  }

 private:
  Conversation Begin(size_t row) const { return {model_, document_, set_.questions[row]}; }

  const LoadedModel& model_;
  const QuestionSet& set_;
  const std::string& document_;
};

}  // namespace

Result<std::vector<Answers>> AnswerQuestions(const LoadedModel& model,
                                             std::span<const EvalRun> runs, const QuestionSet& set,
                                             PartialResults& partial,
                                             const EvalProgress& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner, MakeRunner(model, runs[0]));
  std::vector<RunState> states;
  std::map<size_t, std::set<size_t>> by_document;  // what is left to any run
  size_t left = 0;
  for (const EvalRun& run : runs) {
    states.push_back(WhatIsLeft(run, set, partial));
    for (const auto& [document, rows] : states.back().left) {
      by_document[document].insert(rows.begin(), rows.end());
      left += rows.size();
    }
  }
  const size_t total = runs.size() * set.questions.size();
  const auto share_done = [&] {
    return 1.0 - static_cast<double>(left) / static_cast<double>(total);
  };
  for (const auto& [document, rows] : by_document) {
    const DocumentQuestions questions(model, set, document);
    ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> prompts,
                     questions.Prompts(rows, *runner));
    DocumentReader reader(model, *runner);
    RETURN_IF_ERROR(reader.Open(prompts, [&](int64_t tokens) {
      progress(share_done(), fmt::format("{}: {} of {} answers, {} of {} tokens", runs[0].attention,
                                         total - left, total, tokens, prompts[0].size()));
    }));
    for (size_t r = 0; r < runs.size(); ++r) {
      RunState& state = states[r];
      if (!runs[r].dense()) {
        ASSIGN_OR_RETURN(const SelectionPolicy policy, PolicyOf(runs[r].settings));
        RETURN_IF_ERROR(runner->SetPolicy(policy));
      }
      for (const size_t row : state.left[document]) {
        ASSIGN_OR_RETURN(std::string prediction, questions.Answer(reader, row, *runner));
        partial.Write(runs[r].name, set.questions[row].id, prediction);
        state.answers.predictions[row] = std::move(prediction);
        --left;
      }
      ASSIGN_OR_RETURN(const SelectionStats selection, runner->Selection());
      state.answers.selection.uses += selection.uses;
      state.answers.selection.made += selection.made;
    }
  }
  std::vector<Answers> answers;
  for (RunState& state : states) {
    answers.push_back(std::move(state.answers));
  }
  return answers;
}

}  // namespace lserve
