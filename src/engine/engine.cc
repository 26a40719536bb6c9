#include "engine/engine.h"

#include <utility>

#include "engine/loop.h"

namespace lserve {

Engine::Engine(std::vector<std::unique_ptr<Runner>> runners,
               std::shared_ptr<const Tokenizer> tokenizer, EngineOptions options)
    : loop_(std::make_unique<Loop>(std::move(runners), std::move(tokenizer), std::move(options))) {}

Engine::~Engine() = default;

Result<RequestId> Engine::Submit(Request request, OutputSink sink) {
  return loop_->Submit(std::move(request), std::move(sink));
}

void Engine::Cancel(RequestId id) { loop_->Cancel(id); }

void Engine::Drain(double seconds) { loop_->Drain(seconds); }

Status Engine::health() const { return loop_->health(); }

int32_t Engine::num_models() const { return loop_->num_models(); }

const RunnerLimits& Engine::limits(int32_t model) const { return loop_->limits(model); }

EngineModelStats Engine::stats(int32_t model) const { return loop_->stats(model); }

}  // namespace lserve
