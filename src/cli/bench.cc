// lserve bench: prefill and decode latency over lengths, batches and attention modes. The modes are
// interleaved, repetition by repetition, so that a machine whose speed drifts is fair to both.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <sstream>

#include "base/build_info.h"
#include "base/clock.h"
#include "base/random.h"
#include "cli/command.h"
#include "engine/offline.h"

namespace lserve {
namespace {

struct BenchArguments {
  std::string model;
  Settings settings;
  std::vector<int64_t> lengths = {4096, 32768};
  int64_t decode_tokens = 64;
  int64_t batch = 1;
  int64_t repeat = 3;
  uint64_t seed = 1;
  std::string json;
};

struct Measurement {
  double prefill_ms = 0;
  std::vector<double> decode_ms;  // one a step
  int64_t kv_bytes = 0;
  int64_t resident_bytes = 0;
  PrefillBlocks blocks;  // in dynamic prefill attention
};

// Starts the peak resident set afresh, where the system allows it.
void ResetPeakResident() { std::ofstream("/proc/self/clear_refs") << "5"; }

int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    long kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %ld kB", &kib) == 1) {
      return int64_t{kib} * 1024;
    }
  }
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

std::vector<int32_t> RandomPrompt(int64_t tokens, int64_t vocab_size, uint64_t seed) {
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  for (size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<int32_t>(Philox(seed, i)[0] % static_cast<uint64_t>(vocab_size));
  }
  return prompt;
}

// Touches what a runner keeps between requests (activations, rings, chunk pages): a server's first
// request pays for that once, a benchmark's run should not.
Status WarmUp(LlamaRunner& runner, const LoadedModel& model, int64_t tokens) {
  const int64_t count = std::min(tokens, model.settings.max_num_batched_tokens);
  const std::vector<int32_t> prompt = RandomPrompt(count, model.config.vocab_size, 0);
  ASSIGN_OR_RETURN(const int32_t slot, runner.OpenSlot(prompt, kGreedySampling));
  RETURN_IF_ERROR(PrefillPrompt(runner, slot, prompt, 0, count + kQueryBlockTokens, true).status());
  runner.CloseSlot(slot);
  return OkStatus();
}

// One run: `batch` sequences of `length` tokens each after decoding.
Result<Measurement> Measure(const LoadedModel& model, const std::string& attention,
                            const BenchArguments& arguments, int64_t length) {
  ResetPeakResident();
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner, model.MakeRunner(attention));
  Measurement result;
  std::vector<int32_t> slots;
  const int64_t prompt_tokens = length - arguments.decode_tokens;
  RETURN_IF_ERROR(WarmUp(*runner, model, prompt_tokens));
  ASSIGN_OR_RETURN(const SelectionStats before, runner->Selection());
  const double prefill_start = NowSeconds();
  for (int64_t i = 0; i < arguments.batch; ++i) {
    const std::vector<int32_t> prompt = RandomPrompt(prompt_tokens, model.config.vocab_size,
                                                     arguments.seed + static_cast<uint64_t>(i));
    ASSIGN_OR_RETURN(const int32_t slot, runner->OpenSlot(prompt, kGreedySampling));
    ASSIGN_OR_RETURN(
        const int32_t token,
        PrefillPrompt(*runner, slot, prompt, 0, model.settings.max_num_batched_tokens, true));
    CHECK_GE(token, 0);
    slots.push_back(slot);
  }
  result.prefill_ms = (NowSeconds() - prefill_start) * 1e3;
  ASSIGN_OR_RETURN(const SelectionStats after, runner->Selection());
  result.blocks = {.scored = after.prefill.scored - before.prefill.scored,
                   .weighed = after.prefill.weighed - before.prefill.weighed};
  for (int64_t step = 0; step < arguments.decode_tokens; ++step) {
    const double start = NowSeconds();
    StepInput input;
    for (const int32_t slot : slots) {
      RETURN_IF_ERROR(runner->Reserve(slot, prompt_tokens + step + 1));
      input.decode.push_back(DecodeRow{.slot = slot, .position = prompt_tokens + step});
    }
    RETURN_IF_ERROR(runner->Step(input).status());
    result.decode_ms.push_back((NowSeconds() - start) * 1e3);
  }
  for (const int32_t slot : slots) {
    result.kv_bytes += runner->KvBytes(slot);
  }
  result.resident_bytes = PeakResidentBytes();
  return result;
}

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

OrderedJson Summarise(const std::string& attention, int64_t length, const BenchArguments& arguments,
                      const std::vector<Measurement>& runs) {
  std::vector<double> prefill, decode_mean, decode_steps;
  Measurement worst;
  for (const Measurement& run : runs) {
    prefill.push_back(run.prefill_ms);
    decode_mean.push_back(std::accumulate(run.decode_ms.begin(), run.decode_ms.end(), 0.0) /
                          static_cast<double>(run.decode_ms.size()));
    decode_steps.insert(decode_steps.end(), run.decode_ms.begin(), run.decode_ms.end());
    worst.kv_bytes = std::max(worst.kv_bytes, run.kv_bytes);
    worst.resident_bytes = std::max(worst.resident_bytes, run.resident_bytes);
  }
  const bool dense = attention == "dense";
  const Settings& s = arguments.settings;
  OrderedJson row;
  row["attention"] = attention;
  row["length"] = length;
  row["batch"] = arguments.batch;
  row["prefill_ms"] = Median(prefill);
  row["decode_ms_per_token"] = Median(decode_mean);
  row["decode_ms_p99"] = Quantile(decode_steps, 0.99);
  row["kv_bytes"] = worst.kv_bytes;
  row["resident_bytes"] = worst.resident_bytes;
  row["reuse_interval"] = dense ? "1" : s.reuse_interval;
  row["streaming_share"] = dense ? 0.0 : s.streaming_share;
  row["token_budget"] = dense ? 0 : s.token_budget;
  row["selection_unit"] = dense ? 64 : s.selection_unit;
  if (const PrefillBlocks& blocks = runs[0].blocks; blocks.scored > 0) {  // alike in every run
    row["prefill_blocks_scored"] = blocks.scored;
    row["prefill_density"] =
        static_cast<double>(blocks.weighed) / static_cast<double>(blocks.scored);
  }
  row["prefill_ms_runs"] = prefill;
  row["decode_ms_runs"] = decode_mean;
  return row;
}

Status Bench(BenchArguments& arguments) {
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
  ASSIGN_OR_RETURN(const LoadedModel model,
                   LoadModelForCommand(arguments.model, arguments.settings));
  const int64_t context = arguments.settings.max_model_len == 0 ? model.config.context_length
                                                                : arguments.settings.max_model_len;
  for (const int64_t length : arguments.lengths) {
    if (length <= arguments.decode_tokens || length > context) {
      return InvalidArgument("--lengths {} is outside {} to {} (decode tokens + 1 to the context)",
                             length, arguments.decode_tokens + 1, context);
    }
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, arguments.settings.AttentionNames());
  OrderedJson rows = OrderedJson::array();
  std::printf("%-8s %8s %6s %14s %12s %12s %10s %12s\n", "mode", "length", "batch", "prefill ms",
              "decode ms", "p99 ms", "KV MiB", "resident MiB");
  for (const int64_t length : arguments.lengths) {
    std::vector<std::vector<Measurement>> runs(modes.size());
    ProgressLine line(fmt::format("{} tokens", length));
    for (int64_t repetition = 0; repetition < arguments.repeat; ++repetition) {
      for (size_t mode = 0; mode < modes.size(); ++mode) {
        line.Show(static_cast<double>(repetition) / static_cast<double>(arguments.repeat),
                  modes[mode]);
        ASSIGN_OR_RETURN(Measurement run, Measure(model, modes[mode], arguments, length));
        runs[mode].push_back(std::move(run));
      }
    }
    line.Clear();
    for (size_t mode = 0; mode < modes.size(); ++mode) {
      const OrderedJson row = Summarise(modes[mode], length, arguments, runs[mode]);
      constexpr double kMiB = 1024.0 * 1024.0;
      std::printf("%-8s %8ld %6ld %14.1f %12.3f %12.3f %10.1f %12.1f\n", modes[mode].c_str(),
                  static_cast<long>(length), static_cast<long>(arguments.batch),
                  row["prefill_ms"].get<double>(), row["decode_ms_per_token"].get<double>(),
                  row["decode_ms_p99"].get<double>(), row["kv_bytes"].get<double>() / kMiB,
                  row["resident_bytes"].get<double>() / kMiB);
      std::fflush(stdout);
      rows.push_back(row);
    }
  }
  OrderedJson result;
  result["model"] = model.name;
  result["settings"] = model.settings.ToJson();
  result["commit"] = BuildCommit();
  result["device"] = {{"backend", model.backend->name()},
                      {"name", model.backend->facts().name},
                      {"instructions", model.backend->facts().instructions},
                      {"threads", model.backend->facts().threads}};
  result["decode_tokens"] = arguments.decode_tokens;
  result["repeat"] = arguments.repeat;
  result["seed"] = arguments.seed;
  result["rows"] = std::move(rows);
  return WriteResult(arguments.json, result);
}

}  // namespace

RegisteredCommand RegisterBench(CLI::App& program) {
  auto arguments = std::make_shared<BenchArguments>();
  arguments->settings.attention = "dense,lserve";
  CLI::App* app = program.add_subcommand("bench", "prefill and decode latency, dense and sparse");
  AddModelAndSettings(*app, &arguments->model, &arguments->settings);
  app->add_option("--lengths", arguments->lengths,
                  "contexts after decoding, in tokens, comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  app->add_option("--decode-tokens", arguments->decode_tokens, "tokens decoded in each run")
      ->capture_default_str();
  app->add_option("--batch", arguments->batch, "sequences side by side")->capture_default_str();
  app->add_option("--repeat", arguments->repeat, "runs of each row; medians are reported")
      ->capture_default_str();
  app->add_option("--seed", arguments->seed, "of the random prompts")->capture_default_str();
  app->add_option("--json", arguments->json, "also write the result here; - for standard output");
  return {app, [arguments] { return Bench(*arguments); }};
}

}  // namespace lserve
