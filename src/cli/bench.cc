// lserve bench: prefill and decode latency over lengths, batches and attention modes, of a model's
// folder or of a shape with random weights. The modes are interleaved, repetition by repetition, so
// that a machine whose speed drifts is fair to both.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>

#include "base/build_info.h"
#include "base/log.h"
#include "cli/bench_run.h"
#include "cli/command.h"
#include "model/shapes.h"

namespace lserve {
namespace {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// The value below which `share` of the values lie (nearest rank).
double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(share * static_cast<double>(values.size()));
  return values[std::min(rank, values.size() - 1)];
}

// A mode at a length: its runs, or why there are none.
struct ModeRuns {
  std::string attention;
  std::vector<Measurement> runs;
  std::string skipped;
};

OrderedJson Summarise(const ModeRuns& mode, int64_t length, const BenchArguments& arguments) {
  const bool dense = mode.attention == "dense";
  const Settings& s = arguments.settings;
  OrderedJson row;
  row["attention"] = mode.attention;
  row["length"] = length;
  row["batch"] = arguments.batch;
  if (!mode.skipped.empty()) {
    row["skipped"] = mode.skipped;
    return row;
  }
  std::vector<double> fill, decode_mean, decode_steps;
  Measurement worst;
  for (const Measurement& run : mode.runs) {
    fill.push_back(run.fill_ms);
    decode_mean.push_back(std::accumulate(run.decode_ms.begin(), run.decode_ms.end(), 0.0) /
                          static_cast<double>(run.decode_ms.size()));
    decode_steps.insert(decode_steps.end(), run.decode_ms.begin(), run.decode_ms.end());
    worst.kv_bytes = std::max(worst.kv_bytes, run.kv_bytes);
    worst.resident_bytes = std::max(worst.resident_bytes, run.resident_bytes);
    worst.device_bytes = std::max(worst.device_bytes, run.device_bytes);
  }
  const std::string filled = arguments.fill == "random" ? "random_fill_ms" : "prefill_ms";
  row[filled] = Median(fill);
  row["decode_ms_per_token"] = Median(decode_mean);
  row["decode_ms_p99"] = Quantile(decode_steps, 0.99);
  row["tokens_per_second"] = 1e3 * static_cast<double>(arguments.batch) / Median(decode_mean);
  row["kv_bytes"] = worst.kv_bytes;
  row["resident_bytes"] = worst.resident_bytes;
  if (worst.device_bytes > 0) {
    row["device_bytes"] = worst.device_bytes;
  }
  row["memory"] = mode.runs[0].memory.ToJson();
  row["reuse_interval"] = dense ? "1" : s.reuse_interval;
  row["streaming_share"] = dense ? 0.0 : s.streaming_share;
  row["token_budget"] = dense ? 0 : s.token_budget;
  row["selection_unit"] = dense ? 64 : s.selection_unit;
  if (const PrefillBlocks& blocks = mode.runs[0].blocks; blocks.scored > 0) {  // alike in every run
    row["prefill_blocks_scored"] = blocks.scored;
    row["prefill_density"] =
        static_cast<double>(blocks.weighed) / static_cast<double>(blocks.scored);
  }
  row[filled + "_runs"] = fill;
  row["decode_ms_runs"] = decode_mean;
  return row;
}

// Memory is the device's where it has its own, else the program's peak.
void PrintHeader(const BenchArguments& arguments) {
  std::printf("%-8s %8s %6s %14s %10s %10s %10s %10s %12s\n", "mode", "length", "batch",
              arguments.fill == "random" ? "random fill ms" : "prefill ms", "decode ms", "p99 ms",
              "tokens/s", "KV MiB", "memory MiB");
}

void PrintRow(const OrderedJson& row) {
  std::printf("%-8s %8ld %6ld ", row["attention"].get<std::string>().c_str(),
              row["length"].get<long>(), row["batch"].get<long>());
  if (row.contains("skipped")) {
    std::printf("skipped: %s\n", row["skipped"].get<std::string>().c_str());
  } else {
    constexpr double kMiB = 1024.0 * 1024.0;
    const double fill = row.contains("prefill_ms") ? row["prefill_ms"].get<double>()
                                                   : row["random_fill_ms"].get<double>();
    const double memory = row.contains("device_bytes") ? row["device_bytes"].get<double>()
                                                       : row["resident_bytes"].get<double>();
    std::printf("%14.1f %10.3f %10.3f %10.1f %10.1f %12.1f\n", fill,
                row["decode_ms_per_token"].get<double>(), row["decode_ms_p99"].get<double>(),
                row["tokens_per_second"].get<double>(), row["kv_bytes"].get<double>() / kMiB,
                memory / kMiB);
  }
  std::fflush(stdout);
}

// Every mode at one length, the repetitions of the modes in turn. A mode that does not fit is left
// out and says why.
Result<std::vector<ModeRuns>> MeasureModes(const LoadedModel& model,
                                           const std::vector<std::string>& names,
                                           const BenchArguments& arguments, int64_t length) {
  std::vector<ModeRuns> modes;
  for (const std::string& name : names) {
    modes.push_back({.attention = name, .runs = {}, .skipped = ""});
  }
  ProgressLine line(fmt::format("{} tokens", length));
  for (int64_t repetition = 0; repetition < arguments.repeat; ++repetition) {
    for (ModeRuns& mode : modes) {
      if (!mode.skipped.empty()) {
        continue;
      }
      line.Show(static_cast<double>(repetition) / static_cast<double>(arguments.repeat),
                mode.attention);
      Result<Measurement> run = MeasureRun(model, mode.attention, arguments, length);
      if (run.ok()) {
        if (repetition == 0) {
          line.Clear();
          for (const std::string& memory : run->memory.Lines()) {
            spdlog::info("{} at {} tokens: {}", mode.attention, length, memory);
          }
        }
        mode.runs.push_back(std::move(run).value());
      } else if (run.status().code() == StatusCode::kResourceExhausted) {
        mode.skipped = run.status().message();
      } else {
        return run.status();
      }
    }
  }
  return modes;
}

Status CheckArguments(const BenchArguments& arguments) {
  if (arguments.model.empty() == arguments.shape.empty()) {
    return InvalidArgument("give either MODEL or --shape ({})", fmt::join(ShapeNames(), ", "));
  }
  if (arguments.fill != "prompt" && arguments.fill != "random") {
    return InvalidArgument("--fill \"{}\" is none of prompt, random", arguments.fill);
  }
  if (arguments.repeat < 1 || arguments.repeat > 1000) {
    return InvalidArgument("--repeat {} is outside 1 to 1000", arguments.repeat);
  }
  if (arguments.batch < 1 || arguments.batch > arguments.settings.max_num_seqs) {
    return InvalidArgument("--batch {} is outside 1 to --max-num-seqs {}", arguments.batch,
                           arguments.settings.max_num_seqs);
  }
  if (arguments.decode_tokens < 1 || arguments.decode_tokens > 1 << 20) {
    return InvalidArgument("--decode-tokens {} is outside 1 to {}", arguments.decode_tokens,
                           1 << 20);
  }
  return OkStatus();
}

// What a shape is, for whoever reads the result.
OrderedJson ShapeJson(const LoadedModel& model) {
  const ModelConfig& c = model.config;
  return {{"layers", c.num_layers},     {"q_heads", c.num_q_heads},
          {"kv_heads", c.num_kv_heads}, {"head_dim", c.head_dim},
          {"hidden", c.hidden_size},    {"intermediate", c.intermediate_size},
          {"vocabulary", c.vocab_size}, {"retrieval_heads", model.plan.retrieval_heads()}};
}

Status Bench(BenchArguments& arguments) {
  RETURN_IF_ERROR(CheckArguments(arguments));
  ASSIGN_OR_RETURN(LoadedModel model,
                   arguments.shape.empty()
                       ? LoadedModel::Open(arguments.model, arguments.settings)
                       : LoadedModel::OpenShape(arguments.shape, arguments.settings));
  const int64_t context = arguments.settings.max_model_len == 0 ? model.config.context_length
                                                                : arguments.settings.max_model_len;
  for (const int64_t length : arguments.lengths) {
    if (length <= arguments.decode_tokens || length > context) {
      return InvalidArgument("--lengths {} is outside {} to {} (decode tokens + 1 to the context)",
                             length, arguments.decode_tokens + 1, context);
    }
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, arguments.settings.AttentionNames());
  RETURN_IF_ERROR(LoadWeightsForCommand(model));
  OrderedJson rows = OrderedJson::array();
  bool measured = false;
  PrintHeader(arguments);
  for (const int64_t length : arguments.lengths) {
    ASSIGN_OR_RETURN(const std::vector<ModeRuns> modes,
                     MeasureModes(model, names, arguments, length));
    for (const ModeRuns& mode : modes) {
      rows.push_back(Summarise(mode, length, arguments));
      PrintRow(rows.back());
      measured |= mode.skipped.empty();
    }
  }
  OrderedJson result;
  result["model"] = model.name;
  if (!arguments.shape.empty()) {
    result["shape"] = ShapeJson(model);
  }
  result["settings"] = model.settings.ToJson();
  result["commit"] = BuildCommit();
  result["device"] = {{"backend", model.backend->name()},
                      {"name", model.backend->facts().name},
                      {"instructions", model.backend->facts().instructions},
                      {"threads", model.backend->facts().threads}};
  result["fill"] = arguments.fill;
  result["decode_tokens"] = arguments.decode_tokens;
  result["repeat"] = arguments.repeat;
  result["seed"] = arguments.seed;
  result["rows"] = std::move(rows);
  RETURN_IF_ERROR(WriteResult(arguments.json, result));
  return measured ? OkStatus() : ResourceExhausted("nothing that was asked for fits");
}

}  // namespace

RegisteredCommand RegisterBench(CLI::App& program) {
  auto arguments = std::make_shared<BenchArguments>();
  arguments->settings.attention = "dense,lserve";
  CLI::App* app = program.add_subcommand("bench", "prefill and decode latency, dense and sparse");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings)->required(false);
  app->add_option("--shape", arguments->shape,
                  fmt::format("random weights of this shape in place of MODEL: {}; at "
                              "--streaming-share 0.5 one layer has no retrieval head and the "
                              "others between one and all",
                              fmt::join(ShapeNames(), ", ")));
  app->add_option("--fill", arguments->fill,
                  "what the contexts are before decoding: prompt (a random prompt, prefilled) or "
                  "random (random keys and values, without a prefill)")
      ->capture_default_str();
  app->add_option("--lengths", arguments->lengths,
                  "contexts after decoding, in tokens, comma-separated; the runner has room for "
                  "each alone unless --max-model-len says more")
      ->delimiter(',')
      ->capture_default_str();
  app->add_option("--decode-tokens", arguments->decode_tokens, "tokens decoded in each run")
      ->capture_default_str();
  app->add_option("--batch", arguments->batch, "sequences side by side")->capture_default_str();
  app->add_option("--repeat", arguments->repeat, "runs of each row; medians are reported")
      ->capture_default_str();
  app->add_option("--seed", arguments->seed, "of the random prompts and contexts")
      ->capture_default_str();
  app->add_option("--json", arguments->json, "also write the result here; - for standard output");
  return {app, [arguments] { return Bench(*arguments); }};
}

}  // namespace lserve
