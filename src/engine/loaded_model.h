// LoadedModel: a model made ready to run: configuration, tokenizer, chat template, head plan,
// packed weights, and runners on demand. It comes from a folder or, for benchmarks, is a shape with
// random weights. What the subcommands share. Used by one thread at a time.
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
  std::string path;   // empty: a shape
  std::string name;   // the folder's or the shape's
  Settings settings;  // as given, the window of the head plan filled in
  ModelConfig config;
  std::unique_ptr<Backend> backend;            // outlives weights and runners
  std::shared_ptr<const Tokenizer> tokenizer;  // null for a shape
  std::optional<ChatTemplate> chat_template;   // none: chat requests are refused
  HeadPlan plan;
  std::string plan_source;  // the file or shape the gates came from; empty: every head retrieves
  std::shared_ptr<const ModelWeights> weights;

  // Reads everything but the weights. Errors: one line that names file or setting and value.
  static Result<LoadedModel> Open(const std::string& path, const Settings& settings,
                                  PlanChoice choice = PlanChoice::kSettings);
  // A model of a shape (model/shapes.h): no tokenizer, no chat template. Errors: as above.
  static Result<LoadedModel> OpenShape(const std::string& shape, const Settings& settings);
  // Packs the weights; `progress` as in ModelWeights::Load.
  Status LoadWeights(const std::function<void(double)>& progress);

  DType ActivationsDType() const {
    return settings.dtype == "float32" ? DType::kFloat32 : DType::kBFloat16;
  }
  // The mode called "lserve" or "dense", with the settings' values.
  Result<AttentionMode> Mode(const std::string& attention) const;
  // Sizes one mode's cache by the settings and by the host's free memory. Of a device with memory
  // of its own kv_cache_bytes stays 0 unless the settings say: MakeRunner decides.
  Result<RunnerOptions> Options() const;
  // A runner of the mode. On a device with memory of its own kv_cache_bytes 0 is what
  // --gpu-memory-utilization leaves, of which a share of 1 / `sharers` goes to this runner's pools.
  // Errors: those of LlamaRunner::Make; kResourceExhausted: there a sequence of max_model_len
  // tokens does not fit, and what would.
  Result<std::unique_ptr<LlamaRunner>> MakeRunner(const AttentionMode& mode,
                                                  const RunnerOptions& options,
                                                  int64_t sharers = 1) const;
  // The mode called so, with the settings' options.
  Result<std::unique_ptr<LlamaRunner>> MakeRunner(const std::string& attention,
                                                  int64_t sharers = 1) const;

  // Of a device's own memory, what --gpu-memory-utilization leaves now; the weights count as
  // loaded. May be negative.
  int64_t MemoryLeft() const;

 private:
  Status OpenBackend();
  Result<int64_t> MeasurePools(const AttentionMode& mode, const RunnerOptions& options,
                               int64_t sharers) const;
};

}  // namespace lserve
