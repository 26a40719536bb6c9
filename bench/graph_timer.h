// How long an operation takes on a device whose kernels are shorter than a host clock can tell:
// repetitions are recorded as one graph, which is launched and waited for by the host's clock.
// Nothing is subtracted: the launch of the graph (about 10 us) and the gaps between its kernels
// count, as they do in a step. Works for every backend; used by one thread.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/backend.h"

namespace lserve::bench {

// Between buffers that repetitions take in turn lie at least so many bytes, four times the L2 cache
// of an H200: a repetition reads from memory what a step would read from there.
inline constexpr int64_t kRotatedBytes = int64_t{256} << 20;

struct TimerOptions {
  double run_seconds = 4e-3;  // repetitions are recorded for at least about this long
  int32_t runs = 7;           // launches; the median counts
};

// Median seconds of a repetition. append(i) appends repetition i to the stream; repetitions come in
// whole multiples of `cycle` (buffers taken in turn, steps of a reuse interval). An operation
// longer than run_seconds is recorded for one cycle.
double MedianSeconds(Stream& stream, int32_t cycle, const std::function<void(int32_t)>& append,
                     const TimerOptions& options);

}  // namespace lserve::bench
