// lserve inspect: what fits, what a token costs, which heads stream.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/build_info.h"
#include "cli/command.h"
#include "kv/two_lane_cache.h"

namespace lserve {
namespace {

struct InspectArguments {
  std::string model;
  std::string json;
  Settings settings;
};

constexpr double kMiB = 1024.0 * 1024.0;

Result<OrderedJson> InspectMode(const LoadedModel& model, const std::string& attention) {
  ASSIGN_OR_RETURN(const AttentionMode mode, model.Mode(attention));
  ASSIGN_OR_RETURN(RunnerOptions options, model.Options());
  if (model.backend->facts().own_memory && options.kv_cache_bytes == 0) {
    // Without activations and graphs, which only a runner has; negative: not even the weights fit.
    options.kv_cache_bytes = std::max<int64_t>(model.MemoryLeft(), 1);
  }
  ASSIGN_OR_RETURN(
      const CacheConfig cache,
      LlamaRunner::MakeCacheConfig(model.config, mode, options, model.ActivationsDType()));
  const int64_t context = options.max_model_len;
  std::printf("\n%s\n", attention.c_str());
  const int64_t ring = int64_t{cache.sink_pages()} + cache.ring_pages();
  const double retrieval_bytes = static_cast<double>(cache.RetrievalPageBytes()) / kPageTokens;
  const double streaming_bytes = static_cast<double>(cache.StreamingPageBytes()) / kPageTokens;
  std::printf("  %-34s %12.1f\n", "KV bytes a token, retrieval lane", retrieval_bytes);
  if (streaming_bytes > 0) {
    std::printf("  %-34s %12.1f of the first %ld\n", "KV bytes a token, streaming lane",
                streaming_bytes, static_cast<long>(ring * kPageTokens));
  }
  std::printf("  %-34s %12.2f\n", "streaming lane of a sequence, MiB",
              static_cast<double>(ring * cache.StreamingPageBytes()) / kMiB);
  OrderedJson row;
  row["attention"] = attention;
  row["retrieval_bytes_per_token"] = retrieval_bytes;
  row["streaming_bytes_per_token"] = streaming_bytes;
  row["streaming_bytes_per_sequence"] = ring * cache.StreamingPageBytes();
  for (int64_t tokens : {int64_t{4096}, int64_t{32768}, int64_t{131072}, context}) {
    if (tokens <= context) {
      std::printf("  %-34s %12.2f\n", fmt::format("KV MiB at {} tokens", tokens).c_str(),
                  static_cast<double>(cache.SequenceBytes(tokens)) / kMiB);
      row["kv_bytes_at"][std::to_string(tokens)] = cache.SequenceBytes(tokens);
    }
  }
  const int64_t pool_tokens = cache.retrieval_pages * kPageTokens;
  std::printf("  %-34s %12ld\n", "tokens that the cache holds", static_cast<long>(pool_tokens));
  std::printf("  %-34s %12ld\n", "context of a sequence", static_cast<long>(context));
  row["cache_tokens"] = pool_tokens;
  row["max_model_len"] = context;
  if (!mode.dense()) {
    std::printf("  retrieval heads by layer           ");
    for (const int32_t heads : mode.plan.retrieval_heads()) {
      std::printf(" %d", heads);
    }
    std::printf("  (of %d)\n", mode.plan.kv_heads());
    row["retrieval_heads"] = mode.plan.retrieval_heads();
  }
  return row;
}

Status Inspect(const InspectArguments& arguments) {
  ASSIGN_OR_RETURN(const LoadedModel model, LoadedModel::Open(arguments.model, arguments.settings));
  const ModelConfig& c = model.config;
  std::printf("%s: %s, %ld layers, %ld query / %ld KV heads of %ld, hidden %ld, vocabulary %ld\n",
              model.name.c_str(), c.architecture.c_str(), static_cast<long>(c.num_layers),
              static_cast<long>(c.num_q_heads), static_cast<long>(c.num_kv_heads),
              static_cast<long>(c.head_dim), static_cast<long>(c.hidden_size),
              static_cast<long>(c.vocab_size));
  std::printf("device: %s, %s, %d threads, %.1f GiB free\n", model.backend->name(),
              model.backend->facts().name.c_str(), model.backend->facts().threads,
              static_cast<double>(model.backend->facts().free_bytes) / kMiB / 1024);
  std::printf("head plan: %s, %ld sink and %ld local tokens\n",
              model.plan_source.empty()
                  ? "none, so every head retrieves (lserve calibrate makes one)"
                  : model.plan_source.c_str(),
              static_cast<long>(model.settings.sink_tokens),
              static_cast<long>(model.settings.local_tokens));
  OrderedJson result;
  result["settings"] = model.settings.ToJson();
  result["commit"] = BuildCommit();
  result["model"] = model.name;
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, arguments.settings.AttentionNames());
  for (const std::string& attention : modes) {
    ASSIGN_OR_RETURN(OrderedJson row, InspectMode(model, attention));
    result["modes"].push_back(std::move(row));
  }
  return WriteResult(arguments.json, result);
}

}  // namespace

RegisteredCommand RegisterInspect(CLI::App& program) {
  auto arguments = std::make_shared<InspectArguments>();
  arguments->settings.attention = "lserve,dense";
  CLI::App* app = program.add_subcommand("inspect", "what fits: context, KV bytes, head plan");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  app->add_option("--json", arguments->json, "also write the result here; - for standard output");
  return {app, [arguments] { return Inspect(*arguments); }};
}

}  // namespace lserve
