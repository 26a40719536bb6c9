// DocumentLosses: some documents and what their answers lose under sets of streaming heads, each
// measured once and kept in a file of partial results. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "eval/calibration_documents.h"
#include "eval/partial_results.h"
#include "model/head_ablation.h"
#include "sparse/head_plan.h"

namespace lserve {

class DocumentLosses {
 public:
  // Keeps of the documents the answers that the model gives when no head streams, `none`. `name`
  // tells their losses from those of other documents in `partial`, which outlives this.
  // Errors: kFailedPrecondition (no answer is left), those of HeadAblation::Losses.
  static Result<DocumentLosses> Make(std::string name, const std::vector<ScoredDocument>& documents,
                                     HeadAblation& ablation, const HeadSet& none,
                                     PartialResults& partial);

  const std::vector<ScoredDocument>& documents() const { return documents_; }
  // Tokens of all answers that were kept.
  int64_t targets() const { return targets_; }
  // Answers, those given and their tokens, for a report.
  OrderedJson Counts() const;

  // Mean losses in nats an answer token, of the base and of each variant. `measured` hears of the
  // share of the documents that is done. Errors: those of HeadAblation::Losses.
  Result<std::vector<double>> Mean(HeadAblation& ablation, const HeadSet& base,
                                   std::span<const HeadSet> variants,
                                   const std::function<void(double)>& measured);

 private:
  DocumentLosses(std::string name, PartialResults& partial)
      : name_(std::move(name)), partial_(&partial) {}

  // A document's summed loss, if it was measured.
  std::optional<double> Known(size_t document, const HeadSet& streams) const;
  // Measures what is not known of a document.
  Status Measure(size_t document, HeadAblation& ablation, const HeadSet& base,
                 std::span<const HeadSet> variants);

  std::string name_;
  PartialResults* partial_;
  std::vector<ScoredDocument> documents_;
  AnswerCount answers_;
  int64_t targets_ = 0;
};

}  // namespace lserve
