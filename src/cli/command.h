// What the subcommands share: registration with CLI11, the settings' flags, and small terminal
// helpers. Single-threaded.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "engine/loaded_model.h"
#include "engine/settings.h"

namespace lserve {

// A subcommand adds itself to the program and returns what runs if the user chose it.
using Command = std::function<Status()>;
struct RegisteredCommand {
  CLI::App* app;
  Command run;
};
RegisteredCommand RegisterServe(CLI::App& program);
RegisteredCommand RegisterGenerate(CLI::App& program);
RegisteredCommand RegisterEval(CLI::App& program);
RegisteredCommand RegisterBench(CLI::App& program);
RegisteredCommand RegisterInspect(CLI::App& program);
RegisteredCommand RegisterCalibrate(CLI::App& program);

// MODEL, which is required unless the caller says otherwise of what is returned, and every flag of
// Settings.
CLI::Option* AddModelAndSettings(CLI::App& app, std::string* model, Settings* settings);

// Opens the model and packs its weights, with a progress line on a terminal.
Result<LoadedModel> LoadModelForCommand(const std::string& path, const Settings& settings);
// The second half of that, for a command that checks its input in between.
Status LoadWeightsForCommand(LoadedModel& model);

// A line on standard error that shows how far something is; nothing unless that is a terminal.
class ProgressLine {
 public:
  explicit ProgressLine(std::string label);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  // done in [0, 1]; `note` stands behind the bar.
  void Show(double done, const std::string& note = "");
  // Removes the line.
  void Clear();

 private:
  const std::string label_;
  const bool enabled_;
  bool shown_ = false;
};

// Writes a result file, or prints it if path is "-". Empty path: nothing.
Status WriteResult(const std::string& path, const OrderedJson& result);

}  // namespace lserve
