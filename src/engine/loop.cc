#include "engine/loop.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/sampling.h"

namespace lserve {

Engine::Loop::Loop(std::vector<std::unique_ptr<Runner>> runners,
                   std::shared_ptr<const Tokenizer> tokenizer, EngineOptions options)
    : tokenizer_(std::move(tokenizer)), options_(std::move(options)) {
  CHECK(!runners.empty());
  for (std::unique_ptr<Runner>& runner : runners) {
    Model& model = models_.emplace_back();
    model.limits = runner->limits();
    model.scheduler.limits = {
        .max_num_seqs = model.limits.max_num_seqs,
        .max_rows = std::min(options_.max_batched_tokens, model.limits.max_batch_rows),
        .max_partial_prefills = options_.max_partial_prefills,
        .prefill_step_seconds = options_.prefill_step_seconds,
        .decode_step_seconds = options_.decode_step_seconds,
        .pages_for = [pages = runner.get()](int64_t tokens) { return pages->PagesFor(tokens); }};
    CHECK_GE(model.scheduler.limits.max_rows, kPrefillUnit);
    model.stats.kv_pages = model.limits.kv_pages;
    model.runner = std::move(runner);
    published_.push_back(model.stats);
  }
  thread_ = std::jthread([this](const std::stop_token& stop) { Run(stop); });
}

Engine::Loop::~Loop() {
  thread_.request_stop();
  thread_.join();
}

Status Engine::Loop::CheckRequest(Active* active) const {
  const Request& request = active->request;
  if (request.model < 0 || request.model >= num_models()) {
    return InvalidArgument("model {} is unknown; there are {}", request.model, num_models());
  }
  const RunnerLimits& limits = models_[static_cast<size_t>(request.model)].limits;
  if (request.prompt.empty()) return InvalidArgument("the prompt is empty");
  RETURN_IF_ERROR(Validate(request.sampling));
  for (const int32_t token : request.sampling.stop_token_ids) {
    if (token >= limits.vocab_size) {
      return InvalidArgument("stop_token_ids holds {}, but the vocabulary has {} tokens", token,
                             limits.vocab_size);
    }
  }
  if (tokenizer_ == nullptr && !request.sampling.stop.empty()) {
    return InvalidArgument("stop needs a tokenizer, and this engine has none");
  }

  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t max_tokens = request.sampling.max_tokens;
  if (prompt >= limits.max_model_len) {
    return InvalidArgument("the maximum context length is {} tokens, but the prompt has {}",
                           limits.max_model_len, prompt);
  }
  if (max_tokens > limits.max_model_len - prompt) {
    return InvalidArgument(
        "the maximum context length is {} tokens, but {} were asked for ({} in the prompt, "
        "max_tokens {})",
        limits.max_model_len, static_cast<double>(prompt) + static_cast<double>(max_tokens), prompt,
        max_tokens);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= limits.vocab_size) {
      return InvalidArgument("the prompt holds token {}, but the vocabulary has {} tokens", token,
                             limits.vocab_size);
    }
  }

  const SchedulerLimits& scheduler = models_[static_cast<size_t>(request.model)].scheduler.limits;
  const int64_t wanted = max_tokens > 0 ? max_tokens : limits.max_model_len - prompt;
  const int64_t fits = AdmissibleTokens(scheduler.pages_for, limits.kv_pages, prompt, wanted);
  if (fits < (max_tokens > 0 ? max_tokens : 1)) {
    return ResourceExhausted(
        "the KV cache has {} pages, but {} tokens in the prompt and {} in the answer need {}",
        limits.kv_pages, prompt, std::max<int64_t>(max_tokens, 1),
        scheduler.pages_for(prompt + std::max<int64_t>(max_tokens, 1)));
  }
  active->max_new_tokens = fits;
  return OkStatus();
}

Result<RequestId> Engine::Loop::Submit(Request request, OutputSink sink) {
  auto active = std::make_unique<Active>();
  active->request = std::move(request);
  active->sink = std::make_shared<const OutputSink>(std::move(sink));
  active->submitted = NowSeconds();
  RETURN_IF_ERROR(CheckRequest(active.get()));
  active->stats.prompt_tokens = static_cast<int64_t>(active->request.prompt.size());
  active->text = std::make_unique<TextOutput>(tokenizer_.get(), active->request.sampling.stop);

  const std::lock_guard lock(mutex_);
  if (!running_) return FailedPrecondition("the engine has failed: {}", failure_.message());
  if (draining_) return FailedPrecondition("the server is shutting down");
  if (queued_ >= options_.max_waiting) {
    return ResourceExhausted("the queue is full: {} requests wait", queued_);
  }
  active->id = ++last_id_;
  incoming_.push_back(std::move(active));
  ++queued_;
  ++live_;
  wake_.notify_one();
  return last_id_;
}

void Engine::Loop::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (!running_) return;
  cancels_.push_back(id);
  wake_.notify_one();
}

void Engine::Loop::Drain(double seconds) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto ended = [&] { return live_ == 0; };
  // Bounded, as a clock's ticks are.
  const std::chrono::duration<double> limit(std::clamp(seconds, 0.0, 1e7));
  if (idle_.wait_for(lock, limit, ended)) return;
  cancel_all_ = true;
  wake_.notify_one();
  idle_.wait(lock, ended);
}

Status Engine::Loop::health() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

const RunnerLimits& Engine::Loop::limits(int32_t model) const {
  return models_.at(static_cast<size_t>(model)).limits;
}

EngineModelStats Engine::Loop::stats(int32_t model) const {
  const std::lock_guard lock(mutex_);
  EngineModelStats stats = published_.at(static_cast<size_t>(model));
  stats.waiting += std::count_if(
      incoming_.begin(), incoming_.end(),
      [model](const std::unique_ptr<Active>& active) { return active->request.model == model; });
  return stats;
}

void Engine::Loop::Run(const std::stop_token& stop) {
  while (TakeInput(stop)) {
    if (Model* model = NextModel(); model != nullptr) RunStep(model);
    Deliver();
  }
  {
    const std::lock_guard lock(mutex_);
    running_ = false;
    if (failure_.ok()) failure_ = Status(StatusCode::kCancelled, "the engine was stopped");
  }
  // Nothing can come in any more; what came in last is taken along.
  Enqueue(std::move(incoming_));
  EndAll(FinishReason::kCancelled, OkStatus());
  Deliver();
}

bool Engine::Loop::TakeInput(const std::stop_token& stop) {
  std::vector<std::unique_ptr<Active>> incoming;
  std::vector<RequestId> cancels;
  bool cancel_all = false;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, stop, [&] {
      return !active_.empty() || !incoming_.empty() || !cancels_.empty() || cancel_all_;
    });
    if (stop.stop_requested()) return false;
    incoming.swap(incoming_);
    cancels.swap(cancels_);
    std::swap(cancel_all, cancel_all_);
  }
  Enqueue(std::move(incoming));
  for (const RequestId id : cancels) {
    if (active_.contains(id)) End(id, FinishReason::kCancelled, OkStatus());
  }
  if (cancel_all) EndAll(FinishReason::kCancelled, OkStatus());
  return true;
}

void Engine::Loop::Enqueue(std::vector<std::unique_ptr<Active>> incoming) {
  for (std::unique_ptr<Active>& active : incoming) {
    const RequestId id = active->id;
    models_[static_cast<size_t>(active->request.model)].scheduler.Add(
        id, active->stats.prompt_tokens, active->max_new_tokens);
    active_.emplace(id, std::move(active));
  }
}

Engine::Loop::Model* Engine::Loop::NextModel() {
  for (size_t i = 1; i <= models_.size(); ++i) {
    const size_t at = (last_model_ + i) % models_.size();
    if (models_[at].scheduler.sequences.empty()) continue;
    last_model_ = at;
    return &models_[at];
  }
  return nullptr;
}

Status Engine::Loop::OpenPlanned(Model* model, const PlannedAdmission& admission) {
  Active& active = *active_.at(admission.id);
  ASSIGN_OR_RETURN(active.slot, model->runner->OpenSlot(active.request.prompt,
                                                        ToSlotSampling(active.request.sampling)));
  active.fed = false;
  dequeued_ += active.admitted ? 0 : 1;
  active.admitted = true;
  return model->runner->Reserve(active.slot, admission.reserve);
}

Status Engine::Loop::PrepareStep(Model* model, const StepPlan& plan, StepInput* input) {
  for (const RequestId id : plan.preempt) {
    Active& active = *active_.at(id);
    model->runner->CloseSlot(std::exchange(active.slot, -1));
    if (model->scheduler.Find(id)->held > 0) ++model->stats.preemptions;
  }
  for (const PlannedDecode& row : plan.decode) {
    Active& active = *active_.at(row.id);
    if (row.reserve > 0) RETURN_IF_ERROR(model->runner->Reserve(active.slot, row.reserve));
    const auto index = static_cast<size_t>(row.position - active.stats.prompt_tokens);
    input->decode.push_back({.slot = active.slot,
                             .position = row.position,
                             .token = active.fed ? -1 : active.generated[index],
                             .sample = row.sample});
  }
  for (const PlannedAdmission& admission : plan.admit) {
    RETURN_IF_ERROR(OpenPlanned(model, admission));
  }
  for (const PlannedChunk& chunk : plan.chunks) {
    const Active& active = *active_.at(chunk.id);
    input->chunks.push_back(
        {.slot = active.slot,
         .first_position = chunk.first,
         .tokens = std::span(active.request.prompt)
                       .subspan(static_cast<size_t>(chunk.first), static_cast<size_t>(chunk.count)),
         .sample = chunk.sample});
  }
  return OkStatus();
}

void Engine::Loop::RunStep(Model* model) {
  SchedulerState& scheduler = model->scheduler;
  scheduler.cost = model->cost.estimate();
  scheduler.free_pages = model->runner->FreePages();
  scheduler.others_decode = std::any_of(models_.begin(), models_.end(), [&](const Model& other) {
    return &other != model && other.scheduler.HasDecoding();
  });
  const StepPlan plan = PlanStep(scheduler);
  StepInput input;
  if (Status status = PrepareStep(model, plan, &input); !status.ok()) return Fail(status);
  CHECK(!input.decode.empty() || !input.chunks.empty());

  const double started = NowSeconds();
  Result<std::vector<SampledToken>> sampled = model->runner->Step(input);
  const double now = NowSeconds();
  if (!sampled.ok()) return Fail(sampled.status());

  double row_context = 0;
  int64_t prefill_rows = 0;
  for (const PlannedChunk& chunk : plan.chunks) {
    row_context += CostEstimate::RowContext(chunk.first, chunk.count);
    prefill_rows += chunk.count;
    AccountPrefill(model, chunk, started);
  }
  model->cost.Observe(static_cast<int64_t>(plan.decode.size()), prefill_rows, row_context,
                      now - started);
  ApplyPlan(plan, &scheduler);

  size_t next = 0;
  const auto take = [&](RequestId id, bool sample) {
    Active& active = *active_.at(id);
    OutputEvent event;
    FinishReason finish = FinishReason::kNone;
    if (sample) {
      CHECK(next < sampled->size() && (*sampled)[next].slot == active.slot);
      finish = TakeToken(&active, (*sampled)[next++].token, now, &event);
      ++model->stats.generation_tokens;
    }
    active.stats.kv_bytes = model->runner->KvBytes(active.slot);
    event.finish = finish;
    AddNews(active, std::move(event));
    if (finish != FinishReason::kNone) End(id, finish, OkStatus());
  };
  for (const PlannedDecode& row : plan.decode) take(row.id, row.sample);
  for (const PlannedChunk& chunk : plan.chunks) take(chunk.id, chunk.sample);
  CHECK_EQ(next, sampled->size());
}

void Engine::Loop::AccountPrefill(Model* model, const PlannedChunk& chunk, double started) {
  Active& active = *active_.at(chunk.id);
  if (active.first_chunk < 0) {
    active.first_chunk = started;
    active.stats.queue_seconds = started - active.submitted;
  }
  // A rebuilt prompt is not counted twice.
  const int64_t fresh = chunk.first + chunk.count - active.stats.prefilled_tokens;
  if (fresh <= 0) return;
  active.stats.prefilled_tokens += fresh;
  model->stats.prompt_tokens += fresh;
}

FinishReason Engine::Loop::TakeToken(Active* active, int32_t token, double now,
                                     OutputEvent* event) {
  const SamplingParams& sampling = active->request.sampling;
  active->generated.push_back(token);
  active->fed = true;
  event->tokens.push_back(token);
  active->stats.generated_tokens = static_cast<int64_t>(active->generated.size());
  if (active->first_token < 0) {
    active->first_token = now;
    active->stats.prefill_seconds = now - active->first_chunk;
  }
  active->stats.decode_seconds = now - active->first_token;

  const auto holds = [token](const std::vector<int32_t>& tokens) {
    return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
  };
  const bool ends =
      (!sampling.ignore_eos && holds(options_.eos_token_ids)) || holds(sampling.stop_token_ids);
  const bool full = active->stats.generated_tokens >= active->max_new_tokens;
  if (!ends) event->text = active->text->Push(token);
  if ((ends || full) && !active->text->stopped()) event->text += active->text->Finish();
  if (ends || active->text->stopped()) return FinishReason::kStop;
  return full ? FinishReason::kLength : FinishReason::kNone;
}

void Engine::Loop::End(RequestId id, FinishReason reason, const Status& error) {
  Active& active = *active_.at(id);
  Model& model = models_[static_cast<size_t>(active.request.model)];
  if (reason == FinishReason::kCancelled || reason == FinishReason::kError) {
    if (active.slot >= 0 && !runners_failed_) {
      active.stats.kv_bytes = model.runner->KvBytes(active.slot);
    }
    OutputEvent event;
    event.finish = reason;
    event.error = error;
    AddNews(active, std::move(event));
  }
  if (active.slot >= 0 && !runners_failed_) {
    model.runner->CloseSlot(active.slot);
    if (Result<SelectionStats> selection = model.runner->Selection(); selection.ok()) {
      model.stats.selection = std::move(selection).value();
    }
  }
  switch (reason) {
    case FinishReason::kNone: break;
    case FinishReason::kStop: ++model.stats.finished_stop; break;
    case FinishReason::kLength: ++model.stats.finished_length; break;
    case FinishReason::kCancelled: ++model.stats.finished_abort; break;
    case FinishReason::kError: ++model.stats.finished_error; break;
  }
  model.scheduler.Remove(id);
  dequeued_ += active.admitted ? 0 : 1;
  ++ended_;
  active_.erase(id);
}

void Engine::Loop::EndAll(FinishReason reason, const Status& error) {
  while (!active_.empty()) End(active_.begin()->first, reason, error);
}

void Engine::Loop::Fail(const Status& error) {
  spdlog::error("a step failed, no more requests are served: {}", error.message());
  runners_failed_ = true;
  {
    const std::lock_guard lock(mutex_);
    running_ = false;
    failure_ = error;
    Enqueue(std::exchange(incoming_, {}));
  }
  EndAll(FinishReason::kError, error);
}

void Engine::Loop::AddNews(const Active& active, OutputEvent event) {
  event.stats = active.stats;
  news_.push_back({.sink = active.sink, .event = std::move(event)});
}

void Engine::Loop::Deliver() {
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < models_.size(); ++i) {
      Model& model = models_[i];
      model.stats.running = 0;
      for (const SequenceState& sequence : model.scheduler.sequences) {
        if (sequence.phase != Phase::kWaiting) ++model.stats.running;
      }
      model.stats.waiting =
          static_cast<int64_t>(model.scheduler.sequences.size()) - model.stats.running;
      model.stats.kv_pages_used =
          runners_failed_ ? 0 : model.limits.kv_pages - model.runner->FreePages();
      published_[i] = model.stats;
    }
    queued_ -= std::exchange(dequeued_, 0);
  }
  for (const News& news : news_) {
    if (*news.sink) (*news.sink)(news.event);
  }
  news_.clear();
  const std::lock_guard lock(mutex_);
  live_ -= std::exchange(ended_, 0);
  if (live_ == 0) idle_.notify_all();
}

}  // namespace lserve
