// output[r, :] = epilogue(weight * input[r, :]) for few rows: every weight is read once for each 32
// rows, and nothing else matters. A block takes 16 or 32 packed rows of the weight in turn; its
// warps take turns along the depth, 64 elements at a time, and add up in shared memory in the order
// of the warps. Which block computes an output, and with how many rows, does not change the sum.
//
// Bytes: the weight. Target: the bandwidth of memory, which wants some 4 MB under way on the
// largest devices. So each warp has a ring of asynchronous copies, 12 KB of its own, which runs on
// from one output to the next. The ring is filled before the wait for the input, and the next
// kernel is let in then: a multiprocessor has room for the blocks of two, so that the weights of
// one layer flow while the one before drains and what lies between them runs. The second-level
// cache is asked to keep nothing of them. With 32 rows the input, which comes from the second-level
// cache, is read half as often.
//
// A lane multiplies 16 bytes of the packed rows g and g + 8 as they lie: as the order of the depth
// within a product does not matter, its 8 elements serve as its parts of two products of depth 16;
// the input is read in the same order.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_common.cuh"
#include "kernels/cuda/loads.cuh"

namespace lserve::cuda {
namespace {

constexpr int32_t kWarps = 8;
constexpr int32_t kThreads = kWarps * kWarpThreads;
constexpr int32_t kGroupOutputs = 16;  // packed rows of the weight in a product
constexpr int32_t kTileRows = 8;       // rows of the batch in a tensor core product
constexpr int32_t kStep = 64;          // elements of the depth that a warp takes at a time
constexpr int32_t kRowBytes = kStep * 2;
constexpr int32_t kGroupBytes = kGroupOutputs * kRowBytes;
static_assert(kLinearDepthMultiple % kStep == 0 && kLinearRowMultiple % kGroupOutputs == 0);

// What an instance computes: items of kGroups groups of packed rows and kTiles tiles of batch rows.
template <int32_t kGroups_, int32_t kTiles_>
struct RowsShape {
  static constexpr int32_t kGroups = kGroups_;
  static constexpr int32_t kTiles = kTiles_;
  static constexpr int32_t kOutputs = kGroups * kGroupOutputs;
  static constexpr int32_t kRows = kTiles * kTileRows;
  // Stages of a warp's ring: two blocks fit a multiprocessor with dependent launch, which has 227
  // KB, and one fits the 99 KiB that every device has.
  static constexpr int32_t Stages(bool dependent_launch) {
    return (dependent_launch ? 6 : 4) / kGroups;
  }
  // Steps that a warp asks for its input ahead, as the registers of two blocks allow: what the
  // kernel before wrote comes from the second-level cache, which takes longer than a step.
  static constexpr int32_t kAhead = kTiles == 1 ? 4 : kGroups * kTiles == 2 ? 2 : 1;
  static constexpr int32_t kStageBytes = kGroups * kGroupBytes;
  using Partial = float[kWarps][kGroups][kTiles][4][kWarpThreads];
  static constexpr int32_t Bytes(bool dependent_launch) {
    return kWarps * Stages(dependent_launch) * kStageBytes + static_cast<int32_t>(sizeof(Partial));
  }
};

static_assert(RowsShape<2, 2>::Bytes(false) <= 99 * 1024 &&
              RowsShape<1, 4>::Bytes(false) <= 99 * 1024);

// The steps of the weight that a warp loads, in order: of each item, which is an output block and a
// tile of rows, every kWarps-th one.
template <typename Shape>
class Walk {
 public:
  // active_tiles: those that have rows.
  __device__ Walk(const LinearArguments& arguments, int32_t row_tiles, int32_t active_tiles,
                  int32_t warp, int32_t lane)
      : arguments_(arguments),
        row_tiles_(row_tiles),
        active_tiles_(active_tiles),
        items_((arguments.packed_rows + Shape::kOutputs - 1) / Shape::kOutputs * row_tiles),
        first_((lane / 8) * int64_t{arguments.padded_depth} + warp * kStep + lane % 8 * 8),
        item_(static_cast<int32_t>(blockIdx.x) - static_cast<int32_t>(gridDim.x)) {
    if (warp * kStep < arguments.padded_depth) {
      NextItem();
    } else {
      item_ = items_;
    }
  }

  __device__ bool Done() const { return item_ >= items_; }
  // The lane's 16 bytes of row lane / 8 of the step.
  const __device__ __nv_bfloat16* from() const { return from_; }
  const __device__ OnceReads& reads() const { return reads_; }

  __device__ void Advance() {
    from_ += kWarps * kStep;
    left_ -= kWarps * kStep;
    if (left_ <= 0) {
      NextItem();
    }
  }

 private:
  __device__ void NextItem() {
    do {
      item_ += static_cast<int32_t>(gridDim.x);
    } while (!Done() && item_ % row_tiles_ >= active_tiles_);
    const int64_t row = int64_t{item_ / row_tiles_} * Shape::kOutputs;
    from_ = arguments_.weight + row * arguments_.padded_depth + first_;
    left_ = arguments_.padded_depth - static_cast<int32_t>(threadIdx.x) / kWarpThreads * kStep;
  }

  OnceReads reads_;
  const LinearArguments& arguments_;
  int32_t row_tiles_;
  int32_t active_tiles_;
  int32_t items_;
  int64_t first_;  // element of an output block
  int32_t item_;
  const __nv_bfloat16* from_ = nullptr;
  int32_t left_ = 0;  // elements of the depth from the step's first on
};

// Begins the copies of the walk's next step, if there is one, and closes their group. Chunk c of
// row r, 16 bytes, lies at c ^ 4 (r % 2): the two rows that a quarter of a warp reads at once lie
// in different banks.
template <typename Shape>
__device__ __forceinline__ void Fetch(int64_t padded_depth, Walk<Shape>& walk, std::byte* stage) {
  if (!walk.Done()) {
    const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
    const int32_t row = lane / 8;
    const uint32_t to =
        walk.reads().Address(stage + row * kRowBytes + (lane % 8 ^ 4 * (row % 2)) * 16);
#pragma unroll
    for (int32_t i = 0; i < Shape::kOutputs / 4; ++i) {
      walk.reads().Copy16(to + i * 4 * kRowBytes, walk.from() + i * 4 * padded_depth);
    }
    walk.Advance();
  }
  CommitCopies();
}

// What a thread finishes of an item: outputs g and g + 8 of one row in each group; under SiLU, gate
// and up.
template <typename Shape, typename Output>
class Finisher {
 public:
  __device__ Finisher(const LinearArguments& arguments, int32_t item_outputs, int32_t first_row,
                      int32_t rows)
      : arguments_(arguments),
        tile_(static_cast<int32_t>(threadIdx.x) / (2 * kWarpThreads)),
        i_(static_cast<int32_t>(threadIdx.x) / kWarpThreads % 2),
        row_(first_row + tile_ * kTileRows + Lane() % 4 * 2 + i_),
        finishes_(tile_ < Shape::kTiles && row_ < rows),
        silu_(arguments.epilogue == Epilogue::kSiluMul) {
    static_assert(Shape::kTiles * 2 * kWarpThreads <= kThreads);
#pragma unroll
    for (int32_t group = 0; group < Shape::kGroups; ++group) {
      const int32_t first = item_outputs * Shape::kOutputs + group * kGroupOutputs;
      column_[group] = (silu_ ? first / 2 : first) + Lane() / 4;
    }
  }

  // Asks for what the sums are added to.
  __device__ void AskForAddends() {
#pragma unroll
    for (int32_t group = 0; group < Shape::kGroups; ++group) {
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t column = column_[group] + 8 * half;
        if (finishes_ && !silu_ && column < arguments_.columns) {
          addends_[group][half] = Addend<Output>(arguments_, row_, column);
        }
      }
    }
  }

  // The warps' sums, and the addends, to the outputs. After a barrier.
  __device__ void Finish(const typename Shape::Partial& partial) const {
    if (!finishes_) {
      return;
    }
#pragma unroll
    for (int32_t group = 0; group < Shape::kGroups; ++group) {
      float upper = 0.0f;
      float lower = 0.0f;
#pragma unroll
      for (int32_t w = 0; w < kWarps; ++w) {
        upper += partial[w][group][tile_][i_][Lane()];
        lower += partial[w][group][tile_][i_ + 2][Lane()];
      }
      if (silu_) {
        upper = Silu(upper) * lower;
      }
      const int32_t column = column_[group];
      if (column < arguments_.columns) {
        StoreOutput<Output>(arguments_, row_, column, upper + addends_[group][0]);
      }
      if (!silu_ && column + 8 < arguments_.columns) {
        StoreOutput<Output>(arguments_, row_, column + 8, lower + addends_[group][1]);
      }
    }
  }

 private:
  static __device__ int32_t Lane() { return static_cast<int32_t>(threadIdx.x) % kWarpThreads; }

  const LinearArguments& arguments_;
  int32_t tile_;
  int32_t i_;  // which of a lane's two rows of a product
  int32_t row_;
  bool finishes_;
  bool silu_;
  int32_t column_[Shape::kGroups];
  float addends_[Shape::kGroups][2] = {};
};

constexpr int32_t kMostNormed = 4096;

// A row of at most kMostNormed elements, a multiple of 8, normalised to `to` and filled up with
// zeros to the padded depth. The sums are those of AddRmsNorm's 512 threads (row_ops.cu), two of
// them in each thread here, so that a row's result does not depend on how many there are. Ends with
// a barrier.
__device__ void NormaliseRow(const LinearArguments& arguments, const __nv_bfloat16* row,
                             float (&partial)[2 * kWarps], __nv_bfloat16* to) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  float x[2][8] = {};
  uint4 scales[2] = {};
#pragma unroll
  for (int32_t part = 0; part < 2; ++part) {
    const int32_t first = (part * kThreads + thread) * 8;
    float squares = 0.0f;
    if (first < arguments.depth) {
      scales[part] = *reinterpret_cast<const uint4*>(arguments.norm_weight + first);
      // Past the first-level cache, which may hold what the turn before the wait found.
      Unpack8(__ldcg(reinterpret_cast<const uint4*>(row + first)), x[part]);
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) {
        squares += x[part][i] * x[part][i];
      }
    }
    squares = WarpSum(squares);
    if (thread % kWarpThreads == 0) {
      partial[part * kWarps + thread / kWarpThreads] = squares;
    }
  }
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int32_t i = 0; i < 2 * kWarps; ++i) {
    sum += partial[i];
  }
  const float mean = sum / static_cast<float>(arguments.depth);
  const float inverse_rms = 1.0f / sqrtf(mean + arguments.norm_epsilon);
#pragma unroll
  for (int32_t part = 0; part < 2; ++part) {
    const int32_t first = (part * kThreads + thread) * 8;
    if (first < arguments.padded_depth) {
      float scale[8];
      Unpack8(scales[part], scale);
#pragma unroll
      for (int32_t i = 0; i < 8; ++i) {
        scale[i] = x[part][i] * inverse_rms * scale[i];
      }
      *reinterpret_cast<uint4*>(to + first) = Pack8(scale);
    }
  }
  __syncthreads();
}

// kNorm: of one row, which each block normalises for itself.
template <typename Shape, bool kAligned, bool kNorm, typename Output>
__global__ void __launch_bounds__(kThreads)
    LinearRowsKernel(const __grid_constant__ LinearArguments arguments) {
  constexpr int32_t kGroups = Shape::kGroups;
  constexpr int32_t kTiles = Shape::kTiles;
#if defined(__CUDA_ARCH__)
  constexpr int32_t kStages = Shape::Stages(__CUDA_ARCH__ >= 900);
#else
  constexpr int32_t kStages = Shape::Stages(false);
#endif
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpThreads;
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads;
  const int32_t g = lane / 4;
  const int32_t t = lane % 4;
  auto& partial = *reinterpret_cast<typename Shape::Partial*>(SharedMemory());
  constexpr int32_t kRingBytes = kStages * Shape::kStageBytes;  // of a warp
  std::byte* ring = SharedMemory() + sizeof(typename Shape::Partial) + warp * kRingBytes;
  auto* normed = reinterpret_cast<__nv_bfloat16*>(SharedMemory() + sizeof(typename Shape::Partial) +
                                                  kWarps * kRingBytes);

  const int32_t rows =
      arguments.counts[arguments.rows == RowSet::kLogits ? kLogitRows : kDecodeRows];
  const int32_t row_tiles = (arguments.max_rows + Shape::kRows - 1) / Shape::kRows;
  Walk<Shape> walk(arguments, row_tiles, (rows + Shape::kRows - 1) / Shape::kRows, warp, lane);
#pragma unroll
  for (int32_t stage = 0; stage < kStages; ++stage) {
    Fetch(arguments.padded_depth, walk, ring + stage * Shape::kStageBytes);
  }
  LetNextKernelStart();
  if (threadIdx.x == 0 && rows > 0) {  // their addresses are translated then
    PrefetchToL2(arguments.input);
    PrefetchToL2(arguments.output);
  }
  if constexpr (kNorm) {
    // The turn before the wait brings code and weight, which the layers between have driven out of
    // the caches; what it finds does not matter.
    __shared__ float squares[2 * kWarps];
    const int64_t row = arguments.logit_row != nullptr && rows > 0 ? arguments.logit_row[0] : 0;
#pragma unroll 1
    for (int32_t turn = 0; turn < 2; ++turn) {
      if (turn == 1) {
        WaitForEarlierKernels();
      }
      NormaliseRow(arguments, arguments.input + row * arguments.depth, squares, normed);
    }
  } else {
    WaitForEarlierKernels();
  }

  const int32_t items = (arguments.packed_rows + Shape::kOutputs - 1) / Shape::kOutputs * row_tiles;
  const int32_t steps = arguments.padded_depth / kStep;
  const int32_t swap = 4 * (g % 2);                                 // as Fetch places chunks
  const int32_t warp_steps = (steps - warp + kWarps - 1) / kWarps;  // of an item; not above 0: none
  // The lane's part of the input for the warp's next kAhead steps, a step i in x[i % kAhead].
  uint4 x[Shape::kAhead][kTiles][2];
  int32_t asked_row = -1;  // the first of the rows that x holds for the first steps of an item
  const auto ask = [&](uint4(&to)[kTiles][2], int32_t first_row, int32_t step) {
#pragma unroll
    for (int32_t tile = 0; tile < kTiles; ++tile) {
      if constexpr (kNorm) {
        break;  // steps read what is normalised
      }
      const int32_t row = first_row + tile * kTileRows + g;
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        to[tile][half] =
            row < rows ? LoadInput<kAligned>(arguments.input + int64_t{row} * arguments.depth,
                                             (warp + step * kWarps) * kStep + 32 * half + 8 * t,
                                             arguments.depth)
                       : uint4{};
      }
    }
  };
  int32_t stage = 0;
  for (auto item = static_cast<int32_t>(blockIdx.x); item < items;
       item += static_cast<int32_t>(gridDim.x)) {
    const int32_t first_row = item % row_tiles * Shape::kRows;
    if (first_row >= rows) {
      continue;
    }
    Finisher<Shape, Output> finisher(arguments, item / row_tiles, first_row, rows);
    finisher.AskForAddends();
    if (asked_row != first_row) {
#pragma unroll
      for (int32_t step = 0; step < Shape::kAhead; ++step) {
        ask(x[step], first_row, step);
      }
    }
    asked_row = first_row;
    float sums[kGroups][kTiles][4] = {};
    const auto take_step = [&](uint4(&input)[kTiles][2], int32_t step, int32_t next) {
      WaitCopies<kStages - 1>();
      __syncwarp();
      std::byte* data = ring + stage * Shape::kStageBytes;
      uint4 high[kGroups][2], low[kGroups][2];
#pragma unroll
      for (int32_t group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const std::byte* chunk =
              data + group * kGroupBytes + g * kRowBytes + ((4 * half + t) ^ swap) * 16;
          high[group][half] = *reinterpret_cast<const uint4*>(chunk);
          low[group][half] = *reinterpret_cast<const uint4*>(chunk + 8 * kRowBytes);
        }
      }
      __syncwarp();  // the stage has been read
      Fetch(arguments.padded_depth, walk, data);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if constexpr (kNorm) {
        const __nv_bfloat16* of_step = normed + (warp + step * kWarps) * kStep + 8 * t;
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          input[0][half] = g == 0 ? *reinterpret_cast<const uint4*>(of_step + 32 * half) : uint4{};
        }
      }
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
#pragma unroll
        for (int32_t tile = 0; tile < kTiles; ++tile) {
          const uint4& in = input[tile][half];
#pragma unroll
          for (int32_t group = 0; group < kGroups; ++group) {
            const uint4& h = high[group][half];
            const uint4& l = low[group][half];
            MultiplyAdd(sums[group][tile], h.x, l.x, h.y, l.y, in.x, in.y);
            MultiplyAdd(sums[group][tile], h.z, l.z, h.w, l.w, in.z, in.w);
          }
        }
      }
      ask(input, first_row, next);
    };
    for (int32_t base = 0; base < warp_steps; base += Shape::kAhead) {
#pragma unroll
      for (int32_t i = 0; i < Shape::kAhead; ++i) {
        if (base + i < warp_steps) {
          // Behind the last steps comes an item with the same rows, or one that asks again.
          const int32_t next = base + i + Shape::kAhead;
          take_step(x[i], base + i, next < warp_steps ? next : i);
        }
      }
    }
    __syncthreads();  // the item before is finished
#pragma unroll
    for (int32_t group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          partial[warp][group][tile][i][lane] = sums[group][tile][i];
        }
      }
    }
    __syncthreads();
    finisher.Finish(partial);
  }
}

template <typename Shape, typename Output>
void Run(const LinearArguments& arguments, cudaStream_t stream) {
  const int64_t items =
      CeilDiv(arguments.max_rows, Shape::kRows) * CeilDiv(arguments.packed_rows, Shape::kOutputs);
  const auto launch = [&](auto* kernel, int32_t more_bytes) {
    LaunchDependent("linear, rows", kernel, static_cast<uint32_t>(PersistentBlocks(items, 1)),
                    kThreads, Shape::Bytes(HasDependentLaunch()) + more_bytes, stream, arguments);
  };
  if constexpr (Shape::kTiles == 1) {
    if (arguments.norm_weight != nullptr) {
      return launch(LinearRowsKernel<Shape, true, true, Output>, kMostNormed * 2);
    }
  }
  launch(arguments.depth % 8 == 0 ? LinearRowsKernel<Shape, true, false, Output>
                                  : LinearRowsKernel<Shape, false, false, Output>,
         0);
}

// Whether items of 32 packed rows keep the device's blocks as busy, but for a twentieth, as items
// of 16 do.
bool TakesTwoGroups(const LinearArguments& arguments) {
  if (arguments.packed_rows % (2 * kGroupOutputs) != 0) {
    return false;
  }
  const int64_t blocks = Multiprocessors();
  const int64_t groups = arguments.packed_rows / kGroupOutputs;
  return 2 * CeilDiv(groups / 2, blocks) * 20 <= CeilDiv(groups, blocks) * 21;
}

}  // namespace

bool NormalisesItsRow(int32_t max_rows, int32_t depth) {
  return max_rows == 1 && depth % 8 == 0 && depth <= kMostNormed;
}

void LinearRows(const LinearArguments& arguments, DType output_dtype, cudaStream_t stream) {
  const bool two = TakesTwoGroups(arguments);
  WithOutput(output_dtype, [&]<typename Output>() {
    if (arguments.max_rows <= kTileRows) {
      two ? Run<RowsShape<2, 1>, Output>(arguments, stream)
          : Run<RowsShape<1, 1>, Output>(arguments, stream);
    } else if (arguments.max_rows <= 2 * kTileRows) {
      two ? Run<RowsShape<2, 2>, Output>(arguments, stream)
          : Run<RowsShape<1, 2>, Output>(arguments, stream);
    } else {
      Run<RowsShape<1, 4>, Output>(arguments, stream);
    }
  });
}

}  // namespace lserve::cuda
