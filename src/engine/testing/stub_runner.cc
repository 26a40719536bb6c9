#include "engine/testing/stub_runner.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/random.h"

namespace lserve {
namespace {

constexpr int64_t kChunkMultiple = 128;
constexpr int64_t kBytesPerPage = 4096;
constexpr int64_t kBytesPerSlot = 16384;  // the open page and the streaming lane's ring

}  // namespace

void StepGate::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

void StepGate::Open() {
  const std::lock_guard lock(mutex_);
  closed_ = false;
  changed_.notify_all();
}

void StepGate::AwaitBlocked() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return blocked_; });
}

void StepGate::Pass() {
  std::unique_lock lock(mutex_);
  blocked_ = closed_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !closed_; });
  blocked_ = false;
}

StubRunner::StubRunner(StubRunnerOptions options)
    : options_(std::move(options)),
      slots_(static_cast<size_t>(options_.limits.max_num_seqs)),
      free_pages_(options_.limits.kv_pages) {}

StubRunner::Slot& StubRunner::At(int32_t slot) {
  CHECK(slot >= 0 && slot < options_.limits.max_num_seqs);
  std::optional<Slot>& at = slots_[static_cast<size_t>(slot)];
  CHECK_MSG(at.has_value(), "slot {} is not open", slot);
  return *at;
}

Result<int32_t> StubRunner::OpenSlot(std::span<const int32_t> prompt,
                                     const SlotSampling& sampling) {
  CHECK(!prompt.empty());
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].has_value()) continue;
    slots_[i].emplace();
    slots_[i]->prompt.assign(prompt.begin(), prompt.end());
    slots_[i]->seed = sampling.seed;
    ++open_slots_;
    return static_cast<int32_t>(i);
  }
  return ResourceExhausted("all {} slots are taken", slots_.size());
}

Status StubRunner::Reserve(int32_t slot, int64_t tokens) {
  Slot& at = At(slot);
  CHECK_LE(tokens, options_.limits.max_model_len);
  const int64_t more = PagesFor(tokens) - at.pages;
  if (more > free_pages_) {
    return ResourceExhausted("{} pages are needed, {} are free", more, free_pages_.load());
  }
  if (more > 0) {
    free_pages_ -= more;
    at.pages += more;
  }
  at.reserved = std::max(at.reserved, tokens);
  return OkStatus();
}

Result<int32_t> StubRunner::Fork(int32_t slot, std::span<const int32_t> prompt,
                                 const SlotSampling& sampling) {
  const std::vector<int32_t> held = At(slot).held;
  CHECK_GE(prompt.size(), held.size());
  CHECK(std::equal(held.begin(), held.end(), prompt.begin()));
  ASSIGN_OR_RETURN(const int32_t to, OpenSlot(prompt, sampling));
  if (Status status = Reserve(to, static_cast<int64_t>(held.size())); !status.ok()) {
    CloseSlot(to);
    return status;
  }
  At(to).held = held;
  return to;
}

void StubRunner::CloseSlot(int32_t slot) {
  free_pages_ += At(slot).pages;
  slots_[static_cast<size_t>(slot)].reset();
  --open_slots_;
}

int64_t StubRunner::PagesFor(int64_t tokens) const {
  return std::max<int64_t>(0, (tokens + kPageTokens - 1) / kPageTokens - 1);
}

int64_t StubRunner::FreePages() const { return free_pages_; }

int64_t StubRunner::KvBytes(int32_t slot) const {
  const std::optional<Slot>& at = slots_.at(static_cast<size_t>(slot));
  CHECK(at.has_value());
  return kBytesPerSlot + at->pages * kBytesPerPage;
}

int32_t StubRunner::NextToken(std::span<const int32_t> prompt, std::span<const int32_t> generated,
                              uint64_t seed) const {
  const auto index = static_cast<int64_t>(generated.size());
  if (index == options_.eos_after) return options_.eos_token;
  if (options_.script) {
    const int32_t token = options_.script(prompt, index);
    if (token >= 0) return token;
  }
  uint64_t hash = 14695981039346656037ull ^ seed;  // FNV-1a, a token at a time
  for (const int32_t token : prompt) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
  for (const int32_t token : generated) {
    hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
  }
  const auto vocab = static_cast<uint32_t>(options_.limits.vocab_size);
  const auto token = static_cast<int32_t>(Philox(hash, static_cast<uint64_t>(index))[0] % vocab);
  return token == options_.eos_token ? (token + 1) % options_.limits.vocab_size : token;
}

std::vector<int32_t> StubRunner::Expected(std::span<const int32_t> prompt, int64_t count,
                                          uint64_t seed) const {
  std::vector<int32_t> generated;
  while (static_cast<int64_t>(generated.size()) < count) {
    generated.push_back(NextToken(prompt, generated, seed));
  }
  return generated;
}

int32_t StubRunner::Sample(Slot* slot) {
  CHECK_EQ(slot->held.size(), slot->prompt.size() + slot->generated.size());
  slot->last_sampled = NextToken(slot->prompt, slot->generated, slot->seed);
  return *slot->last_sampled;
}

void StubRunner::RunDecode(const DecodeRow& row) {
  Slot& slot = At(row.slot);
  CHECK_EQ(row.position, static_cast<int64_t>(slot.held.size()));
  CHECK_LE(row.position + 1, slot.reserved);
  CHECK_GE(slot.held.size(), slot.prompt.size());
  CHECK(row.token >= 0 || slot.last_sampled.has_value());
  const int32_t token = row.token >= 0 ? row.token : *slot.last_sampled;
  // Generated tokens are what this model would have generated, replayed ones too.
  CHECK_EQ(token, NextToken(slot.prompt, slot.generated, slot.seed));
  slot.held.push_back(token);
  slot.generated.push_back(token);
  slot.last_sampled.reset();
  if (!row.sample) ++replayed_rows_;
}

void StubRunner::RunChunk(const PromptChunk& chunk) {
  Slot& slot = At(chunk.slot);
  const auto count = static_cast<int64_t>(chunk.tokens.size());
  const int64_t end = chunk.first_position + count;
  CHECK_GE(count, 1);
  CHECK_EQ(chunk.first_position, static_cast<int64_t>(slot.held.size()));
  CHECK_LE(end, static_cast<int64_t>(slot.prompt.size()));
  CHECK_LE(end, slot.reserved);
  const bool last = end == static_cast<int64_t>(slot.prompt.size());
  CHECK(last || end % kChunkMultiple == 0);
  CHECK(last || !chunk.sample);
  CHECK(std::equal(chunk.tokens.begin(), chunk.tokens.end(),
                   slot.prompt.begin() + chunk.first_position));
  slot.held.insert(slot.held.end(), chunk.tokens.begin(), chunk.tokens.end());
  prefill_rows_ += count;
}

Result<std::vector<SampledToken>> StubRunner::Step(const StepInput& input) {
  if (options_.gate) options_.gate->Pass();
  if (options_.step_seconds > 0) {
    std::this_thread::sleep_for(std::chrono::duration<double>(options_.step_seconds));
  }
  const int64_t step = steps_++;
  if (options_.fail_at_step >= 0 && step >= options_.fail_at_step) {
    return Internal("the stub fails at step {}", step);
  }

  auto rows = static_cast<int64_t>(input.decode.size());
  const auto enter = [&](int32_t slot) {
    CHECK_MSG(std::exchange(At(slot).step, step) != step, "slot {} twice in a step", slot);
  };
  std::vector<SampledToken> sampled;
  for (const DecodeRow& row : input.decode) {
    enter(row.slot);
    RunDecode(row);
    if (row.sample) sampled.push_back({row.slot, Sample(&At(row.slot))});
  }
  for (const PromptChunk& chunk : input.chunks) {
    enter(chunk.slot);
    RunChunk(chunk);
    rows += static_cast<int64_t>(chunk.tokens.size());
    if (chunk.sample) sampled.push_back({chunk.slot, Sample(&At(chunk.slot))});
  }
  CHECK(rows >= 1 && rows <= options_.limits.max_batch_rows);
  most_rows_ = std::max<int64_t>(most_rows_, rows);
  return sampled;
}

}  // namespace lserve
