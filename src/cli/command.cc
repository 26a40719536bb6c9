#include "cli/command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/file.h"

namespace lserve {

CLI::Option* AddModelAndSettings(CLI::App& app, std::string* model, Settings* settings) {
  CLI::Option* option =
      app.add_option("MODEL", *model, "model folder: config.json, tokenizer.json, safetensors")
          ->required();
  Settings::ForEach(*settings, [&](const char* flag, auto& field, const char* help) {
    app.add_option(std::string("--") + flag, field, help)->capture_default_str();
  });
  return option;
}

Result<LoadedModel> LoadModelForCommand(const std::string& path, const Settings& settings) {
  ASSIGN_OR_RETURN(LoadedModel model, LoadedModel::Open(path, settings));
  RETURN_IF_ERROR(LoadWeightsForCommand(model));
  return model;
}

Status LoadWeightsForCommand(LoadedModel& model) {
  ProgressLine line("loading " + model.name);
  return model.LoadWeights([&](double done) { line.Show(done); });
}

ProgressLine::ProgressLine(std::string label)
    : label_(std::move(label)), enabled_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() { Clear(); }

void ProgressLine::Show(double done, const std::string& note) {
  if (!enabled_) {
    return;
  }
  constexpr int kWidth = 30;
  const double clamped = std::clamp(done, 0.0, 1.0);
  const int filled = static_cast<int>(clamped * kWidth);
  std::string bar(static_cast<size_t>(filled), '#');
  bar.resize(kWidth, '.');
  std::fprintf(stderr, "\r\033[K%s [%s] %3.0f%% %s", label_.c_str(), bar.c_str(), clamped * 100,
               note.c_str());
  std::fflush(stderr);
  shown_ = true;
}

void ProgressLine::Clear() {
  if (shown_) {
    std::fprintf(stderr, "\r\033[K");
    std::fflush(stderr);
    shown_ = false;
  }
}

Status WriteResult(const std::string& path, const OrderedJson& result) {
  if (path.empty()) {
    return OkStatus();
  }
  if (path == "-") {
    std::fputs(DumpJson(result).c_str(), stdout);
    return OkStatus();
  }
  return WriteFileAtomically(path, DumpJson(result));
}

}  // namespace lserve
