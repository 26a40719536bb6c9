// Moving pages.
#include <cstring>
#include <type_traits>

#include "kernels/boxed.h"
#include "kernels/ref/operations.h"
#include "kernels/ref/page.h"

namespace lserve::ref {
namespace {

template <typename Function>
void WithFormat(KvFormat format, Function function) {
  WithActivations(OpenFormat(format) == KvFormat::kFloat32 ? DType::kFloat32 : DType::kBFloat16,
                  function);
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

// Calls move(canonical, stored) for every vector that the page holds as it is; stored has padding
// beyond.
template <typename T, typename Move>
void ForVectors(const TransferPageParams& params, Move move) {
  const Page<T> page(params.page, params.layout);
  const int64_t dim = params.layout.head_dim;
  const PageScore score = params.layout.score;
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; !params.layout.boxed() && token < kPageTokens; ++token) {
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
    for (int32_t side = 0; side < 2; ++side) {
      Float16* box = page.Box(head) + int64_t{side} * params.layout.padded_head_dim;
      if (params.layout.boxed()) {
        move(params.boxes + (int64_t{head} * 2 + side) * dim, box);
      } else if (score == PageScore::kSketch) {
        move(stats + side * dim, box);
      }
    }
  }
}

// Calls move(canonical, head, token, dim) for every code of a sketch that stands beside the keys;
// beyond head_dim canonical is null.
template <typename Move>
void ForSketchCodes(const TransferPageParams& params, Move move) {
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

template <typename T>
void ExportBoxed(const TransferPageParams& params, const Page<T>& page) {
  const int32_t dim = params.layout.head_dim;
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      const int64_t row = int64_t{head} * kPageTokens + token;
      params.grids[2 * row] = ToFloat(page.Grid(head, token).zero);
      params.grids[2 * row + 1] = ToFloat(page.Grid(head, token).scale);
      for (int32_t d = 0; d < dim; ++d) {
        params.keys[row * dim + d] = page.KeyElement(head, token, d);
        params.values[row * dim + d] = page.ValueElement(head, token, d);
      }
    }
    float* stats = params.stats + int64_t{head} * StatsRows(PageScore::kSketch) * dim;
    for (int32_t d = 0; params.layout.score == PageScore::kSketch && d < dim; ++d) {
      stats[d] = page.Lo(head, d);
      stats[dim + d] = page.Hi(head, d);
    }
  }
}

// The boxes stand in the page.
template <typename T>
void ImportBoxed(const TransferPageParams& params, const Page<T>& page) {
  const int32_t dim = params.layout.head_dim;
  const int32_t key_bits = params.layout.key_bits();
  for (int32_t head = 0; head < params.layout.heads; ++head) {
    for (int32_t token = 0; token < kPageTokens; ++token) {
      const int64_t row = int64_t{head} * kPageTokens + token;
      const ValueGrid grid{RoundDownToFloat16(params.grids[2 * row]),
                           RoundUpToFloat16(params.grids[2 * row + 1])};
      page.Grid(head, token) = grid;
      for (int32_t d = 0; d < params.layout.padded_head_dim; ++d) {
        const float key = d < dim ? params.keys[row * dim + d] : 0.0f;
        const float value = d < dim ? params.values[row * dim + d] : 0.0f;
        const float lo = page.Lo(head, d);
        page.SetKeyCode(head, token, d,
                        KeyCode(key, lo, KeyStep(lo, page.Hi(head, d), key_bits), key_bits));
        page.SetValueCode(head, token, d, ValueCode(value, grid, params.layout.value_bits()));
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
    ForSketchCodes(params, [&](float* canonical, int32_t head, int32_t token, int32_t d) {
      if (canonical != nullptr) {
        *canonical = static_cast<float>(page.SketchCode(head, token, d));
      }
    });
    if (params.layout.boxed()) {
      ExportBoxed(params, page);
    }
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
    if (params.layout.boxed()) {
      ImportBoxed(params, page);
      return;
    }
    ForSketchCodes(params, [&](const float* canonical, int32_t head, int32_t token, int32_t d) {
      page.SetKeyCode(head, token, d, canonical == nullptr ? 0 : static_cast<int32_t>(*canonical));
    });
  });
}

}  // namespace lserve::ref
