// lserve serve: the OpenAI-compatible server. The socket opens first and answers 503 until the
// model is loaded; SIGINT and SIGTERM drain it.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "base/log.h"
#include "cli/command.h"
#include "engine/engine.h"
#include "engine/memory_report.h"
#include "engine/sampling.h"
#include "server/server.h"

namespace lserve {
namespace {

struct ServeArguments {
  std::string model;
  Settings settings;
  ServerOptions server;
  std::string served_model_name;
  double prefill_step_seconds = 1.0;
  double decode_step_seconds = 0.25;
};

constexpr double kMiB = 1024.0 * 1024.0;

// What fits, what is sparse, and what that means: said once, at the start.
void LogStartUp(const LoadedModel& model, const std::vector<std::string>& modes,
                const std::vector<const LlamaRunner*>& runners) {
  const DeviceFacts& facts = model.backend->facts();
  spdlog::info("{} on {}: {} ({}), {} threads", model.name, model.backend->name(), facts.name,
               facts.instructions, facts.threads);
  for (size_t i = 0; i < modes.size(); ++i) {
    const LlamaRunner& runner = *runners[i];
    const CacheConfig& cache = runner.cache().config();
    spdlog::info("{}: context {} tokens, {} sequences", modes[i], runner.limits().max_model_len,
                 runner.limits().max_num_seqs);
    for (const std::string& line : ReportMemory(model, runner).Lines()) {
      spdlog::info("{}: {}", modes[i], line);
    }
    if (modes[i] == "dense") {
      continue;
    }
    if (model.plan_source.empty()) {
      spdlog::warn(
          "no head plan in the model folder, so every head retrieves; `lserve calibrate {}` makes "
          "one, --head-plan gives one",
          model.path);
    } else {
      spdlog::info(
          "{}: {} of {} KV heads stream ({} sink + {} local tokens, {:.2f} MiB a sequence), by {}",
          modes[i],
          model.config.num_layers * model.config.num_kv_heads - model.plan.total_retrieval_heads(),
          model.config.num_layers * model.config.num_kv_heads, cache.sink_tokens,
          cache.local_tokens,
          static_cast<double>((cache.sink_pages() + cache.ring_pages()) *
                              cache.StreamingPageBytes()) /
              kMiB,
          model.plan_source);
    }
    spdlog::info(
        "{}: the others read at most {} tokens a step of contexts above {}, in units of {}, ranked "
        "by {}, reuse interval {}; accuracy differs from dense: `lserve eval` measures it",
        modes[i], model.settings.token_budget,
        std::max(model.settings.token_budget, model.settings.decode_dense_tokens),
        model.settings.selection_unit, model.settings.page_score, model.settings.reuse_interval);
  }
}

// SIGINT and SIGTERM, blocked in every thread that starts after this, for WaitForSignal.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

struct Loaded {
  LoadedModel model;
  std::unique_ptr<Engine> engine;
  Serving serving;
};

// On return `loaded` is complete: the engine runs and `serving` describes it.
Status Load(const ServeArguments& arguments, Loaded* loaded) {
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, arguments.settings.AttentionNames());
  ASSIGN_OR_RETURN(loaded->model, LoadModelForCommand(arguments.model, arguments.settings));
  const LoadedModel& model = loaded->model;
  std::vector<std::unique_ptr<Runner>> runners;
  std::vector<const LlamaRunner*> started;
  for (size_t i = 0; i < modes.size(); ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<LlamaRunner> runner,
                     model.MakeRunner(modes[i], std::ssize(modes) - static_cast<int64_t>(i)));
    started.push_back(runner.get());
    runners.push_back(std::move(runner));
  }
  LogStartUp(model, modes, started);
  EngineOptions options;
  options.max_batched_tokens = static_cast<int32_t>(arguments.settings.max_num_batched_tokens);
  options.prefill_step_seconds = arguments.prefill_step_seconds;
  options.decode_step_seconds = arguments.decode_step_seconds;
  options.eos_token_ids = model.config.eos_token_ids;
  loaded->engine = std::make_unique<Engine>(std::move(runners), model.tokenizer, options);

  const std::string name =
      arguments.served_model_name.empty() ? model.name : arguments.served_model_name;
  Serving& serving = loaded->serving;
  serving.engine = loaded->engine.get();
  serving.tokenizer = model.tokenizer;
  serving.chat_template = model.chat_template.has_value() ? &*model.chat_template : nullptr;
  for (size_t i = 0; i < modes.size(); ++i) {
    serving.models.push_back({i == 0 ? name : name + ":" + modes[i], static_cast<int32_t>(i)});
  }
  serving.defaults = DefaultSampling(model.config.generation);
  const OrderedJson settings = model.settings.ToJson();
  for (const auto& [key, value] : settings.items()) {
    serving.settings.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return OkStatus();
}

Status Serve(ServeArguments& arguments) {
  RETURN_IF_ERROR(Validate(arguments.settings));
  if (const char* key = std::getenv("LSERVE_API_KEY"); key != nullptr && *key != '\0') {
    arguments.server.api_keys.emplace_back(key);
  }
  const sigset_t signals = BlockStopSignals();
  ASSIGN_OR_RETURN(const std::unique_ptr<Server> server, Server::Start(arguments.server));
  Loaded loaded;  // outlives what Attach borrows: Stop runs first
  RETURN_IF_ERROR(Load(arguments, &loaded));
  RETURN_IF_ERROR(server->Attach(loaded.serving));
  std::string names;
  for (const ServedModel& model : loaded.serving.models) {
    names += (names.empty() ? "" : ", ") + model.id;
  }
  spdlog::info("serving {} at {}/v1", names, server->url());
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("signal {}: finishing what runs, at most {:.0f} s; again to stop at once", signal,
               arguments.server.drain_seconds);
  std::thread impatient([&signals] {
    int again = 0;
    sigwait(&signals, &again);
    std::_Exit(1);
  });
  impatient.detach();
  server->Stop();
  return OkStatus();
}

}  // namespace

RegisteredCommand RegisterServe(CLI::App& program) {
  auto arguments = std::make_shared<ServeArguments>();
  CLI::App* app = program.add_subcommand("serve", "OpenAI-compatible HTTP server");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  ServerOptions& server = arguments->server;
  app->add_option("--host", server.host, "address to listen on")->capture_default_str();
  app->add_option("--port", server.port, "0: any free one")->capture_default_str();
  app->add_option("--served-model-name", arguments->served_model_name,
                  "default: the folder's name");
  app->add_option("--api-key", server.api_keys,
                  "key that clients must send; may be given again; also LSERVE_API_KEY");
  app->add_option("--allowed-origins", server.allowed_origins, "CORS origins; * for any");
  app->add_option("--max-body-bytes", server.max_body_bytes, "of a request")->capture_default_str();
  app->add_option("--shutdown-timeout", server.drain_seconds,
                  "seconds that running requests have after SIGTERM")
      ->capture_default_str();
  app->add_option("--sse-ping-interval", server.keep_alive_seconds,
                  "seconds between keep-alive comments in a quiet stream")
      ->capture_default_str();
  app->add_option("--prefill-step-seconds", arguments->prefill_step_seconds,
                  "target length of a step when nothing decodes")
      ->capture_default_str();
  app->add_option("--decode-step-seconds", arguments->decode_step_seconds,
                  "target length of a step while something decodes")
      ->capture_default_str();
  return {app, [arguments] { return Serve(*arguments); }};
}

}  // namespace lserve
