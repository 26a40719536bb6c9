// lserve generate: one answer on the terminal, streamed.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>

#include "base/build_info.h"
#include "base/file.h"
#include "cli/command.h"
#include "engine/engine.h"
#include "engine/sampling.h"

namespace lserve {
namespace {

struct GenerateArguments {
  std::string model;
  Settings settings;
  std::string prompt;
  std::string file;
  std::string system;
  bool raw = false;
  bool verbose = false;
  SamplingParams sampling;  // fields that the model folder has no say in
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::string json;
};

// The prompt's tokens: the document, a blank line and the question as one user turn.
Result<std::vector<int32_t>> BuildPrompt(const LoadedModel& model,
                                         const GenerateArguments& arguments) {
  std::string text;
  if (!arguments.file.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(arguments.file));
  }
  if (!arguments.prompt.empty()) {
    text += (text.empty() ? "" : "\n\n") + arguments.prompt;
  }
  if (text.empty()) {
    return InvalidArgument("nothing to answer: give --prompt, --file or both");
  }
  if (arguments.raw) {
    return model.tokenizer->EncodeWithBos(text);
  }
  if (!model.chat_template.has_value()) {
    return FailedPrecondition("{} has no chat template; use --raw", model.path);
  }
  std::vector<ChatMessage> messages;
  if (!arguments.system.empty()) {
    messages.push_back({"system", arguments.system});
  }
  messages.push_back({"user", std::move(text)});
  ASSIGN_OR_RETURN(const std::vector<TextRun> runs, model.chat_template->Render(messages, true));
  return model.tokenizer->EncodeRuns(runs);
}

// What prefill left out, how often lists were made, and what the audit found, by layer.
void PrintSelection(const SelectionStats& selection) {
  if (selection.prefill.scored > 0) {
    std::fprintf(stderr, "prefill: %ld of %ld KV blocks of retrieval heads weighed\n",
                 static_cast<long>(selection.prefill.weighed),
                 static_cast<long>(selection.prefill.scored));
  }
  if (selection.uses > 0) {
    std::fprintf(stderr, "selection: %ld of %ld lists made, the others reused\n",
                 static_cast<long>(selection.made), static_cast<long>(selection.uses));
  }
  for (const LayerAudit& layer : selection.layers) {
    const auto rows = static_cast<double>(std::max<int64_t>(layer.rows, 1));
    std::fprintf(
        stderr,
        "audit, layer %d: %ld rows, attention mass captured %.4f (least %.4f), output error "
        "%.4f (most %.4f)\n",
        layer.layer, static_cast<long>(layer.rows), layer.captured_sum / rows, layer.captured_least,
        layer.error_sum / rows, layer.error_most);
  }
}

OrderedJson SelectionJson(const SelectionStats& selection) {
  OrderedJson layers = OrderedJson::array();
  for (const LayerAudit& layer : selection.layers) {
    const auto rows = static_cast<double>(std::max<int64_t>(layer.rows, 1));
    layers.push_back({{"layer", layer.layer},
                      {"rows", layer.rows},
                      {"captured_mass_mean", layer.captured_sum / rows},
                      {"captured_mass_least", layer.captured_least},
                      {"output_error_mean", layer.error_sum / rows},
                      {"output_error_most", layer.error_most}});
  }
  return {{"prefill_blocks_scored", selection.prefill.scored},
          {"prefill_blocks_weighed", selection.prefill.weighed},
          {"lists_used", selection.uses},
          {"lists_made", selection.made},
          {"audit", layers}};
}

Status Generate(GenerateArguments& arguments) {
  ASSIGN_OR_RETURN(LoadedModel model, LoadModelForCommand(arguments.model, arguments.settings));
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, arguments.settings.AttentionNames());
  if (modes.size() != 1) {
    return InvalidArgument("--attention {}: generate runs one mode", arguments.settings.attention);
  }
  ASSIGN_OR_RETURN(Request request, [&]() -> Result<Request> {
    Request made;
    ASSIGN_OR_RETURN(made.prompt, BuildPrompt(model, arguments));
    const SamplingParams defaults = DefaultSampling(model.config.generation);
    made.sampling = arguments.sampling;
    made.sampling.temperature = arguments.temperature.value_or(defaults.temperature);
    made.sampling.top_p = arguments.top_p.value_or(defaults.top_p);
    made.sampling.top_k = arguments.top_k.value_or(defaults.top_k);
    made.sampling.min_p = arguments.min_p.value_or(defaults.min_p);
    made.sampling.repetition_penalty =
        arguments.repetition_penalty.value_or(defaults.repetition_penalty);
    return made;
  }());
  ASSIGN_OR_RETURN(std::unique_ptr<LlamaRunner> runner, model.MakeRunner(modes[0]));
  std::vector<std::unique_ptr<Runner>> runners;
  runners.push_back(std::move(runner));
  EngineOptions options;
  options.max_batched_tokens = static_cast<int32_t>(arguments.settings.max_num_batched_tokens);
  options.eos_token_ids = model.config.eos_token_ids;
  Engine engine(std::move(runners), model.tokenizer, options);

  std::mutex mutex;
  std::condition_variable finished;
  OutputEvent last;
  std::string answer;
  ProgressLine line("reading the prompt");
  const OutputSink sink = [&](const OutputEvent& event) {
    const std::lock_guard lock(mutex);
    if (event.stats.generated_tokens == 0 && event.finish == FinishReason::kNone) {
      line.Show(
          static_cast<double>(event.stats.prefilled_tokens) /
              static_cast<double>(event.stats.prompt_tokens),
          fmt::format("{} of {} tokens", event.stats.prefilled_tokens, event.stats.prompt_tokens));
      return;
    }
    line.Clear();
    answer += event.text;
    std::fputs(event.text.c_str(), stdout);
    std::fflush(stdout);
    if (event.finish != FinishReason::kNone) {
      last = event;
      finished.notify_one();
    }
  };
  RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  {
    std::unique_lock lock(mutex);
    finished.wait(lock, [&] { return last.finish != FinishReason::kNone; });
  }
  std::printf("\n");
  if (last.finish == FinishReason::kError) {
    return last.error;
  }
  const RequestStats& stats = last.stats;
  if (arguments.verbose) {
    std::fprintf(
        stderr, "%ld prompt tokens in %.2f s, %ld generated in %.2f s, KV %.1f MiB, finish: %s\n",
        static_cast<long>(stats.prompt_tokens), stats.prefill_seconds,
        static_cast<long>(stats.generated_tokens), stats.decode_seconds,
        static_cast<double>(stats.kv_bytes) / (1024.0 * 1024.0), FinishReasonName(last.finish));
  }
  const SelectionStats selection = engine.stats(0).selection;
  if (arguments.verbose) {
    PrintSelection(selection);
  }
  OrderedJson result;
  result["settings"] = model.settings.ToJson();
  result["commit"] = BuildCommit();
  result["answer"] = answer;
  result["finish_reason"] = FinishReasonName(last.finish);
  result["prompt_tokens"] = stats.prompt_tokens;
  result["generated_tokens"] = stats.generated_tokens;
  result["prefill_seconds"] = stats.prefill_seconds;
  result["decode_seconds"] = stats.decode_seconds;
  result["kv_bytes"] = stats.kv_bytes;
  result["selection"] = SelectionJson(selection);
  return WriteResult(arguments.json, result);
}

}  // namespace

RegisteredCommand RegisterGenerate(CLI::App& program) {
  auto arguments = std::make_shared<GenerateArguments>();
  arguments->settings.max_num_seqs = 1;
  CLI::App* app = program.add_subcommand("generate", "one answer on the terminal");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  app->add_option("--prompt", arguments->prompt, "the question, or the whole prompt");
  app->add_option("--file", arguments->file, "a document; the prompt follows after a blank line");
  app->add_option("--system", arguments->system, "system message");
  app->add_flag("--raw", arguments->raw, "no chat template");
  app->add_flag("--verbose", arguments->verbose, "print timings and cache bytes at the end");
  SamplingParams& sampling = arguments->sampling;
  app->add_option("--max-tokens", sampling.max_tokens, "-1: what the context leaves")
      ->capture_default_str();
  const char* recommended = "default: what the model folder recommends";
  app->add_option("--temperature", arguments->temperature, recommended);
  app->add_option("--top-p", arguments->top_p, recommended);
  app->add_option("--top-k", arguments->top_k, recommended);
  app->add_option("--min-p", arguments->min_p, recommended);
  app->add_option("--repetition-penalty", arguments->repetition_penalty, recommended);
  app->add_option("--presence-penalty", sampling.presence_penalty)->capture_default_str();
  app->add_option("--frequency-penalty", sampling.frequency_penalty)->capture_default_str();
  app->add_option("--seed", sampling.seed)->capture_default_str();
  app->add_option("--stop", sampling.stop, "stop string; may be given again");
  app->add_option("--json", arguments->json, "also write the result here; - for standard output");
  return {app, [arguments] { return Generate(*arguments); }};
}

}  // namespace lserve
