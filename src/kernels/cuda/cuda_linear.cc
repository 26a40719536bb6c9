#include "kernels/cuda/cuda_linear.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"

namespace lserve::cuda {
namespace {

constexpr int32_t kSiluRows = 8;                   // rows of the gate before as many of up
constexpr int64_t kPackBytes = int64_t{32} << 20;  // of host memory while packing

constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t PackedRows(const LinearWeight& weight, bool fused_silu) {
  return fused_silu ? 2 * RoundUp(weight.out_features / 2, kSiluRows)
                    : RoundUp(weight.out_features, kLinearRowMultiple);
}

int64_t PaddedDepth(const LinearWeight& weight) {
  return RoundUp(weight.in_features, kLinearDepthMultiple);
}

template <typename T>
void RoundRow(const void* data, int64_t first, int64_t count, BFloat16* output) {
  const T* from = static_cast<const T*>(data) + first;
  std::transform(from, from + count, output, [](T x) { return ToBFloat16(ToFloat(x)); });
}

// Row `row` of a checkpoint's matrix in bf16.
void ConvertRow(const LinearWeight& weight, int64_t row, BFloat16* output) {
  const int64_t depth = weight.in_features;
  switch (weight.dtype) {
    case DType::kBFloat16:
      std::memcpy(output, static_cast<const BFloat16*>(weight.data) + row * depth,
                  static_cast<size_t>(depth) * sizeof(BFloat16));
      break;
    case DType::kFloat16: RoundRow<Float16>(weight.data, row * depth, depth, output); break;
    default: RoundRow<float>(weight.data, row * depth, depth, output); break;
  }
}

}  // namespace

int64_t CudaLinear::PackedBytes(const LinearWeight& weight, bool fused_silu) {
  return PackedRows(weight, fused_silu) * PaddedDepth(weight) *
         static_cast<int64_t>(sizeof(BFloat16));
}

Result<std::unique_ptr<CudaLinear>> CudaLinear::Make(const LinearWeight& weight, bool fused_silu,
                                                     Buffer memory, CudaStream& stream) {
  RETURN_IF_ERROR(Validate(weight, fused_silu));
  if (weight.on_device && weight.dtype != DType::kBFloat16) {
    return InvalidArgument("a weight of {} cannot be packed on the device",
                           DTypeName(weight.dtype));
  }
  CHECK_EQ(memory.bytes(), PackedBytes(weight, fused_silu));
  std::unique_ptr<CudaLinear> linear(new CudaLinear(weight, fused_silu, std::move(memory)));
  if (weight.on_device) {
    RETURN_IF_ERROR(linear->PackFromDevice(weight, stream.get()));
  } else {
    linear->Pack(weight, stream);
  }
  RETURN_IF_ERROR(stream.Synchronize());
  return linear;
}

CudaLinear::CudaLinear(const LinearWeight& weight, bool fused_silu, Buffer memory)
    : PackedLinear(weight.out_features, weight.in_features),
      fused_silu_(fused_silu),
      packed_rows_(static_cast<int32_t>(PackedRows(weight, fused_silu))),
      padded_depth_(static_cast<int32_t>(PaddedDepth(weight))),
      data_(std::move(memory)) {}

int64_t CudaLinear::SourceRow(int32_t row) const {
  if (!fused_silu_) {
    return row < out_features() ? row : -1;
  }
  const int64_t half = out_features() / 2;
  const int64_t column = int64_t{row / (2 * kSiluRows)} * kSiluRows + row % kSiluRows;
  if (column >= half) {
    return -1;
  }
  return row % (2 * kSiluRows) < kSiluRows ? column : half + column;
}

void CudaLinear::Pack(const LinearWeight& weight, CudaStream& stream) const {
  const int64_t row_bytes = int64_t{padded_depth_} * static_cast<int64_t>(sizeof(BFloat16));
  const auto block_rows =
      static_cast<int32_t>(std::clamp<int64_t>(kPackBytes / row_bytes, 1, packed_rows_));
  std::vector<BFloat16> block(static_cast<size_t>(int64_t{block_rows} * padded_depth_));
  for (int32_t first = 0; first < packed_rows_; first += block_rows) {
    const int32_t rows = std::min(block_rows, packed_rows_ - first);
    std::fill(block.begin(), block.end(), BFloat16{0});
    for (int32_t row = 0; row < rows; ++row) {
      if (const int64_t source = SourceRow(first + row); source >= 0) {
        ConvertRow(weight, source, block.data() + int64_t{row} * padded_depth_);
      }
    }
    stream.CopyToDevice(data_.data() + first * row_bytes, block.data(), rows * row_bytes);
  }
}

Status CudaLinear::PackFromDevice(const LinearWeight& weight, cudaStream_t stream) const {
  const auto from_pitch =
      static_cast<size_t>(weight.in_features) * sizeof(BFloat16);  // bytes of a row
  const auto to_pitch = static_cast<size_t>(padded_depth_) * sizeof(BFloat16);
  const auto* source = static_cast<const std::byte*>(weight.data);
  // Rows [from, from + slices * rows): each slice of `rows` goes to packed row `to`, the next one
  // `step` packed rows further on.
  const auto copy = [&](int64_t from, int64_t to, int64_t rows, int64_t step, int64_t slices) {
    if (rows == 0 || slices == 0) {
      return OkStatus();
    }
    cudaMemcpy3DParms parms{};
    parms.srcPtr =
        make_cudaPitchedPtr(const_cast<std::byte*>(source) + static_cast<size_t>(from) * from_pitch,
                            from_pitch, from_pitch, static_cast<size_t>(rows));
    parms.dstPtr = make_cudaPitchedPtr(data_.data() + static_cast<size_t>(to) * to_pitch, to_pitch,
                                       to_pitch, static_cast<size_t>(step));
    parms.extent =
        make_cudaExtent(from_pitch, static_cast<size_t>(rows), static_cast<size_t>(slices));
    parms.kind = cudaMemcpyDeviceToDevice;
    return StatusOf(cudaMemcpy3DAsync(&parms, stream), "packing a weight");
  };
  if (!fused_silu_) {
    return copy(0, 0, out_features(), packed_rows_, 1);
  }
  const int64_t half = out_features() / 2;
  const int64_t slices = half / kSiluRows;
  for (const int64_t part : {0, 1}) {  // gate, up
    const int64_t to = part * kSiluRows;
    RETURN_IF_ERROR(copy(part * half, to, kSiluRows, 2 * kSiluRows, slices));
    RETURN_IF_ERROR(copy(part * half + slices * kSiluRows, slices * 2 * kSiluRows + to,
                         half % kSiluRows, 2 * kSiluRows, 1));
  }
  return OkStatus();
}

}  // namespace lserve::cuda
