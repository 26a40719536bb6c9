#include "eval/calibration.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/build_info.h"
#include "engine/offline.h"
#include "eval/calibration_documents.h"
#include "eval/document_losses.h"
#include "eval/random_stream.h"
#include "model/head_ablation.h"
#include "model/log_softmax.h"
#include "sparse/head_ranking.h"

namespace lserve {
namespace {

// Parts of the whole work, for the progress.
constexpr double kRankingShare = 0.5;
constexpr double kCurveShare = 0.4;

constexpr double kJointTolerance = 1e-3;  // nats, of RankHeads
constexpr int64_t kMaxSamples = 10000;
constexpr int64_t kMaxLength = 1 << 17;
constexpr int64_t kMaxCurveSteps = 32;            // shares beside 0; all of them in a small model
constexpr int64_t kRowsSideBySide = 1 << 15;      // of all variants of a document that run together
constexpr uint64_t kHeldOut = uint64_t{1} << 62;  // the label of their seed

// The loss when the `heads` first heads of the ranking stream.
struct CurvePoint {
  int64_t heads = 0;
  double loss = 0;
  std::optional<double> exact_loss;  // by LlamaRunner, token-exact windows
};

// The summed loss of a document's targets by the forward pass that serves, in one chunk.
Result<double> SummedLoss(LlamaRunner& runner, const ScoredDocument& document) {
  ASSIGN_OR_RETURN(const int32_t slot, runner.OpenSlot(document.tokens, kGreedySampling));
  RETURN_IF_ERROR(runner.Reserve(slot, std::ssize(document.tokens)));
  StepInput input;
  input.chunks.push_back(PromptChunk{.slot = slot, .tokens = document.tokens});
  std::vector<int32_t> rows;
  for (const int32_t target : document.targets) {
    rows.push_back(target - 1);
  }
  ASSIGN_OR_RETURN(const std::vector<float> logits, runner.StepLogits(input, rows));
  runner.CloseSlot(slot);
  const auto width = static_cast<size_t>(runner.limits().vocab_size);
  double sum = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    sum += NegativeLogLikelihood(std::span(logits).subspan(i * width, width),
                                 document.tokens[static_cast<size_t>(document.targets[i])]);
  }
  return sum;
}

class Calibrator {
 public:
  Calibrator(LoadedModel model, const CalibrationOptions& options, const EvalProgress& progress)
      : model_(std::move(model)),
        options_(options),
        progress_(progress),
        layers_(static_cast<int32_t>(model_.config.num_layers)),
        kv_heads_(static_cast<int32_t>(model_.config.num_kv_heads)) {}

  Result<Calibration> Run(PartialResults& partial) {
    RETURN_IF_ERROR(MakeAblation());
    ASSIGN_OR_RETURN(DocumentLosses ranking_losses, Documents("ranking", options_.seed, partial));
    ASSIGN_OR_RETURN(DocumentLosses held_out_losses,
                     Documents("held out", DeriveSeed(options_.seed, kHeldOut), partial));
    ASSIGN_OR_RETURN(const HeadRanking ranking, Rank(ranking_losses));
    ASSIGN_OR_RETURN(std::vector<CurvePoint> curve, Curve(ranking, held_out_losses));
    Calibration result;
    result.gates = GatesFromRanking(ranking, layers_, kv_heads_);
    RETURN_IF_ERROR(AddExactLosses(result.gates, held_out_losses, &curve));
    result.largest_share = Share(LargestWithinBound(curve)->heads);
    result.report = Report(ranking, ranking_losses, held_out_losses, curve, result);
    return result;
  }

 private:
  int64_t heads() const { return int64_t{layers_} * kv_heads_; }
  double Share(int64_t streaming) const {
    return static_cast<double>(streaming) / static_cast<double>(heads());
  }
  Result<DocumentLosses> Documents(const std::string& name, uint64_t seed, PartialResults& partial);
  Status MakeAblation();
  Result<HeadRanking> Rank(DocumentLosses& losses);
  Result<std::vector<CurvePoint>> Curve(const HeadRanking& ranking, DocumentLosses& losses);
  std::vector<CurvePoint>::const_iterator LargestWithinBound(
      const std::vector<CurvePoint>& curve) const;
  Status AddExactLosses(const HeadGates& gates, const DocumentLosses& losses,
                        std::vector<CurvePoint>* curve);
  Result<double> ExactLoss(const HeadPlan& plan, const DocumentLosses& losses) const;
  OrderedJson Report(const HeadRanking& ranking, const DocumentLosses& ranking_losses,
                     const DocumentLosses& held_out_losses, const std::vector<CurvePoint>& curve,
                     const Calibration& result) const;

  LoadedModel model_;
  const CalibrationOptions options_;
  const EvalProgress& progress_;
  const int32_t layers_;
  const int32_t kv_heads_;
  std::unique_ptr<HeadAblation> ablation_;
  double dense_loss_ = 0;  // of the ranking documents
};

Result<DocumentLosses> Calibrator::Documents(const std::string& name, uint64_t seed,
                                             PartialResults& partial) {
  progress_(0, name + " documents");
  std::vector<ScoredDocument> documents;
  for (int64_t i = 0; i < options_.samples; ++i) {
    ASSIGN_OR_RETURN(ScoredDocument document,
                     MakeCalibrationDocument(model_, options_.length, seed, i));
    documents.push_back(std::move(document));
  }
  return DocumentLosses::Make(name, documents, *ablation_,
                              HeadSet(static_cast<size_t>(heads()), false), partial);
}

Status Calibrator::MakeAblation() {
  const AblationOptions options{.max_tokens = options_.length,
                                .max_variants = static_cast<int32_t>(std::clamp<int64_t>(
                                    kRowsSideBySide / options_.length, 1, heads())),
                                .sink_tokens = static_cast<int32_t>(model_.settings.sink_tokens),
                                .local_tokens = static_cast<int32_t>(model_.settings.local_tokens)};
  ASSIGN_OR_RETURN(ablation_, HeadAblation::Make(*model_.backend, model_.weights, options));
  return OkStatus();
}

Result<HeadRanking> Calibrator::Rank(DocumentLosses& losses) {
  const auto measure = [&](const HeadSet& base,
                           std::span<const HeadSet> variants) -> Result<std::vector<double>> {
    const auto ranked = static_cast<double>(std::count(base.begin(), base.end(), true));
    const auto round = static_cast<double>(variants.size()) / 2;  // about half of them are ranked
    ASSIGN_OR_RETURN(
        std::vector<double> means, losses.Mean(*ablation_, base, variants, [&](double done) {
          progress_(kRankingShare * (ranked + round * done) / static_cast<double>(heads()),
                    fmt::format("ranking heads: {:.0f} of {} stream", ranked, heads()));
        }));
    if (ranked == 0) {
      dense_loss_ = means[0];
    }
    return means;
  };
  return RankHeads(static_cast<int32_t>(heads()), kJointTolerance, measure);
}

Result<std::vector<CurvePoint>> Calibrator::Curve(const HeadRanking& ranking,
                                                  DocumentLosses& losses) {
  const int64_t steps = std::min(heads(), kMaxCurveSteps);
  std::vector<CurvePoint> curve;
  std::vector<HeadSet> sets;
  for (int64_t step = 0; step <= steps; ++step) {
    const int64_t streaming = (2 * step * heads() + steps) / (2 * steps);  // rounded
    HeadSet streams(static_cast<size_t>(heads()), false);
    for (int64_t k = 0; k < streaming; ++k) {
      streams[static_cast<size_t>(ranking.order[static_cast<size_t>(k)])] = true;
    }
    curve.emplace_back().heads = streaming;
    sets.push_back(std::move(streams));
  }
  ASSIGN_OR_RETURN(const std::vector<double> means,
                   losses.Mean(*ablation_, sets[0], std::span(sets).subspan(1), [&](double done) {
                     progress_(kRankingShare + kCurveShare * done,
                               "held-out documents at every share");
                   }));
  for (size_t i = 0; i < curve.size(); ++i) {
    curve[i].loss = means[i];
  }
  return curve;
}

std::vector<CurvePoint>::const_iterator Calibrator::LargestWithinBound(
    const std::vector<CurvePoint>& curve) const {
  auto largest = curve.begin();
  for (auto point = curve.begin(); point != curve.end(); ++point) {
    if (point->loss - curve[0].loss <= options_.max_loss_increase) {
      largest = point;
    }
  }
  return largest;
}

// At the default share, at the largest within the bound and one step beyond it.
Status Calibrator::AddExactLosses(const HeadGates& gates, const DocumentLosses& losses,
                                  std::vector<CurvePoint>* curve) {
  ablation_.reset();
  model_.weights.reset();
  const auto largest = static_cast<size_t>(LargestWithinBound(*curve) - curve->begin());
  std::set<size_t> points = {curve->size() / 2, largest, std::min(largest + 1, curve->size() - 1)};
  double done = 0;
  for (const size_t i : points) {
    CurvePoint& point = (*curve)[i];
    progress_(kRankingShare + kCurveShare +
                  (1 - kRankingShare - kCurveShare) * done / static_cast<double>(points.size()),
              fmt::format("token-exact streaming of {} heads", point.heads));
    ASSIGN_OR_RETURN(point.exact_loss,
                     ExactLoss(HeadPlan::FromGates(gates, Share(point.heads)), losses));
    ++done;
  }
  return OkStatus();
}

Result<double> Calibrator::ExactLoss(const HeadPlan& plan, const DocumentLosses& losses) const {
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelWeights> weights,
                   ModelWeights::Load(model_.path, model_.config, plan, model_.ActivationsDType(),
                                      *model_.backend, nullptr));
  ASSIGN_OR_RETURN(AttentionMode mode, model_.Mode("lserve"));
  mode.plan = plan;
  RunnerOptions options;
  options.max_model_len = options_.length;
  options.max_num_seqs = 1;
  options.max_batched_tokens =
      static_cast<int32_t>(std::max<int64_t>(options_.length, kQueryBlockTokens));
  for (const ScoredDocument& document : losses.documents()) {
    options.max_logit_rows =
        std::max(options.max_logit_rows, static_cast<int32_t>(document.targets.size()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<LlamaRunner> runner,
                   LlamaRunner::Make(*model_.backend, weights, mode, options));
  double sum = 0;
  for (const ScoredDocument& document : losses.documents()) {
    ASSIGN_OR_RETURN(const double loss, SummedLoss(*runner, document));
    sum += loss;
  }
  return sum / static_cast<double>(losses.targets());
}

OrderedJson Calibrator::Report(const HeadRanking& ranking, const DocumentLosses& ranking_losses,
                               const DocumentLosses& held_out_losses,
                               const std::vector<CurvePoint>& curve,
                               const Calibration& result) const {
  OrderedJson report;
  report["model"] = model_.name;
  report["settings"] = model_.settings.ToJson();
  report["calibration"] = options_.ToJson();
  report["commit"] = BuildCommit();
  report["device"] = {{"backend", model_.backend->name()},
                      {"name", model_.backend->facts().name},
                      {"instructions", model_.backend->facts().instructions}};
  report["ranking"] = ranking_losses.Counts();
  report["held_out"] = held_out_losses.Counts();
  report["dense_loss"] = {{"ranking", dense_loss_}, {"held_out", curve[0].loss}};
  report["largest_share"] = result.largest_share;
  for (const CurvePoint& point : curve) {
    OrderedJson row = {{"share", Share(point.heads)},
                       {"streaming_heads", point.heads},
                       {"loss", point.loss},
                       {"rise", point.loss - curve[0].loss}};
    if (point.exact_loss.has_value()) {
      row["exact_loss"] = *point.exact_loss;
      row["exact_rise"] = *point.exact_loss - curve[0].loss;
    }
    report["curve"].push_back(std::move(row));
  }
  for (size_t k = ranking.order.size(); k-- > 0;) {
    const auto number = static_cast<size_t>(ranking.order[k]);
    const size_t layer = number / static_cast<size_t>(kv_heads_);
    const size_t head = number % static_cast<size_t>(kv_heads_);
    report["heads"].push_back({{"layer", layer},
                               {"head", head},
                               {"gate", result.gates[layer][head]},
                               {"rise", ranking.rises[k]},
                               {"rise_alone", ranking.alone[number]}});
  }
  return report;
}

}  // namespace

OrderedJson CalibrationOptions::ToJson() const {
  return {{"samples", samples},
          {"length", length},
          {"seed", seed},
          {"max_loss_increase", max_loss_increase},
          {"joint_tolerance", kJointTolerance}};
}

Status Validate(const CalibrationOptions& options, const ModelConfig& config) {
  if (options.samples < 1 || options.samples > kMaxSamples) {
    return InvalidArgument("--samples {} is outside 1 to {}", options.samples, kMaxSamples);
  }
  const int64_t longest = std::min(config.context_length, kMaxLength);
  if (options.length < kLeastCalibrationTokens || options.length > longest) {
    return InvalidArgument("--length {} is outside {} to {}", options.length,
                           kLeastCalibrationTokens, longest);
  }
  if (!std::isfinite(options.max_loss_increase) || options.max_loss_increase < 0) {
    return InvalidArgument("--max-loss-increase {} is not a number of nats from 0",
                           options.max_loss_increase);
  }
  return OkStatus();
}

Result<Calibration> Calibrate(LoadedModel model, const CalibrationOptions& options,
                              PartialResults& partial, const EvalProgress& progress) {
  RETURN_IF_ERROR(Validate(options, model.config));
  return Calibrator(std::move(model), options, progress).Run(partial);
}

}  // namespace lserve
