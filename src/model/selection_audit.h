// SelectionAudit: how much of dense attention a decode step's selection keeps. In an audited step
// the attention of every layer with retrieval heads runs twice more, over the selected units and
// over everything, into buffers of its own; the step's answer does not change. Owns device memory;
// used by the runner's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "model/runner.h"

namespace lserve {

class SelectionAudit {
 public:
  // retrieval_heads: KV heads that retrieve, by layer. Errors: kResourceExhausted.
  static Result<std::unique_ptr<SelectionAudit>> Make(Backend& backend,
                                                      std::span<const int32_t> retrieval_heads,
                                                      const BatchView& batch, DType dtype,
                                                      int32_t q_heads, int32_t group,
                                                      int32_t head_dim);

  // Visits the two attentions of a layer whose own attention runs with `params`.
  template <typename Op, typename Visitor>
  void Visit(size_t layer, const Op& op, AttendDecodeParams params, Visitor&& visit) const {
    if (const Place* place = Find(layer)) {
      params.output = place->selected.data();
      params.log_sums = place->selected_log_sums.template As<float>();
      visit(op, params);
      params.lists = UnitLists{};
      params.output = place->all.data();
      params.log_sums = place->all_log_sums.template As<float>();
      visit(op, params);
    }
  }

  // After an audited step: adds the given decode rows to the layers' figures.
  Status Record(Stream& stream, std::span<const int32_t> rows);

  const std::vector<LayerAudit>& layers() const { return figures_; }

 private:
  struct Place {
    size_t layer = 0;
    int32_t retrieval_q_heads = 0;
    Buffer selected, all;                    // [max_rows + slack, q_heads, head_dim] of dtype
    Buffer selected_log_sums, all_log_sums;  // [max_rows + slack, q_heads]
  };

  SelectionAudit(Backend& backend, DType dtype, int32_t q_heads, int32_t head_dim)
      : backend_(backend), dtype_(dtype), q_heads_(q_heads), head_dim_(head_dim) {}
  const Place* Find(size_t layer) const;

  Backend& backend_;
  const DType dtype_;
  const int32_t q_heads_;
  const int32_t head_dim_;
  std::vector<Place> places_;
  std::vector<LayerAudit> figures_;
};

}  // namespace lserve
