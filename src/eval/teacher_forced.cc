#include "eval/teacher_forced.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/offline.h"
#include "model/log_softmax.h"

namespace lserve {
namespace {

std::ptrdiff_t MostLikely(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// To a millionth of a nat, far below what bfloat16 activations resolve: result files stay short,
// and a trace is the same measured or read back.
double Rounded(double nats) { return std::round(nats * 1e6) / 1e6; }

double Mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Rows of logits that one step returns: 64 MiB of them, and at least a query block.
int64_t LogitRows(int64_t vocab_size) {
  constexpr int64_t kFloats = int64_t{1} << 24;
  return std::clamp(kFloats / vocab_size / kQueryBlockTokens * kQueryBlockTokens,
                    int64_t{kQueryBlockTokens}, int64_t{2048});
}

// Feeds one document to one run.
class Tracer {
 public:
  Tracer(const LoadedModel& model, const EvalRun& run, const ForcedDocument& document,
         LlamaRunner& runner, const EvalProgress& progress)
      : model_(model), run_(run), document_(document), runner_(runner), progress_(progress) {}

  // With `reference` (the dense run's logits, [rows][vocabulary]) compares; with `keep` appends
  // this run's logits to it.
  Result<ForcedTrace> Trace(const std::vector<float>* reference, std::vector<float>* keep) {
    ForcedTrace trace;
    trace.run = run_.name;
    const std::span<const int32_t> tokens(document_.tokens);
    const std::span<const int32_t> prompt =
        tokens.first(static_cast<size_t>(document_.decode_from));
    ASSIGN_OR_RETURN(const int32_t slot, runner_.OpenSlot(prompt, kGreedySampling));
    if (document_.prefill_loss) {
      std::vector<double> losses;  // of tokens 1, 2, ...
      RETURN_IF_ERROR(PrefillLosses(slot, 0, document_.decode_from, &losses));
      ASSIGN_OR_RETURN(const int32_t tail, runner_.Fork(slot, tokens, kGreedySampling));
      RETURN_IF_ERROR(PrefillLosses(tail, document_.decode_from, std::ssize(tokens), &losses));
      runner_.CloseSlot(tail);
      trace.prefill_loss = Mean(losses);
      trace.prefill_tail_loss =
          Mean(std::span(losses).subspan(static_cast<size_t>(document_.decode_from)));
    } else {
      RETURN_IF_ERROR(PrefillPrompt(runner_, slot, prompt, 0,
                                    model_.settings.max_num_batched_tokens, false,
                                    [&](int64_t done) { Report(done); })
                          .status());
    }
    RETURN_IF_ERROR(DecodeRows(slot, reference, keep, &trace));
    runner_.CloseSlot(slot);
    return trace;
  }

 private:
  void Report(int64_t tokens) const {
    progress_(static_cast<double>(tokens) / static_cast<double>(document_.tokens.size()),
              fmt::format("{}: {}, {} of {} tokens", run_.name, document_.id, tokens,
                          document_.tokens.size()));
  }

  // Prefills [first, end) and appends the loss of each token that follows one of them.
  Status PrefillLosses(int32_t slot, int64_t first, int64_t end, std::vector<double>* losses) {
    const auto vocab = static_cast<size_t>(runner_.limits().vocab_size);
    const int64_t chunk =
        std::min(LogitRows(runner_.limits().vocab_size),
                 model_.settings.max_num_batched_tokens / kQueryBlockTokens * kQueryBlockTokens);
    while (first < end) {
      const int64_t count = std::min(chunk, end - first);
      RETURN_IF_ERROR(runner_.Reserve(slot, first + count));
      StepInput input;
      input.chunks.push_back(PromptChunk{
          .slot = slot,
          .first_position = first,
          .tokens = std::span(document_.tokens)
                        .subspan(static_cast<size_t>(first), static_cast<size_t>(count))});
      std::vector<int32_t> rows(static_cast<size_t>(count));
      std::iota(rows.begin(), rows.end(), 0);
      ASSIGN_OR_RETURN(const std::vector<float> logits, runner_.StepLogits(input, rows));
      for (int64_t i = 0; i < count && first + i + 1 < std::ssize(document_.tokens); ++i) {
        losses->push_back(
            NegativeLogLikelihood(std::span(logits).subspan(static_cast<size_t>(i) * vocab, vocab),
                                  document_.tokens[static_cast<size_t>(first + i + 1)]));
      }
      first += count;
      Report(first);
    }
    return OkStatus();
  }

  Status DecodeRows(int32_t slot, const std::vector<float>* reference, std::vector<float>* keep,
                    ForcedTrace* trace) {
    const auto vocab = static_cast<size_t>(runner_.limits().vocab_size);
    const std::vector<int32_t> first_row = {0};
    for (int64_t position = document_.decode_from; position + 1 < std::ssize(document_.tokens);
         ++position) {
      RETURN_IF_ERROR(runner_.Reserve(slot, position + 1));
      StepInput input;
      input.decode.push_back(DecodeRow{.slot = slot,
                                       .position = position,
                                       .token = document_.tokens[static_cast<size_t>(position)],
                                       .sample = false});
      ASSIGN_OR_RETURN(const std::vector<float> logits, runner_.StepLogits(input, first_row));
      trace->loss.push_back(Rounded(
          NegativeLogLikelihood(logits, document_.tokens[static_cast<size_t>(position + 1)])));
      if (reference != nullptr) {
        const auto row = static_cast<size_t>(position - document_.decode_from);
        const std::span<const float> dense = std::span(*reference).subspan(row * vocab, vocab);
        trace->kl.push_back(Rounded(KlDivergence(dense, logits)));
        trace->agrees.push_back(MostLikely(dense) == MostLikely(logits));
      }
      if (keep != nullptr) {
        keep->insert(keep->end(), logits.begin(), logits.end());
      }
      Report(position + 1);
    }
    return OkStatus();
  }

  const LoadedModel& model_;
  const EvalRun& run_;
  const ForcedDocument& document_;
  LlamaRunner& runner_;
  const EvalProgress& progress_;
};

bool IsListOf(const Json* list, bool (Json::*is)() const noexcept) {
  return list != nullptr && list->is_array() &&
         std::all_of(list->begin(), list->end(), [&](const Json& item) { return (item.*is)(); });
}

}  // namespace

double KlDivergence(std::span<const float> p, std::span<const float> q) {
  CHECK_EQ(p.size(), q.size());
  const double p_norm = LogSumExp(p);
  const double q_norm = LogSumExp(q);
  double divergence = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double p_log = static_cast<double>(p[i]) - p_norm;
    const double q_log = static_cast<double>(q[i]) - q_norm;
    divergence += std::exp(p_log) * (p_log - q_log);
  }
  return std::max(0.0, divergence);  // rounding can leave a little less
}

OrderedJson ToJson(const ForcedTrace& trace) {
  OrderedJson json;
  json["run"] = trace.run;
  if (trace.prefill_loss.has_value()) {
    json["prefill_loss"] = *trace.prefill_loss;
    json["prefill_tail_loss"] = *trace.prefill_tail_loss;
  }
  json["loss"] = trace.loss;
  json["kl"] = trace.kl;
  json["agrees"] = trace.agrees;
  return json;
}

Result<ForcedTrace> TraceFromJson(const Json& json) {
  const Json* run = FindKey(json, "run");
  const Json* loss = FindKey(json, "loss");
  const Json* kl = FindKey(json, "kl");
  const Json* agrees = FindKey(json, "agrees");
  if (run == nullptr || !run->is_string() || !IsListOf(loss, &Json::is_number) ||
      !IsListOf(kl, &Json::is_number) || !IsListOf(agrees, &Json::is_boolean)) {
    return InvalidArgument("a trace lacks \"run\", \"loss\", \"kl\" or \"agrees\"");
  }
  ForcedTrace trace;
  trace.run = run->get<std::string>();
  trace.loss = loss->get<std::vector<double>>();
  trace.kl = kl->get<std::vector<double>>();
  trace.agrees = agrees->get<std::vector<bool>>();
  const Json* prefill = FindKey(json, "prefill_loss");
  const Json* tail = FindKey(json, "prefill_tail_loss");
  if (prefill != nullptr && prefill->is_number() && tail != nullptr && tail->is_number()) {
    trace.prefill_loss = prefill->get<double>();
    trace.prefill_tail_loss = tail->get<double>();
  }
  return trace;
}

Result<std::vector<ForcedTrace>> TraceDocument(const LoadedModel& model,
                                               const std::vector<EvalRun>& runs,
                                               const ForcedDocument& document,
                                               const EvalProgress& progress) {
  CHECK_EQ(document.decode_from % kQueryBlockTokens, 0);
  CHECK_LT(document.decode_from + 1, std::ssize(document.tokens));
  const auto dense =
      std::find_if(runs.begin(), runs.end(), [](const EvalRun& run) { return run.dense(); });
  std::vector<float> dense_logits;
  std::vector<ForcedTrace> traces(runs.size());
  const auto trace_run = [&](size_t i) -> Status {
    const int32_t logit_rows =
        document.prefill_loss ? static_cast<int32_t>(LogitRows(model.config.vocab_size)) : 1;
    ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner,
                     MakeRunner(model, runs[i], logit_rows));
    if (std::ssize(document.tokens) > runner->limits().max_model_len) {
      return InvalidArgument("{} has {} tokens, the context {}", document.id,
                             document.tokens.size(), runner->limits().max_model_len);
    }
    const bool compares = dense != runs.end() && !runs[i].dense();
    const bool keeps = runs[i].dense() && runs.size() > 1;
    if (keeps) {
      const auto rows = document.tokens.size() - static_cast<size_t>(document.decode_from);
      dense_logits.reserve(rows * static_cast<size_t>(model.config.vocab_size));
    }
    Tracer tracer(model, runs[i], document, *runner, progress);
    ASSIGN_OR_RETURN(traces[i], tracer.Trace(compares ? &dense_logits : nullptr,
                                             keeps ? &dense_logits : nullptr));
    return OkStatus();
  };
  if (dense != runs.end()) {
    RETURN_IF_ERROR(trace_run(static_cast<size_t>(dense - runs.begin())));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    if (!runs[i].dense()) {
      RETURN_IF_ERROR(trace_run(i));
    }
  }
  return traces;
}

}  // namespace lserve
