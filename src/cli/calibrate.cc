// lserve calibrate: finds the KV heads that need the whole context and writes the head plan.
#include <cstdio>
#include <memory>

#include "base/file.h"
#include "cli/command.h"
#include "eval/calibration.h"

namespace lserve {
namespace {

struct CalibrateArguments {
  std::string model;
  Settings settings;
  CalibrationOptions options;
  std::string output;
  bool force = false;
  bool resume = false;
};

// "plan.tsv" -> "plan.json"
std::string ReportPath(const std::string& output) {
  constexpr std::string_view kSuffix = ".tsv";
  return (output.ends_with(kSuffix) ? output.substr(0, output.size() - kSuffix.size()) : output) +
         ".json";
}

void Print(const Calibration& calibration) {
  std::printf("%7s %6s %10s %10s %10s\n", "share", "heads", "loss", "rise", "exact rise");
  for (const OrderedJson& point : calibration.report["curve"]) {
    std::printf("%7.4f %6ld %10.5f %+10.5f", point["share"].get<double>(),
                static_cast<long>(point["streaming_heads"].get<int64_t>()),
                point["loss"].get<double>(), point["rise"].get<double>());
    if (point.contains("exact_rise")) {
      std::printf(" %+10.5f", point["exact_rise"].get<double>());
    }
    std::printf("\n");
  }
  std::printf("the last heads to stream (layer, KV head: gate):");
  constexpr size_t kShown = 5;
  const OrderedJson& heads = calibration.report["heads"];
  for (size_t i = 0; i < std::min(kShown, heads.size()); ++i) {
    std::printf(" %d, %d: %.3f;", heads[i]["layer"].get<int>(), heads[i]["head"].get<int>(),
                heads[i]["gate"].get<double>());
  }
  std::printf("\nlargest share within the bound: %.4f\n", calibration.largest_share);
}

Status RunCalibrate(CalibrateArguments& arguments) {
  if (!arguments.settings.head_plan.empty()) {
    return InvalidArgument("--head-plan {}: calibrate makes a head plan and reads none",
                           arguments.settings.head_plan);
  }
  const std::string output = arguments.output.empty()
                                 ? JoinPath(arguments.model, "full_attention_heads.tsv")
                                 : arguments.output;
  if (FileExists(output) && !arguments.force) {
    return InvalidArgument("{} is there already; --force replaces it, --output writes elsewhere",
                           output);
  }
  ASSIGN_OR_RETURN(LoadedModel model, LoadedModel::Open(arguments.model, arguments.settings,
                                                        PlanChoice::kAllRetrieval));
  RETURN_IF_ERROR(Validate(arguments.options, model.config));
  const OrderedJson header = {{"model", model.path},
                              {"settings", model.settings.ToJson()},
                              {"calibration", arguments.options.ToJson()}};
  ASSIGN_OR_RETURN(PartialResults partial, PartialResults::Open(output, arguments.resume, header));
  RETURN_IF_ERROR(LoadWeightsForCommand(model));
  ProgressLine line("calibrating " + model.name);
  ASSIGN_OR_RETURN(const Calibration calibration,
                   Calibrate(std::move(model), arguments.options, partial,
                             [&](double done, const std::string& note) { line.Show(done, note); }));
  line.Clear();
  RETURN_IF_ERROR(WriteFileAtomically(output, FormatHeadGates(calibration.gates)));
  RETURN_IF_ERROR(WriteFileAtomically(ReportPath(output), DumpJson(calibration.report)));
  PartialResults::Discard(output);
  Print(calibration);
  std::printf("wrote %s and %s\n", output.c_str(), ReportPath(output).c_str());
  return OkStatus();
}

}  // namespace

RegisteredCommand RegisterCalibrate(CLI::App& program) {
  auto arguments = std::make_shared<CalibrateArguments>();
  CLI::App* app = program.add_subcommand(
      "calibrate", "finds the heads that need the whole context, writes the head plan");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  CalibrationOptions& options = arguments->options;
  app->add_option("--samples", options.samples,
                  "documents that rank the heads, and as many that measure the shares")
      ->capture_default_str();
  app->add_option("--length", options.length, "tokens of a document")->capture_default_str();
  app->add_option("--seed", options.seed, "of the documents")->capture_default_str();
  app->add_option("--max-loss-increase", options.max_loss_increase,
                  "nats an answer token that the largest share may cost")
      ->capture_default_str();
  app->add_option("--output", arguments->output,
                  "the plan (default: full_attention_heads.tsv in the model folder); the report "
                  "stands beside it as .json");
  app->add_flag("--force", arguments->force, "replace a plan that is there");
  app->add_flag("--resume", arguments->resume, "go on where an interrupted run stopped");
  return {app, [arguments] { return RunCalibrate(*arguments); }};
}

}  // namespace lserve
