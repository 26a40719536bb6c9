#include "eval/evaluation.h"

#include <algorithm>
#include <utility>

#include "base/build_info.h"
#include "eval/answers.h"
#include "eval/forced_documents.h"
#include "eval/partial_results.h"
#include "eval/suites.h"
#include "eval/teacher_forced.h"

namespace lserve {
namespace {

constexpr const char* kAllSuites = "all";
// Under this name traces stand among the partial results: one entry holds all runs of a document.
constexpr const char* kForcedRuns = "teacher-forced";

std::vector<std::string> KnownSuites() {
  std::vector<std::string> names = QuestionSuiteNames();
  names.emplace_back(kLongGeneration);
  return names;
}

// The suites to run, each once, in the order of reports.
std::vector<std::string> WantedSuites(const EvalOptions& options) {
  std::vector<std::string> wanted;
  for (const std::string& name : KnownSuites()) {
    for (const std::string& asked : options.suites) {
      if ((asked == name || asked == kAllSuites) && (wanted.empty() || wanted.back() != name)) {
        wanted.push_back(name);
      }
    }
  }
  return wanted;
}

Status CheckRange(const char* flag, int64_t value, int64_t low, int64_t high) {
  return value >= low && value <= high
             ? OkStatus()
             : InvalidArgument("--{} {} is outside {} to {}", flag, value, low, high);
}

Result<SuiteOptions> SuiteOptionsOf(const LoadedModel& model, const EvalOptions& options) {
  ASSIGN_OR_RETURN(const RunnerOptions runner, model.Options());
  const int64_t context = runner.max_model_len;
  SuiteOptions suite{.lengths = options.lengths,
                     .depths = options.depths,
                     .samples = options.samples,
                     .seed = options.seed};
  if (suite.lengths.empty()) {
    for (const int64_t length : {int64_t{8192}, int64_t{32768}}) {
      if (length <= context) {
        suite.lengths.push_back(length);
      }
    }
    if (suite.lengths.empty()) {
      suite.lengths = {context};
    }
  }
  for (const int64_t length : suite.lengths) {
    if (length > context) {
      return InvalidArgument("--lengths {} is longer than the context of {} tokens", length,
                             context);
    }
    RETURN_IF_ERROR(CheckRange("lengths", length, kMinSuiteLength, context));
  }
  return suite;
}

Result<QuestionSet> GatherQuestions(const LoadedModel& model, const EvalOptions& options) {
  QuestionSet set;
  if (!options.qa.empty()) {
    ASSIGN_OR_RETURN(QuestionSet file, ReadQuestionFile(options.qa, options.filter));
    RETURN_IF_ERROR(set.Append(std::move(file)));
  }
  for (const std::string& path : options.ruler) {
    ASSIGN_OR_RETURN(QuestionSet file, ReadRulerFile(path, options.filter));
    RETURN_IF_ERROR(set.Append(std::move(file)));
  }
  for (const std::string& name : WantedSuites(options)) {
    if (name != kLongGeneration) {
      ASSIGN_OR_RETURN(const SuiteOptions suite, SuiteOptionsOf(model, options));
      ASSIGN_OR_RETURN(const PromptMeasure measure, MeasureOf(model));
      ASSIGN_OR_RETURN(QuestionSet made, MakeSuite(name, suite, measure));
      RETURN_IF_ERROR(set.Append(std::move(made)));
    }
  }
  for (const Question& question : set.questions) {
    if (options.teacher_forced && question.WholeAnswer() == nullptr) {
      return InvalidArgument(
          "--teacher-forced takes questions of one turn whose answer is known: {} of {} has {} "
          "turns "
          "and {} expected values",
          question.id, question.kind, std::max<size_t>(1, question.turns.size()),
          question.expected.size());
    }
  }
  return set;
}

Result<std::vector<ForcedDocument>> GatherForced(const LoadedModel& model,
                                                 const EvalOptions& options) {
  std::vector<ForcedDocument> documents;
  const std::vector<std::string> suites = WantedSuites(options);
  if (!suites.empty() && suites.back() == kLongGeneration) {
    ASSIGN_OR_RETURN(const SuiteOptions suite, SuiteOptionsOf(model, options));
    ASSIGN_OR_RETURN(documents, MakeLongGeneration(model, suite, options.decode_tokens));
  }
  if (!options.text.empty()) {
    ASSIGN_OR_RETURN(const RunnerOptions runner, model.Options());
    ASSIGN_OR_RETURN(std::vector<ForcedDocument> texts,
                     MakeTextDocuments(model, options.text, options.lengths, runner.max_model_len,
                                       options.decode_tokens));
    std::move(texts.begin(), texts.end(), std::back_inserter(documents));
  }
  return documents;
}

// What partial results must have in common with the run that goes on.
OrderedJson PartialHeader(const LoadedModel& model, const EvalOptions& options) {
  OrderedJson header;
  header["model"] = model.name;
  header["settings"] = model.settings.ToJson();
  header["qa"] = options.qa;
  header["ruler"] = options.ruler;
  header["text"] = options.text;
  header["lengths"] = options.lengths;
  header["depths"] = options.depths;
  header["samples"] = options.samples;
  header["seed"] = options.seed;
  header["teacher_forced"] = options.teacher_forced;
  header["decode_tokens"] = options.decode_tokens;
  header["budgets"] = options.sweep.budgets;
  header["selections"] = options.sweep.selections;
  return header;
}

Result<std::vector<ForcedTrace>> TraceOrResume(const LoadedModel& model,
                                               const std::vector<EvalRun>& runs,
                                               const ForcedDocument& document,
                                               PartialResults& partial,
                                               const EvalProgress& progress) {
  std::vector<ForcedTrace> traces;
  const Json* done = partial.Find(kForcedRuns, document.id);
  if (done != nullptr && done->is_array() && done->size() == runs.size()) {
    for (const Json& json : *done) {
      ASSIGN_OR_RETURN(ForcedTrace trace, TraceFromJson(json));
      traces.push_back(std::move(trace));
    }
    return traces;
  }
  ASSIGN_OR_RETURN(traces, TraceDocument(model, runs, document, progress));
  OrderedJson json = OrderedJson::array();
  for (const ForcedTrace& trace : traces) {
    json.push_back(ToJson(trace));
  }
  partial.Write(kForcedRuns, document.id, Json(json));
  return traces;
}

}  // namespace

Status Validate(const EvalOptions& options, const Settings& settings) {
  if (options.suites.empty() && options.qa.empty() && options.ruler.empty() &&
      options.text.empty()) {
    return InvalidArgument("nothing to evaluate: give --suite, --qa, --ruler or --text");
  }
  if (options.resume && (options.json.empty() || options.json == "-")) {
    return InvalidArgument("--resume goes on from the rows beside a result file: give --json FILE");
  }
  if (settings.max_num_seqs < 4) {
    return InvalidArgument("--max-num-seqs {}: eval needs 4: document, question, turn, answer",
                           settings.max_num_seqs);
  }
  const std::vector<std::string> known = KnownSuites();
  for (const std::string& name : options.suites) {
    if (name != kAllSuites && std::find(known.begin(), known.end(), name) == known.end()) {
      return InvalidArgument("--suite \"{}\" is none of {}, {}", name, fmt::join(known, ", "),
                             kAllSuites);
    }
  }
  for (size_t i = 0; i < options.lengths.size(); ++i) {
    RETURN_IF_ERROR(CheckRange("lengths", options.lengths[i], kMinSuiteLength, int64_t{1} << 30));
    if (std::find(options.lengths.begin(), options.lengths.begin() + static_cast<ptrdiff_t>(i),
                  options.lengths[i]) != options.lengths.begin() + static_cast<ptrdiff_t>(i)) {
      return InvalidArgument("--lengths names {} twice", options.lengths[i]);
    }
  }
  RETURN_IF_ERROR(CheckRange("depths", options.depths, 1, 100));
  RETURN_IF_ERROR(CheckRange("samples", options.samples, 1, 10000));
  RETURN_IF_ERROR(CheckRange("decode-tokens", options.decode_tokens, 16, 1 << 20));
  RETURN_IF_ERROR(CheckRange("limit", options.filter.limit, 0, int64_t{1} << 40));
  RETURN_IF_ERROR(CheckRange("max-length", options.filter.max_length, 0, int64_t{1} << 40));
  return PlanRuns(settings, options.sweep).status();
}

Result<EvalMaterial> GatherMaterial(const LoadedModel& model, const EvalOptions& options) {
  EvalMaterial material;
  ASSIGN_OR_RETURN(material.set, GatherQuestions(model, options));
  ASSIGN_OR_RETURN(material.forced, GatherForced(model, options));
  return material;
}

Result<EvalReport> Evaluate(const LoadedModel& model, const EvalOptions& options,
                            EvalMaterial material, const std::string& command,
                            const EvalProgress& progress) {
  ASSIGN_OR_RETURN(const std::vector<EvalRun> runs, PlanRuns(model.settings, options.sweep));
  ASSIGN_OR_RETURN(PartialResults partial, PartialResults::Open(options.json, options.resume,
                                                                PartialHeader(model, options)));
  EvalReport report;
  report.model = model.name;
  report.commit = BuildCommit();
  const DeviceFacts& facts = model.backend->facts();
  report.device = {{"backend", model.backend->name()},
                   {"name", facts.name},
                   {"instructions", facts.instructions},
                   {"threads", facts.threads}};
  report.command = command;
  report.seed = options.seed;
  report.plan = model.plan;
  if (!model.plan_source.empty()) {
    ASSIGN_OR_RETURN(report.gates,
                     ReadHeadGates(model.plan_source, model.plan.layers(), model.plan.kv_heads()));
  }
  const AnswerMode mode = options.teacher_forced ? AnswerMode::kTeacherForced : AnswerMode::kGreedy;
  for (size_t first = 0; first < runs.size();) {
    size_t end = first + 1;
    while (end < runs.size() && SharePrefill(runs[first], runs[end])) {
      ++end;
    }
    std::vector<Answers> answers(end - first);
    if (!material.set.questions.empty()) {
      ASSIGN_OR_RETURN(answers, AnswerQuestions(model, std::span(runs).subspan(first, end - first),
                                                material.set, mode, partial, progress));
    }
    for (size_t i = 0; i < answers.size(); ++i) {
      RunAnswers run{.run = runs[first + i], .answers = std::move(answers[i]), .scores = {}};
      for (size_t q = 0; q < run.answers.predictions.size(); ++q) {
        run.scores.push_back(Score(material.set.questions[q], run.answers.predictions[q]));
      }
      report.runs.push_back(std::move(run));
    }
    first = end;
  }
  for (ForcedDocument& document : material.forced) {
    ASSIGN_OR_RETURN(std::vector<ForcedTrace> traces,
                     TraceOrResume(model, runs, document, partial, progress));
    report.traces.push_back(std::move(traces));
    document.tokens.clear();
  }
  report.forced = std::move(material.forced);
  report.questions = std::move(material.set.questions);
  return report;
}

}  // namespace lserve
