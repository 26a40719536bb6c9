// CopyPages, ExportPage and ImportPage. Copies move 16 bytes a thread; transfers go element by
// element, since they serve tests, snapshots and tools.
#include "kernels/cuda/close_page.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/page_layout.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kCopyBlocks = 32;  // that share a page

__global__ void __launch_bounds__(kThreads)
    CopyPagesKernel(const __grid_constant__ CopyPagesParams params) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (auto i = static_cast<int32_t>(blockIdx.y); i < params.count;
       i += static_cast<int32_t>(gridDim.y)) {
    const std::byte* from = params.source + params.from[i] * params.page_bytes;
    std::byte* to = params.destination + params.to[i] * params.page_bytes;
    for (int64_t at = first; at < params.page_bytes / 16; at += step) {
      reinterpret_cast<uint4*>(to)[at] = reinterpret_cast<const uint4*>(from)[at];
    }
  }
}

// An element of a head of a page, in canonical order.
struct Element {
  __device__ Element(const KvPageLayout& layout, int64_t index, int32_t rows)
      : dim(static_cast<int32_t>(index % layout.padded_head_dim)),
        row(static_cast<int32_t>(index / layout.padded_head_dim % rows)),
        head(static_cast<int32_t>(index / layout.padded_head_dim / rows)),
        real(dim < layout.head_dim),
        canonical((int64_t{head} * rows + row) * layout.head_dim + dim) {}
  int32_t dim;  // padding included
  int32_t row;
  int32_t head;
  bool real;          // no padding
  int64_t canonical;  // index among rows of head_dim elements
};

// Calls visit(element) for the elements of `rows` rows of every head.
template <typename Visit>
__device__ void ForElements(const KvPageLayout& layout, int32_t rows, Visit visit) {
  const int64_t count = int64_t{layout.heads} * rows * layout.padded_head_dim;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    visit(Element(layout, i, rows));
  }
}

// A page and where its parts lie.
class PageParts {
 public:
  __device__ PageParts(std::byte* page, const KvPageLayout& layout)
      : page_(page), layout_(layout) {}

  __device__ uint16_t& Key(const Element& at) const {
    return At<uint16_t>(layout_.key_offset(at.head))[ElementIndex(at.row, at.dim, padded())];
  }
  __device__ uint16_t& Value(const Element& at) const {
    return At<uint16_t>(layout_.value_offset(at.head))[ElementIndex(at.row, at.dim, padded())];
  }
  // at.row: 2 logical page + side.
  __device__ uint16_t& MinMax(const Element& at) const {
    return At<uint16_t>(layout_.stats_offset(at.head))[StatsIndex(at.row / 2, at.dim, at.row % 2)];
  }
  __device__ Float16& Box(int32_t head, int32_t dim, int32_t side) const {
    return At<Float16>(layout_.box_offset(head))[side * padded() + dim];
  }
  __device__ ValueGrid& Grid(const Element& at) const {
    return At<ValueGrid>(layout_.value_offset(at.head))[at.row];
  }
  __device__ float Lo(const Element& at) const { return ToFloat(Box(at.head, at.dim, 0)); }
  __device__ float Step(const Element& at) const {
    return KeyStep(Lo(at), ToFloat(Box(at.head, at.dim, 1)), layout_.key_bits());
  }

  __device__ int32_t KeyPlaneCode(const Element& at, int32_t plane) const {
    const CodePlace place = KeyCodePlace(at.row, at.dim, padded());
    return static_cast<int32_t>(
        At<uint32_t>(layout_.codes_offset(at.head, plane))[place.word] >> place.shift & 3u);
  }
  __device__ int32_t KeyCodeOf(const Element& at) const {
    int32_t code = 0;
    for (int32_t plane = 0; plane < layout_.key_bits() / 2; ++plane) {
      code = code << 2 | KeyPlaneCode(at, plane);
    }
    return code;
  }
  __device__ int32_t ValueCodeOf(const Element& at) const {
    const CodePlace place = ValueCodePlace(at.row, at.dim, padded(), layout_.value_bits());
    const auto* words = At<uint32_t>(layout_.value_codes_offset(at.head)) + place.word;
    uint32_t code = words[0] >> place.shift & 15u;
    if (layout_.value_bits() == 8) {
      code |= (words[1] >> place.shift & 15u) << 4;
    }
    return static_cast<int32_t>(code);
  }

  // Codes share words with others', which other threads set.
  __device__ void SetKeyCode(const Element& at, int32_t code) const {
    const CodePlace place = KeyCodePlace(at.row, at.dim, padded());
    for (int32_t plane = 0; plane < layout_.key_bits() / 2; ++plane) {
      const int32_t two = code >> (layout_.key_bits() - 2 * (plane + 1)) & 3;
      atomicOr(At<uint32_t>(layout_.codes_offset(at.head, plane)) + place.word,
               static_cast<uint32_t>(two) << place.shift);
    }
  }
  __device__ void SetValueCode(const Element& at, int32_t code) const {
    const CodePlace place = ValueCodePlace(at.row, at.dim, padded(), layout_.value_bits());
    auto* words = At<uint32_t>(layout_.value_codes_offset(at.head)) + place.word;
    atomicOr(words, static_cast<uint32_t>(code & 15) << place.shift);
    if (layout_.value_bits() == 8) {
      atomicOr(words + 1, static_cast<uint32_t>(code >> 4) << place.shift);
    }
  }

 private:
  __device__ int32_t padded() const { return layout_.padded_head_dim; }
  template <typename T>
  __device__ T* At(int64_t offset) const {
    return reinterpret_cast<T*>(page_ + offset);
  }

  std::byte* page_;
  const KvPageLayout& layout_;
};

__global__ void __launch_bounds__(kThreads)
    ExportPageKernel(const __grid_constant__ TransferPageParams params) {
  const KvPageLayout& layout = params.layout;
  const PageParts page(params.page, layout);
  ForElements(layout, kPageTokens, [&](const Element& at) {
    if (!at.real) {
      return;
    }
    if (layout.boxed()) {
      // Multiplied and added apart, as other backends do.
      const float cell = __fmul_rn(static_cast<float>(page.KeyCodeOf(at)) + 0.5f, page.Step(at));
      params.keys[at.canonical] = __fadd_rn(page.Lo(at), cell);
      const ValueGrid grid = page.Grid(at);
      params.values[at.canonical] =
          __fadd_rn(ToFloat(grid.zero),
                    __fmul_rn(static_cast<float>(page.ValueCodeOf(at)), ToFloat(grid.scale)));
      if (at.dim == 0) {
        float* to = params.grids + (int64_t{at.head} * kPageTokens + at.row) * 2;
        to[0] = ToFloat(grid.zero);
        to[1] = ToFloat(grid.scale);
      }
    } else {
      params.keys[at.canonical] = Bf16(page.Key(at));
      params.values[at.canonical] = Bf16(page.Value(at));
    }
  });
  if (layout.boxed()) {
    ForElements(layout, 2, [&](const Element& at) {
      if (at.real) {
        params.boxes[at.canonical] = ToFloat(page.Box(at.head, at.dim, at.row));
      }
    });
  }
  if (layout.score == PageScore::kMinMax) {
    ForElements(layout, StatsRows(PageScore::kMinMax), [&](const Element& at) {
      if (at.real) {
        params.stats[at.canonical] = Bf16(page.MinMax(at));
      }
    });
  }
  if (layout.score == PageScore::kSketch) {
    ForElements(layout, StatsRows(PageScore::kSketch), [&](const Element& at) {
      if (!at.real) {
        return;
      }
      Element token = at;
      token.row -= 2;
      params.stats[at.canonical] = at.row < 2 ? ToFloat(page.Box(at.head, at.dim, at.row))
                                              : static_cast<float>(page.KeyPlaneCode(token, 0));
    });
  }
}

// Everything but codes, whose words start from zero: a page that was exported holds in float16 what
// it says.
__global__ void __launch_bounds__(kThreads)
    ImportPageKernel(const __grid_constant__ TransferPageParams params) {
  const KvPageLayout& layout = params.layout;
  const PageParts page(params.page, layout);
  ForElements(layout, kPageTokens, [&](const Element& at) {
    if (!layout.boxed()) {
      page.Key(at) = at.real ? ToBFloat16(params.keys[at.canonical]).bits : uint16_t{0};
      page.Value(at) = at.real ? ToBFloat16(params.values[at.canonical]).bits : uint16_t{0};
    } else if (at.dim == 0) {
      const float* from = params.grids + (int64_t{at.head} * kPageTokens + at.row) * 2;
      page.Grid(at) = {RoundDownToFloat16(from[0]), RoundUpToFloat16(from[1])};
    }
  });
  const bool sketch = layout.score == PageScore::kSketch;
  if (layout.boxed() || sketch) {
    const float* from = layout.boxed() ? params.boxes : params.stats;
    const int64_t head_rows = layout.boxed() ? 2 : StatsRows(PageScore::kSketch);
    ForElements(layout, 2, [&](const Element& at) {
      const int64_t canonical = (at.head * head_rows + at.row) * layout.head_dim + at.dim;
      page.Box(at.head, at.dim, at.row) =
          at.real ? RoundDownToFloat16(from[canonical]) : Float16{0};
    });
  }
  if (layout.score == PageScore::kMinMax) {
    ForElements(layout, StatsRows(PageScore::kMinMax), [&](const Element& at) {
      page.MinMax(at) = at.real ? ToBFloat16(params.stats[at.canonical]).bits : uint16_t{0};
    });
  }
}

// Zeroes the words of codes. Beside the kernel above, which writes none of them.
__global__ void __launch_bounds__(kThreads)
    ClearCodesKernel(const __grid_constant__ TransferPageParams params) {
  const KvPageLayout& layout = params.layout;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const auto clear = [&](int64_t offset, int64_t bytes) {
    for (int64_t i = thread; i < bytes / 4; i += threads) {
      reinterpret_cast<uint32_t*>(params.page + offset)[i] = 0;
    }
  };
  for (int32_t head = 0; head < layout.heads; ++head) {
    for (int32_t plane = 0; plane < layout.key_bits() / 2; ++plane) {
      clear(layout.codes_offset(head, plane), layout.code_plane_bytes());
    }
    if (layout.boxed()) {
      clear(layout.value_codes_offset(head), layout.value_bytes() - layout.grid_bytes());
    }
  }
}

// The codes; boxes and grids stand in the page.
__global__ void __launch_bounds__(kThreads)
    ImportCodesKernel(const __grid_constant__ TransferPageParams params) {
  const KvPageLayout& layout = params.layout;
  const PageParts page(params.page, layout);
  ForElements(layout, kPageTokens, [&](const Element& at) {
    if (!layout.boxed()) {
      const int64_t canonical =
          (int64_t{at.head} * StatsRows(PageScore::kSketch) + 2 + at.row) * layout.head_dim +
          at.dim;
      page.SetKeyCode(at, at.real ? static_cast<int32_t>(params.stats[canonical]) : 0);
      return;
    }
    const float key = at.real ? params.keys[at.canonical] : 0.0f;
    const float value = at.real ? params.values[at.canonical] : 0.0f;
    page.SetKeyCode(at, KeyCode(key, page.Lo(at), page.Step(at), layout.key_bits()));
    page.SetValueCode(at, ValueCode(value, page.Grid(at), layout.value_bits()));
  });
}

dim3 TransferGrid(const KvPageLayout& layout) {
  const int64_t elements = int64_t{layout.heads} * kPageTokens * layout.padded_head_dim;
  return dim3(
      static_cast<unsigned>(std::clamp<int64_t>((elements + kThreads - 1) / kThreads, 1, 1024)));
}

}  // namespace

void CopyPages(const CopyPagesParams& params, cudaStream_t stream) {
  if (params.count == 0 || params.page_bytes == 0) {
    return;
  }
  CHECK_EQ(params.page_bytes % 16, 0);
  Launch("copy_pages", CopyPagesKernel,
         dim3(kCopyBlocks, static_cast<unsigned>(std::min(params.count, 65535))), kThreads, 0,
         stream, params);
}

void ExportPage(const TransferPageParams& params, cudaStream_t stream) {
  Launch("export_page", ExportPageKernel, TransferGrid(params.layout), kThreads, 0, stream, params);
}

void ImportPage(const TransferPageParams& params, cudaStream_t stream) {
  const dim3 grid = TransferGrid(params.layout);
  Launch("import_page", ImportPageKernel, grid, kThreads, 0, stream, params);
  if (params.layout.sketch_bytes() > 0) {
    Launch("import_page", ClearCodesKernel, grid, kThreads, 0, stream, params);
    Launch("import_page", ImportCodesKernel, grid, kThreads, 0, stream, params);
  }
}

}  // namespace lserve::cuda
