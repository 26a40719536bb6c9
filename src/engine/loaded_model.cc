#include "engine/loaded_model.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "model/model_bytes.h"
#include "model/shapes.h"

namespace lserve {
namespace {

constexpr int64_t kDefaultSinkTokens = 128;
constexpr int64_t kDefaultLocalTokens = 256;

// Finds the plan and the window that it was made for. `shape`: whose gates are taken unless
// --head-plan names others; null for a folder.
Status LoadPlan(PlanChoice choice, const ModelShape* shape, LoadedModel* model) {
  Settings& settings = model->settings;
  const auto layers = static_cast<int32_t>(model->config.num_layers);
  const auto kv_heads = static_cast<int32_t>(model->config.num_kv_heads);
  HeadPlanFiles files;
  if (settings.head_plan.empty()) {
    files.gates = JoinPath(model->path, "full_attention_heads.tsv");
  } else {
    ASSIGN_OR_RETURN(files, FindHeadPlan(settings.head_plan));
  }
  if (shape != nullptr && settings.head_plan.empty()) {
    model->plan = HeadPlan::FromGates(shape->gates, settings.streaming_share);
    model->plan_source = "the shape " + shape->name;
  } else if (choice == PlanChoice::kAllRetrieval ||
             (settings.head_plan.empty() && !FileExists(files.gates))) {
    model->plan = HeadPlan::AllRetrieval(layers, kv_heads);
  } else {
    ASSIGN_OR_RETURN(const HeadGates gates, ReadHeadGates(files.gates, layers, kv_heads));
    model->plan = HeadPlan::FromGates(gates, settings.streaming_share);
    model->plan_source = files.gates;
  }
  if (settings.sink_tokens == kWindowOfPlan) {
    settings.sink_tokens = files.sink_tokens.value_or(kDefaultSinkTokens);
  }
  if (settings.local_tokens == kWindowOfPlan) {
    settings.local_tokens = files.local_tokens.value_or(kDefaultLocalTokens);
  }
  return OkStatus();
}

}  // namespace

Result<LoadedModel> LoadedModel::Open(const std::string& path, const Settings& settings,
                                      PlanChoice choice) {
  RETURN_IF_ERROR(Validate(settings));
  if (!IsDirectory(path)) {
    return NotFound("{} is not a folder", path);
  }
  LoadedModel model;
  model.path = path;
  std::filesystem::path folder = std::filesystem::path(path).lexically_normal();
  if (!folder.has_filename()) {
    folder = folder.parent_path();
  }
  model.name = folder.filename().string();
  model.settings = settings;
  ASSIGN_OR_RETURN(model.config, LoadModelConfig(path));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(path));
  if (tokenizer->vocab_size() > model.config.vocab_size) {
    return InvalidArgument("{}: the tokenizer has {} tokens, the model {}", path,
                           tokenizer->vocab_size(), model.config.vocab_size);
  }
  model.tokenizer = std::move(tokenizer);
  Result<ChatTemplate> chat_template = ChatTemplate::Load(path);
  if (chat_template.ok()) {
    model.chat_template = std::move(chat_template).value();
  } else if (chat_template.status().code() != StatusCode::kNotFound) {
    return chat_template.status();
  }
  RETURN_IF_ERROR(LoadPlan(choice, nullptr, &model));
  RETURN_IF_ERROR(model.OpenBackend());
  return model;
}

Result<LoadedModel> LoadedModel::OpenShape(const std::string& shape, const Settings& settings) {
  RETURN_IF_ERROR(Validate(settings));
  ASSIGN_OR_RETURN(const ModelShape found, FindShape(shape));
  LoadedModel model;
  model.name = found.name;
  model.settings = settings;
  model.config = found.config;
  RETURN_IF_ERROR(LoadPlan(PlanChoice::kSettings, &found, &model));
  RETURN_IF_ERROR(model.OpenBackend());
  return model;
}

Status LoadedModel::OpenBackend() {
  ASSIGN_OR_RETURN(backend, MakeBackend(settings.device,
                                        BackendOptions{static_cast<int32_t>(settings.threads)}));
  if (settings.decode_dense_tokens == kDenseTokensOfDevice) {
    settings.decode_dense_tokens = backend->facts().own_memory ? kGpuDenseTokens : 0;
  }
  return OkStatus();
}

Status LoadedModel::LoadWeights(const std::function<void(double)>& progress) {
  const DType dtype = ActivationsDType();
  RETURN_IF_ERROR(backend->SupportsActivations(dtype));
  const DeviceFacts& facts = backend->facts();
  const int64_t bytes = WeightBytes(config, dtype, *backend);
  if (facts.own_memory && bytes > backend->FreeBytes()) {
    return ResourceExhausted("the weights of {} take {} bytes, {} of {} bytes of {} are free", name,
                             bytes, backend->FreeBytes(), facts.memory_bytes, facts.name);
  }
  if (path.empty()) {
    ASSIGN_OR_RETURN(weights, ModelWeights::Random(config, kShapeSeed, dtype, *backend, progress));
  } else {
    ASSIGN_OR_RETURN(weights, ModelWeights::Load(path, config, plan, dtype, *backend, progress));
  }
  return OkStatus();
}

Result<SelectionPolicy> PolicyOf(const Settings& settings) {
  ASSIGN_OR_RETURN(const Reuse reuse, ParseReuse(settings.reuse_interval));
  return SelectionPolicy{.token_budget = static_cast<int32_t>(settings.token_budget),
                         .unit_tokens = static_cast<int32_t>(settings.selection_unit),
                         .reuse_interval = reuse.interval,
                         .reuse_distance = reuse.distance,
                         .dense_tokens = static_cast<int32_t>(settings.decode_dense_tokens)};
}

Result<AttentionMode> LoadedModel::Mode(const std::string& attention) const {
  const KvFormat kv_format = settings.kv_cache_dtype == "int8"   ? KvFormat::kInt8
                             : settings.kv_cache_dtype == "int4" ? KvFormat::kInt4
                                                                 : KvFormat::kBFloat16;
  if (attention == "dense") {
    return AttentionMode::Dense(plan, kv_format);
  }
  AttentionMode mode;
  mode.kv_format = kv_format;
  mode.name = attention;
  mode.plan = plan;
  mode.sink_tokens = static_cast<int32_t>(settings.sink_tokens);
  mode.local_tokens = static_cast<int32_t>(settings.local_tokens);
  mode.score = settings.page_score == "sketch" ? PageScore::kSketch : PageScore::kMinMax;
  ASSIGN_OR_RETURN(mode.policy, PolicyOf(settings));
  if (settings.prefill_attention == "dynamic") {
    mode.prefill = {.threshold = static_cast<float>(settings.prefill_threshold),
                    .dense_tokens = static_cast<int32_t>(settings.prefill_dense_tokens)};
  }
  RETURN_IF_ERROR(Validate(mode));
  return mode;
}

Result<RunnerOptions> LoadedModel::Options() const {
  RunnerOptions options;
  options.max_model_len =
      settings.max_model_len == 0 ? config.context_length : settings.max_model_len;
  options.max_num_seqs = static_cast<int32_t>(settings.max_num_seqs);
  options.max_batched_tokens = static_cast<int32_t>(settings.max_num_batched_tokens);
  options.audit_rate = settings.audit_rate;
  options.kv_cache_bytes = static_cast<int64_t>(settings.kv_cache_gib * 1024.0 * 1024.0 * 1024.0);
  if (options.kv_cache_bytes == 0 && !backend->facts().own_memory) {
    // Full contexts for every slot, unless that is more than a share of the memory that is free;
    // the list of modes shares it.
    ASSIGN_OR_RETURN(const std::vector<std::string> modes, settings.AttentionNames());
    constexpr double kShareOfFreeMemory = 0.6;
    options.kv_cache_bytes =
        static_cast<int64_t>(kShareOfFreeMemory * static_cast<double>(backend->facts().free_bytes) /
                             static_cast<double>(modes.size()));
  }
  return options;
}

int64_t LoadedModel::MemoryLeft() const {
  const auto total = static_cast<double>(backend->facts().memory_bytes);
  const double used = total - static_cast<double>(backend->FreeBytes());
  const int64_t to_load =
      weights == nullptr ? WeightBytes(config, ActivationsDType(), *backend) : 0;
  return static_cast<int64_t>(settings.gpu_memory_utilization * total - used) - to_load;
}

// What else a runner takes, its graphs and the libraries' memory included, is measured with one
// that has a single page.
Result<int64_t> LoadedModel::MeasurePools(const AttentionMode& mode, const RunnerOptions& options,
                                          int64_t sharers) const {
  ASSIGN_OR_RETURN(const CacheConfig cache,
                   LlamaRunner::MakeCacheConfig(config, mode, options, ActivationsDType()));
  RunnerOptions single_page = options;
  single_page.kv_cache_bytes = cache.FixedBytes() + cache.RetrievalPageBytes();
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner,
                   LlamaRunner::Make(*backend, weights, mode, single_page));
  const int64_t left = MemoryLeft();
  if (left < 0) {
    return ResourceExhausted(
        "weights, activations and one page of KV cache take {} bytes more than "
        "--gpu-memory-utilization {} of {} bytes",
        -left, settings.gpu_memory_utilization, backend->facts().memory_bytes);
  }
  return left / sharers + single_page.kv_cache_bytes;
}

Result<std::unique_ptr<LlamaRunner>> LoadedModel::MakeRunner(const AttentionMode& mode,
                                                             const RunnerOptions& options,
                                                             int64_t sharers) const {
  CHECK(weights != nullptr);
  if (!backend->facts().own_memory) {
    return LlamaRunner::Make(*backend, weights, mode, options);
  }
  RunnerOptions sized = options;
  if (sized.kv_cache_bytes == 0) {
    ASSIGN_OR_RETURN(sized.kv_cache_bytes, MeasurePools(mode, options, sharers));
  }
  ASSIGN_OR_RETURN(const CacheConfig cache,
                   LlamaRunner::MakeCacheConfig(config, mode, sized, ActivationsDType()));
  if (const int64_t pages = TwoLaneCache::PagesFor(sized.max_model_len);
      pages > cache.retrieval_pages) {
    return ResourceExhausted(
        "a sequence of {} tokens takes {} bytes of KV cache, {} are left for it: {} tokens fit; "
        "lower --max-model-len or raise --gpu-memory-utilization {}",
        sized.max_model_len, pages * cache.RetrievalPageBytes(),
        cache.retrieval_pages * cache.RetrievalPageBytes(),
        (cache.retrieval_pages + 1) * kPageTokens, settings.gpu_memory_utilization);
  }
  return LlamaRunner::Make(*backend, weights, mode, sized);
}

Result<std::unique_ptr<LlamaRunner>> LoadedModel::MakeRunner(const std::string& attention,
                                                             int64_t sharers) const {
  ASSIGN_OR_RETURN(const AttentionMode mode, Mode(attention));
  ASSIGN_OR_RETURN(const RunnerOptions options, Options());
  return MakeRunner(mode, options, sharers);
}

}  // namespace lserve
