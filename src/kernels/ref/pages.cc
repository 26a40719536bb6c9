// Moving pages.
#include <cstring>

#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"

namespace lserve::ref {
namespace {

template <typename Function>
void WithFormat(KvFormat format, Function function) {
  WithActivations(format == KvFormat::kFloat32 ? DType::kFloat32 : DType::kBFloat16, function);
}

// Calls move(canonical, stored, elements) for every vector of the page; stored has padding beyond.
template <typename T, typename Move>
void ForVectors(const TransferPageParams& params, Move move) {
  const Page<T> page(params.page, params.layout);
  const int64_t dim = params.layout.head_dim;
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      const int64_t index = (int64_t{head} * kPageTokens + token) * dim;
      move(params.keys + index, page.Key(head, token));
      move(params.values + index, page.Value(head, token));
    }
    if (params.layout.score == PageScore::kNone) {
      continue;
    }
    constexpr int32_t kLogicalPages = kPageTokens / kLogicalPageTokens;
    for (int32_t logical = 0; logical < kLogicalPages; ++logical) {
      const int64_t index = (int64_t{head} * kLogicalPages + logical) * 2 * dim;
      move(params.stats + index, page.Minimum(head, logical));
      move(params.stats + index + dim, page.Maximum(head, logical));
    }
  }
}

}  // namespace

void RunCopyPages(const CopyPagesParams& params) {
  for (int32_t i = 0; i < params.count; ++i) {
    std::memmove(params.destination + params.to[i] * params.page_bytes,
                 params.source + params.from[i] * params.page_bytes,
                 static_cast<size_t>(params.page_bytes));
  }
}

void RunExportPage(const TransferPageParams& params) {
  WithFormat(params.layout.format, [&]<typename T>() {
    ForVectors<T>(params, [&](float* canonical, const T* stored) {
      for (int32_t d = 0; d < params.layout.head_dim; ++d) {
        canonical[d] = ToFloat(stored[d]);
      }
    });
  });
}

void RunImportPage(const TransferPageParams& params) {
  WithFormat(params.layout.format, [&]<typename T>() {
    ForVectors<T>(params, [&](const float* canonical, T* stored) {
      for (int32_t d = 0; d < params.layout.padded_head_dim; ++d) {
        stored[d] = d < params.layout.head_dim ? FromFloat<T>(canonical[d]) : T{};
      }
    });
  });
}

}  // namespace lserve::ref
