#include "eval/runs.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <utility>

namespace lserve {

namespace {

// Settings of one entry of a sweep, the entry's text and the flag that it came from.
struct SweepEntry {
  const char* flag;
  std::string text;
  Settings settings;
};

Result<Settings> ParseSelection(const std::string& text, Settings settings) {
  const size_t first = text.find('/');
  const size_t second = first == std::string::npos ? first : text.find('/', first + 1);
  const auto number = [&](size_t begin, size_t end, int64_t* value) {
    const auto [last, error] = std::from_chars(text.data() + begin, text.data() + end, *value);
    return error == std::errc() && last == text.data() + end;
  };
  if (second == std::string::npos || !number(0, first, &settings.selection_unit) ||
      !number(first + 1, second, &settings.token_budget)) {
    return InvalidArgument("--selections \"{}\" is not UNIT/BUDGET/REUSE", text);
  }
  settings.reuse_interval = text.substr(second + 1);
  return settings;
}

Result<std::vector<SweepEntry>> ReadSweep(const Settings& settings, const Sweep& sweep) {
  std::vector<SweepEntry> entries;
  for (const int64_t budget : sweep.budgets) {
    entries.push_back({"budgets", std::to_string(budget), settings});
    entries.back().settings.token_budget = budget;
  }
  for (const std::string& text : sweep.selections) {
    ASSIGN_OR_RETURN(Settings selected, ParseSelection(text, settings));
    entries.push_back({"selections", text, std::move(selected)});
  }
  if (!sweep.budgets.empty() && !sweep.selections.empty()) {
    return InvalidArgument("--budgets and --selections are two ways to say it: give one");
  }
  return entries;
}

}  // namespace

Result<std::vector<EvalRun>> PlanRuns(const Settings& settings, const Sweep& sweep) {
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, settings.AttentionNames());
  ASSIGN_OR_RETURN(const std::vector<SweepEntry> entries, ReadSweep(settings, sweep));
  if (!entries.empty() && std::find(modes.begin(), modes.end(), "lserve") == modes.end()) {
    return InvalidArgument("--{} needs the mode lserve; --attention is {}", entries[0].flag,
                           settings.attention);
  }
  std::vector<EvalRun> runs;
  for (const std::string& mode : modes) {
    EvalRun run{.name = mode, .attention = mode, .settings = settings};
    run.settings.attention = mode;
    if (run.dense() || entries.empty()) {
      runs.push_back(std::move(run));
      continue;
    }
    for (const SweepEntry& entry : entries) {
      run.name = fmt::format("{}@{}", mode, entry.text);
      run.settings = entry.settings;
      run.settings.attention = mode;
      RETURN_IF_ERROR(Validate(run.settings));
      if (std::any_of(runs.begin(), runs.end(),
                      [&](const EvalRun& other) { return other.name == run.name; })) {
        return InvalidArgument("--{} names {} twice", entry.flag, entry.text);
      }
      runs.push_back(run);
    }
  }
  return runs;
}

bool SharePrefill(const EvalRun& a, const EvalRun& b) {
  const auto but_selection = [](Settings settings) {
    settings.token_budget = 0;
    settings.selection_unit = 0;
    settings.reuse_interval.clear();
    return settings.ToJson();
  };
  return a.attention == b.attention && but_selection(a.settings) == but_selection(b.settings);
}

Result<std::unique_ptr<LlamaRunner>> MakeRunner(const LoadedModel& model, const EvalRun& run,
                                                int32_t max_logit_rows) {
  ASSIGN_OR_RETURN(AttentionMode mode, model.Mode(run.attention));
  if (!run.dense()) {
    ASSIGN_OR_RETURN(mode.policy, PolicyOf(run.settings));
  }
  ASSIGN_OR_RETURN(RunnerOptions options, model.Options());
  options.max_logit_rows = max_logit_rows;
  return model.MakeRunner(mode, options);
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
