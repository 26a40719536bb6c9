// LoadedModel: a model folder made ready to run: configuration, tokenizer, chat template, head
// plan, packed weights, and runners on demand. What the subcommands share. Used by one thread at a
// time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "checkpoint/model_config.h"
#include "engine/settings.h"
#include "kernels/backend.h"
#include "model/llama_runner.h"
#include "model/weights.h"
#include "sparse/attention_mode.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lserve {

enum class PlanChoice {
  kSettings,      // --head-plan, else the model folder's, else every head retrieves
  kAllRetrieval,  // every head retrieves, whatever plan there is
};

// The settings' selection policy. Errors: kInvalidArgument (--reuse-interval).
Result<SelectionPolicy> PolicyOf(const Settings& settings);

struct LoadedModel {
  std::string path;
  std::string name;   // the folder's name
  Settings settings;  // as given, the window of the head plan filled in
  ModelConfig config;
  std::unique_ptr<Backend> backend;  // outlives weights and runners
  std::shared_ptr<const Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;  // none: chat requests are refused
  HeadPlan plan;
  std::string plan_source;  // the file the gates came from; empty: every head retrieves
  std::shared_ptr<const ModelWeights> weights;

  // Reads everything but the weights. Errors: one line that names file or setting and value.
  static Result<LoadedModel> Open(const std::string& path, const Settings& settings,
                                  PlanChoice choice = PlanChoice::kSettings);
  // Packs the weights; `progress` as in ModelWeights::Load.
  Status LoadWeights(const std::function<void(double)>& progress);

  DType ActivationsDType() const {
    return settings.dtype == "float32" ? DType::kFloat32 : DType::kBFloat16;
  }
  // The mode called "lserve" or "dense", with the settings' values.
  Result<AttentionMode> Mode(const std::string& attention) const;
  // Sizes one mode's cache by the settings and by the device's free memory.
  Result<RunnerOptions> Options() const;
  Result<std::unique_ptr<LlamaRunner>> MakeRunner(const std::string& attention) const;
};

}  // namespace lserve
