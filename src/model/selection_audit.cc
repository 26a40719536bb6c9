#include "model/selection_audit.h"

#include <algorithm>
#include <cmath>

namespace lserve {

Result<std::unique_ptr<SelectionAudit>> SelectionAudit::Make(
    Backend& backend, std::span<const int32_t> retrieval_heads, const BatchView& batch, DType dtype,
    int32_t q_heads, int32_t group, int32_t head_dim) {
  std::unique_ptr<SelectionAudit> audit(new SelectionAudit(backend, dtype, q_heads, head_dim));
  const int64_t rows = int64_t{batch.max_decode_rows} + kRowSlack;
  for (size_t layer = 0; layer < retrieval_heads.size(); ++layer) {
    if (retrieval_heads[layer] == 0) {
      continue;
    }
    Place place;
    place.layer = layer;
    place.retrieval_q_heads = retrieval_heads[layer] * group;
    for (Buffer* outputs : {&place.selected, &place.all}) {
      ASSIGN_OR_RETURN(*outputs, backend.Allocate(rows * q_heads * head_dim * DTypeBytes(dtype)));
    }
    for (Buffer* log_sums : {&place.selected_log_sums, &place.all_log_sums}) {
      ASSIGN_OR_RETURN(*log_sums, backend.Allocate(rows * q_heads * 4));
    }
    audit->places_.push_back(std::move(place));
    audit->figures_.push_back(LayerAudit{.layer = static_cast<int32_t>(layer)});
  }
  return audit;
}

const SelectionAudit::Place* SelectionAudit::Find(size_t layer) const {
  const auto found = std::find_if(places_.begin(), places_.end(),
                                  [=](const Place& place) { return place.layer == layer; });
  return found == places_.end() ? nullptr : &*found;
}

Status SelectionAudit::Record(Stream& stream, std::span<const int32_t> rows) {
  if (rows.empty()) {
    return OkStatus();
  }
  const int64_t heads = int64_t{*std::max_element(rows.begin(), rows.end()) + 1} * q_heads_;
  const int64_t bytes = heads * head_dim_ * DTypeBytes(dtype_);
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    std::vector<std::byte> selected(static_cast<size_t>(bytes)), all(static_cast<size_t>(bytes));
    std::vector<float> selected_log_sums(static_cast<size_t>(heads));
    std::vector<float> all_log_sums(static_cast<size_t>(heads));
    backend_.CopyToHost(selected.data(), place.selected.data(), bytes, stream);
    backend_.CopyToHost(all.data(), place.all.data(), bytes, stream);
    backend_.CopyToHost(selected_log_sums.data(), place.selected_log_sums.data(), heads * 4,
                        stream);
    backend_.CopyToHost(all_log_sums.data(), place.all_log_sums.data(), heads * 4, stream);
    RETURN_IF_ERROR(stream.Synchronize());
    const auto element = [&](const std::vector<std::byte>& outputs, int64_t index) {
      return dtype_ == DType::kFloat32
                 ? double{reinterpret_cast<const float*>(outputs.data())[index]}
                 : double{ToFloat(reinterpret_cast<const BFloat16*>(outputs.data())[index])};
    };
    LayerAudit& figure = figures_[i];
    for (const int32_t row : rows) {
      const int64_t first = int64_t{row} * q_heads_;
      double captured = 0.0;
      for (int64_t head = first; head < first + place.retrieval_q_heads; ++head) {
        const auto at = static_cast<size_t>(head);
        captured += std::min(1.0, std::exp(double{selected_log_sums[at]} - all_log_sums[at]));
      }
      captured /= place.retrieval_q_heads;
      double difference = 0.0;
      double length = 0.0;
      for (int64_t e = first * head_dim_; e < (first + place.retrieval_q_heads) * head_dim_; ++e) {
        const double dense = element(all, e);
        difference += (element(selected, e) - dense) * (element(selected, e) - dense);
        length += dense * dense;
      }
      const double error = length > 0.0 ? std::sqrt(difference / length) : 0.0;
      ++figure.rows;
      figure.captured_sum += captured;
      figure.captured_least = std::min(figure.captured_least, captured);
      figure.error_sum += error;
      figure.error_most = std::max(figure.error_most, error);
    }
  }
  return OkStatus();
}

}  // namespace lserve
