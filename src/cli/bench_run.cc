#include "cli/bench_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>

#include "base/clock.h"
#include "base/random.h"
#include "engine/offline.h"

namespace lserve {
namespace {

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

// Touches what a runner keeps between requests (activations, rings, chunk pages, graphs): a
// server's first request pays for that once, a benchmark's run should not. A prompt of `tokens`
// tokens or of a step's, and a decode step of `batch` rows.
Status WarmUp(LlamaRunner& runner, const LoadedModel& model, int64_t tokens, int64_t batch) {
  std::vector<int32_t> slots;
  StepInput decode;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t count =
        i == 0 ? std::min(tokens, model.settings.max_num_batched_tokens) : int64_t{1};
    const std::vector<int32_t> prompt = RandomPrompt(count, model.config.vocab_size, 0);
    ASSIGN_OR_RETURN(const int32_t slot, runner.OpenSlot(prompt, kGreedySampling));
    slots.push_back(slot);
    RETURN_IF_ERROR(
        PrefillPrompt(runner, slot, prompt, 0, count + kQueryBlockTokens, true).status());
    RETURN_IF_ERROR(runner.Reserve(slot, count + 1));
    decode.decode.push_back(DecodeRow{.slot = slot, .position = count});
  }
  RETURN_IF_ERROR(runner.Step(decode).status());
  for (const int32_t slot : slots) {
    runner.CloseSlot(slot);
  }
  return OkStatus();
}

// kResourceExhausted if the cache holds less than `batch` sequences of `length` tokens.
Status CheckCapacity(const LlamaRunner& runner, int64_t batch, int64_t length) {
  const int64_t pages = batch * runner.PagesFor(length);
  if (pages <= runner.FreePages()) {
    return OkStatus();
  }
  const CacheConfig& cache = runner.cache().config();
  return ResourceExhausted("{} x {} tokens take {} bytes of closed KV pages, there is room for {}",
                           batch, length, pages * cache.RetrievalPageBytes(),
                           runner.FreePages() * cache.RetrievalPageBytes());
}

// A slot that holds `tokens` tokens and has its next one to decode.
Result<int32_t> OpenContext(LlamaRunner& runner, const LoadedModel& model,
                            const BenchArguments& arguments, int64_t tokens, uint64_t seed) {
  const std::vector<int32_t> prompt = RandomPrompt(tokens, model.config.vocab_size, seed);
  ASSIGN_OR_RETURN(const int32_t slot, runner.OpenSlot(prompt, kGreedySampling));
  const int64_t chunk_tokens = model.settings.max_num_batched_tokens;
  if (arguments.fill == "random") {
    RETURN_IF_ERROR(runner.AppendRandom(slot, tokens, seed, chunk_tokens));
  } else {
    ASSIGN_OR_RETURN(const int32_t token,
                     PrefillPrompt(runner, slot, prompt, 0, chunk_tokens, true));
    CHECK_GE(token, 0);
  }
  return slot;
}

}  // namespace

Result<Measurement> MeasureRun(const LoadedModel& model, const std::string& attention,
                               const BenchArguments& arguments, int64_t length) {
  ResetPeakResident();
  ASSIGN_OR_RETURN(const AttentionMode mode, model.Mode(attention));
  ASSIGN_OR_RETURN(RunnerOptions options, model.Options());
  if (model.settings.max_model_len == 0) {
    options.max_model_len = length;
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner, model.MakeRunner(mode, options));
  RETURN_IF_ERROR(CheckCapacity(*runner, arguments.batch, length));
  Measurement result;
  result.memory = ReportMemory(model, *runner);
  std::vector<int32_t> slots;
  const int64_t tokens = length - arguments.decode_tokens;
  RETURN_IF_ERROR(WarmUp(*runner, model, tokens, arguments.batch));
  ASSIGN_OR_RETURN(const SelectionStats before, runner->Selection());
  const double fill_start = NowSeconds();
  for (int64_t i = 0; i < arguments.batch; ++i) {
    ASSIGN_OR_RETURN(const int32_t slot, OpenContext(*runner, model, arguments, tokens,
                                                     arguments.seed + static_cast<uint64_t>(i)));
    slots.push_back(slot);
  }
  result.fill_ms = (NowSeconds() - fill_start) * 1e3;
  ASSIGN_OR_RETURN(const SelectionStats after, runner->Selection());
  result.blocks = {.scored = after.prefill.scored - before.prefill.scored,
                   .weighed = after.prefill.weighed - before.prefill.weighed};
  StepInput input;
  for (const int32_t slot : slots) {
    input.decode.push_back(DecodeRow{.slot = slot, .position = tokens});
  }
  for (int64_t step = 0; step < arguments.decode_tokens; ++step) {
    const double start = NowSeconds();
    for (DecodeRow& row : input.decode) {
      row.position = tokens + step;
      RETURN_IF_ERROR(runner->Reserve(row.slot, row.position + 1));
    }
    RETURN_IF_ERROR(runner->Step(input).status());
    result.decode_ms.push_back((NowSeconds() - start) * 1e3);
  }
  for (const int32_t slot : slots) {
    result.kv_bytes += runner->KvBytes(slot);
  }
  result.resident_bytes = PeakResidentBytes();
  if (const DeviceFacts& facts = model.backend->facts(); facts.own_memory) {
    result.device_bytes = facts.memory_bytes - model.backend->FreeBytes();
  }
  return result;
}

}  // namespace lserve
