#include "eval/document_losses.h"

#include <numeric>
#include <utility>

namespace lserve {
namespace {

// "3 0010...": a document and the heads that stream, by number.
std::string Id(size_t document, const HeadSet& streams) {
  std::string id = fmt::format("{} ", document);
  for (const bool streaming : streams) {
    id += streaming ? '1' : '0';
  }
  return id;
}

}  // namespace

Result<DocumentLosses> DocumentLosses::Make(std::string name,
                                            const std::vector<ScoredDocument>& documents,
                                            HeadAblation& ablation, const HeadSet& none,
                                            PartialResults& partial) {
  DocumentLosses made(std::move(name), partial);
  for (ScoredDocument document : documents) {
    ASSIGN_OR_RETURN(const auto losses, ablation.Losses(document, none, {}));
    const AnswerCount count = KeepGivenAnswers(losses[0], &document);
    made.answers_.asked += count.asked;
    made.answers_.given += count.given;
    made.targets_ += std::ssize(document.targets);
    if (count.given > 0) {
      made.documents_.push_back(std::move(document));
    }
  }
  if (made.documents_.empty()) {
    return FailedPrecondition(
        "the model gives none of {} answers with dense attention, so nothing tells what its heads "
        "are worth",
        made.answers_.asked);
  }
  return made;
}

OrderedJson DocumentLosses::Counts() const {
  return {{"answers", answers_.asked}, {"given", answers_.given}, {"tokens", targets_}};
}

Result<std::vector<double>> DocumentLosses::Mean(HeadAblation& ablation, const HeadSet& base,
                                                 std::span<const HeadSet> variants,
                                                 const std::function<void(double)>& measured) {
  std::vector<double> means(variants.size() + 1, 0.0);
  for (size_t d = 0; d < documents_.size(); ++d) {
    RETURN_IF_ERROR(Measure(d, ablation, base, variants));
    means[0] += Known(d, base).value();
    for (size_t i = 0; i < variants.size(); ++i) {
      means[i + 1] += Known(d, variants[i]).value();
    }
    measured(static_cast<double>(d + 1) / static_cast<double>(documents_.size()));
  }
  for (double& mean : means) {
    mean /= static_cast<double>(targets_);
  }
  return means;
}

std::optional<double> DocumentLosses::Known(size_t document, const HeadSet& streams) const {
  const Json* loss = partial_->Find(name_, Id(document, streams));
  return loss != nullptr && loss->is_number() ? std::optional(loss->get<double>()) : std::nullopt;
}

Status DocumentLosses::Measure(size_t document, HeadAblation& ablation, const HeadSet& base,
                               std::span<const HeadSet> variants) {
  std::vector<HeadSet> missing;
  for (const HeadSet& variant : variants) {
    if (!Known(document, variant).has_value()) {
      missing.push_back(variant);
    }
  }
  if (missing.empty() && Known(document, base).has_value()) {
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const auto losses, ablation.Losses(documents_[document], base, missing));
  for (size_t i = 0; i < losses.size(); ++i) {
    const HeadSet& streams = i == 0 ? base : missing[i - 1];
    if (!Known(document, streams).has_value()) {
      partial_->Write(name_, Id(document, streams),
                      std::accumulate(losses[i].begin(), losses[i].end(), 0.0));
    }
  }
  return OkStatus();
}

}  // namespace lserve
