#include "eval/runs.h"

#include <algorithm>
#include <ctime>
#include <utility>

namespace lserve {

Result<std::vector<EvalRun>> PlanRuns(const Settings& settings,
                                      const std::vector<int64_t>& budgets) {
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, settings.AttentionNames());
  if (!budgets.empty() && std::find(modes.begin(), modes.end(), "lserve") == modes.end()) {
    return InvalidArgument("--budgets needs the mode lserve; --attention is {}",
                           settings.attention);
  }
  std::vector<EvalRun> runs;
  for (const std::string& mode : modes) {
    EvalRun run{.name = mode, .attention = mode, .settings = settings};
    run.settings.attention = mode;
    if (run.dense() || budgets.empty()) {
      runs.push_back(std::move(run));
      continue;
    }
    for (const int64_t budget : budgets) {
      run.name = fmt::format("{}@{}", mode, budget);
      run.settings.token_budget = budget;
      RETURN_IF_ERROR(Validate(run.settings));
      if (std::any_of(runs.begin(), runs.end(),
                      [&](const EvalRun& other) { return other.name == run.name; })) {
        return InvalidArgument("--budgets names {} twice", budget);
      }
      runs.push_back(run);
    }
  }
  return runs;
}

Result<std::unique_ptr<LlamaRunner>> MakeRunner(const LoadedModel& model, const EvalRun& run,
                                                int32_t max_logit_rows) {
  ASSIGN_OR_RETURN(AttentionMode mode, model.Mode(run.attention));
  if (!run.dense()) {
    mode.policy.token_budget = static_cast<int32_t>(run.settings.token_budget);
  }
  ASSIGN_OR_RETURN(RunnerOptions options, model.Options());
  options.max_logit_rows = max_logit_rows;
  return LlamaRunner::Make(*model.backend, model.weights, mode, options);
}

Result<std::vector<int32_t>> EncodeChat(const LoadedModel& model,
                                        std::span<const ChatMessage> messages,
                                        bool generation_prompt) {
  if (!model.chat_template.has_value()) {
    return FailedPrecondition("{} has no chat template", model.path);
  }
  std::tm date = {};
  date.tm_year = 2025 - 1900;
  date.tm_mday = 1;
  date.tm_wday = 3;  // 1 January 2025 was a Wednesday
  ASSIGN_OR_RETURN(const std::vector<TextRun> runs,
                   model.chat_template->Render(messages, generation_prompt, &date));
  return model.tokenizer->EncodeRuns(runs);
}

Result<PromptMeasure> MeasureOf(const LoadedModel& model) {
  // Blank line between document and question, and what merges across the bounds.
  constexpr int64_t kMargin = 4;
  const ChatMessage empty{"user", ""};
  ASSIGN_OR_RETURN(const std::vector<int32_t> frame, EncodeChat(model, std::span(&empty, 1)));
  PromptMeasure measure;
  measure.turn_tokens = std::ssize(frame) + kMargin;
  measure.count_tokens = [tokenizer = model.tokenizer](std::string_view text) {
    return static_cast<int64_t>(tokenizer->Encode(text).size());
  };
  return measure;
}

}  // namespace lserve
