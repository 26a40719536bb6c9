// lserve eval: what sparse attention costs in accuracy. Dense and sparse answer the same questions
// and are fed the same texts (eval/evaluation.h).
#include <cstdio>
#include <memory>

#include "base/file.h"
#include "cli/command.h"
#include "eval/evaluation.h"
#include "eval/html_report.h"
#include "eval/partial_results.h"

namespace lserve {
namespace {

struct EvalArguments {
  std::string model;
  Settings settings;
  Settings defaults;
  EvalOptions options;
  std::string html;
};

// For a POSIX shell.
std::string ShellQuoted(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=@%+";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) {
    return word;
  }
  std::string quoted = "'";
  for (const char c : word) {
    quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return quoted + "'";
}

// The command line that repeats the evaluation: flags that differ from their defaults.
std::string Command(const EvalArguments& arguments) {
  std::string command = "lserve eval " + ShellQuoted(arguments.model);
  const auto add = [&](const char* flag, const auto& value) {
    command += fmt::format(" --{} {}", flag, ShellQuoted(fmt::format("{}", value)));
  };
  const auto add_list = [&](const char* flag, const auto& list) {
    if (!list.empty()) {
      add(flag, fmt::format("{}", fmt::join(list, ",")));
    }
  };
  const EvalOptions& options = arguments.options;
  const EvalOptions standard;
  const auto add_changed = [&](const char* flag, const auto& value, const auto& usual) {
    if (value != usual) {
      add(flag, value);
    }
  };
  add_list("suite", options.suites);
  add_changed("qa", options.qa, standard.qa);
  add_list("ruler", options.ruler);
  add_changed("text", options.text, standard.text);
  add_list("lengths", options.lengths);
  add_changed("depths", options.depths, standard.depths);
  add_changed("samples", options.samples, standard.samples);
  add_changed("seed", options.seed, standard.seed);
  if (options.teacher_forced) {
    command += " --teacher-forced";
  }
  add_changed("decode-tokens", options.decode_tokens, standard.decode_tokens);
  add_changed("max-length", options.filter.max_length, standard.filter.max_length);
  add_list("kinds", options.filter.kinds);
  add_changed("limit", options.filter.limit, standard.filter.limit);
  add_list("budgets", options.sweep.budgets);
  add_list("selections", options.sweep.selections);
  std::vector<std::string> usual;
  Settings::ForEach(arguments.defaults, [&](const char*, const auto& value, const char*) {
    usual.push_back(fmt::format("{}", value));
  });
  size_t field = 0;
  Settings::ForEach(arguments.settings, [&](const char* flag, const auto& value, const char*) {
    add_changed(flag, fmt::format("{}", value), usual[field++]);
  });
  return command;
}

Status Eval(EvalArguments& arguments) {
  RETURN_IF_ERROR(Validate(arguments.options, arguments.settings));
  // What is asked comes before the weights: they can take minutes, and it may be wrong.
  ASSIGN_OR_RETURN(LoadedModel model, LoadedModel::Open(arguments.model, arguments.settings));
  ASSIGN_OR_RETURN(EvalMaterial material, GatherMaterial(model, arguments.options));
  RETURN_IF_ERROR(LoadWeightsForCommand(model));
  ASSIGN_OR_RETURN(const EvalReport report, [&] {
    ProgressLine line("evaluating");
    return Evaluate(model, arguments.options, std::move(material), Command(arguments),
                    [&](double done, const std::string& note) { line.Show(done, note); });
  }());
  if (arguments.options.json != "-") {
    std::fputs(ToTable(report).c_str(), stdout);
  }
  RETURN_IF_ERROR(WriteResult(arguments.options.json, ToJson(report)));
  if (!arguments.html.empty()) {
    RETURN_IF_ERROR(WriteFileAtomically(arguments.html, ToHtml(report)));
  }
  PartialResults::Discard(arguments.options.json);
  return OkStatus();
}

}  // namespace

RegisteredCommand RegisterEval(CLI::App& program) {
  auto arguments = std::make_shared<EvalArguments>();
  arguments->settings.attention = "dense,lserve";
  arguments->settings.max_num_seqs = 4;
  arguments->defaults = arguments->settings;
  EvalOptions& options = arguments->options;
  CLI::App* app = program.add_subcommand("eval", "accuracy, dense against sparse");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  app->add_option("--suite", options.suites,
                  "generated tasks, comma-separated, or all: niah, multikey, multivalue, "
                  "multiquery, variable-tracking, common-words, frequent-words, json-kv, "
                  "many-shot, long-generation")
      ->delimiter(',');
  app->add_option("--qa", options.qa, "questions, JSON lines, .gz or plain");
  app->add_option("--ruler", options.ruler, "files that RULER prepared, comma-separated")
      ->delimiter(',');
  app->add_option("--text", options.text, "a text whose loss a token is measured");
  app->add_option("--lengths", options.lengths,
                  "tokens of the suites and of the text, comma-separated (default: 8192,32768 as "
                  "far as the context reaches; the whole text)")
      ->delimiter(',');
  app->add_option("--depths", options.depths, "places of the needle in niah")
      ->capture_default_str();
  app->add_option("--samples", options.samples, "questions a task and length, in niah a depth too")
      ->capture_default_str();
  app->add_option("--seed", options.seed, "of the suites")->capture_default_str();
  app->add_flag("--teacher-forced", options.teacher_forced,
                "prefill the right answer too, predict each of its tokens from the text before it");
  app->add_option("--decode-tokens", options.decode_tokens,
                  "tokens fed as decode rows in long-generation and from the text")
      ->capture_default_str();
  app->add_option("--budgets", options.sweep.budgets,
                  "token budgets: the lserve mode runs once with each, comma-separated")
      ->delimiter(',');
  app->add_option("--selections", options.sweep.selections,
                  "the same with UNIT/BUDGET/REUSE, e.g. 16/512/1,64/4096/4")
      ->delimiter(',');
  app->add_option("--max-length", options.filter.max_length,
                  "only rows of the files with at most this length");
  app->add_option("--kinds", options.filter.kinds, "only rows of the files of these kinds")
      ->delimiter(',');
  app->add_option("--limit", options.filter.limit, "only a file's first rows that qualify");
  app->add_flag("--resume", options.resume, "go on where an interrupted run with --json stopped");
  app->add_option("--json", options.json, "write the result here; - for standard output");
  app->add_option("--html", arguments->html, "write a report to look at here, one file");
  return {app, [arguments] { return Eval(*arguments); }};
}

}  // namespace lserve
