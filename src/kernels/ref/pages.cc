// Moving pages.
#include <cstring>
#include <type_traits>

#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"
#include "kernels/sketch.h"

namespace lserve::ref {
namespace {

template <typename Function>
void WithFormat(KvFormat format, Function function) {
  WithActivations(format == KvFormat::kFloat32 ? DType::kFloat32 : DType::kBFloat16, function);
}

// A value that was exported, so float16 holds it exactly.
template <typename Stored>
Stored FromCanonical(float x) {
  if constexpr (std::is_same_v<Stored, Float16>) {
    return RoundDownToFloat16(x);
  } else {
    return FromFloat<Stored>(x);
  }
}

// Calls move(canonical, stored) for every vector of the page; stored has padding beyond.
template <typename T, typename Move>
void ForVectors(const TransferPageParams& params, Move move) {
  const Page<T> page(params.page, params.layout);
  const int64_t dim = params.layout.head_dim;
  const PageScore score = params.layout.score;
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      const int64_t index = (int64_t{head} * kPageTokens + token) * dim;
      move(params.keys + index, page.Key(head, token));
      move(params.values + index, page.Value(head, token));
    }
    float* stats = params.stats + int64_t{head} * StatsRows(score) * dim;
    for (int32_t logical = 0;
         score == PageScore::kMinMax && logical < kPageTokens / kLogicalPageTokens; ++logical) {
      move(stats + int64_t{logical} * 2 * dim, page.Minimum(head, logical));
      move(stats + (int64_t{logical} * 2 + 1) * dim, page.Maximum(head, logical));
    }
    for (int32_t side = 0; score == PageScore::kSketch && side < 2; ++side) {
      move(stats + side * dim, page.Box(head) + int64_t{side} * params.layout.padded_head_dim);
    }
  }
}

// Calls move(canonical, head, token, dim) for every code of a page with a sketch; beyond head_dim
// canonical is null.
template <typename Move>
void ForCodes(const TransferPageParams& params, Move move) {
  if (params.layout.score != PageScore::kSketch) {
    return;
  }
  const int32_t dim = params.layout.head_dim;
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      float* canonical =
          params.stats + (int64_t{head} * StatsRows(PageScore::kSketch) + 2 + token) * dim;
      for (int32_t d = 0; d < params.layout.padded_head_dim; ++d) {
        move(d < dim ? canonical + d : nullptr, head, token, d);
      }
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
    ForVectors<T>(params, [&](float* canonical, const auto* stored) {
      for (int32_t d = 0; d < params.layout.head_dim; ++d) {
        canonical[d] = ToFloat(stored[d]);
      }
    });
    const Page<T> page(params.page, params.layout);
    ForCodes(params, [&](float* canonical, int32_t head, int32_t token, int32_t d) {
      if (canonical != nullptr) {
        *canonical = static_cast<float>(page.Code(head, token, d));
      }
    });
  });
}

void RunImportPage(const TransferPageParams& params) {
  WithFormat(params.layout.format, [&]<typename T>() {
    ForVectors<T>(params, [&]<typename Stored>(const float* canonical, Stored* stored) {
      for (int32_t d = 0; d < params.layout.padded_head_dim; ++d) {
        stored[d] = d < params.layout.head_dim ? FromCanonical<Stored>(canonical[d]) : Stored{};
      }
    });
    const Page<T> page(params.page, params.layout);
    ForCodes(params, [&](const float* canonical, int32_t head, int32_t token, int32_t d) {
      page.SetCode(head, token, d, canonical == nullptr ? 0 : static_cast<int32_t>(*canonical));
    });
  });
}

}  // namespace lserve::ref
