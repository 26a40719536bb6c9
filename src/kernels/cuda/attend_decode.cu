// AttendDecode: the choice of an instance.
#include "kernels/cuda/attend_decode.cuh"

#include "kernels/cuda/operations.h"

namespace lserve::cuda {

#define LSERVE_DECLARE(kDim)                                                        \
  template <>                                                                       \
  void LaunchAttendDecode<kDim>(const AttendDecodeParams& params, int32_t* tickets, \
                                cudaStream_t stream)
LSERVE_DECLARE(32);
LSERVE_DECLARE(64);
LSERVE_DECLARE(96);
LSERVE_DECLARE(128);
LSERVE_DECLARE(256);
#undef LSERVE_DECLARE

void AttendDecode(const AttendDecodeParams& params, std::span<int32_t> tickets,
                  cudaStream_t stream) {
  if (params.batch.max_decode_rows == 0) {
    return;
  }
  const DecodeShape shape(params);
  CHECK_LE(int64_t{params.batch.max_decode_rows} * shape.kv_heads * shape.passes,
           std::ssize(tickets));
  const int32_t padded = shape.padded_head_dim;
  if (padded == 32) {
    LaunchAttendDecode<32>(params, tickets.data(), stream);
  } else if (padded == 64) {
    LaunchAttendDecode<64>(params, tickets.data(), stream);
  } else if (padded == 96) {
    LaunchAttendDecode<96>(params, tickets.data(), stream);
  } else if (padded == 128) {
    LaunchAttendDecode<128>(params, tickets.data(), stream);
  } else {
    LaunchAttendDecode<256>(params, tickets.data(), stream);
  }
}

int64_t AttendDecodeWorkspace(const AttendDecodeParams& params) {
  const DecodeShape shape(params);
  return int64_t{params.batch.max_decode_rows} * params.q_heads * shape.max_segments *
         shape.record_floats * static_cast<int64_t>(sizeof(float));
}

const char* AttendDecodeVariant(const AttendDecodeParams& /*params*/) { return "mma"; }

}  // namespace lserve::cuda
