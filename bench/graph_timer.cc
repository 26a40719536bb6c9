#include "graph_timer.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/clock.h"

namespace lserve::bench {
namespace {

constexpr int32_t kMaxRepetitions = 2048;

std::unique_ptr<Graph> Record(Stream& stream, int32_t repetitions,
                              const std::function<void(int32_t)>& append) {
  stream.BeginCapture();
  for (int32_t i = 0; i < repetitions; ++i) {
    append(i);
  }
  return stream.EndCapture();
}

double RunSeconds(Stream& stream, const Graph& graph) {
  const double start = NowSeconds();
  stream.Launch(graph);
  CHECK_OK(stream.Synchronize());
  return NowSeconds() - start;
}

}  // namespace

double MedianSeconds(Stream& stream, int32_t cycle, const std::function<void(int32_t)>& append,
                     const TimerOptions& options) {
  CHECK_OK(stream.Synchronize());
  std::unique_ptr<Graph> graph = Record(stream, cycle, append);
  RunSeconds(stream, *graph);  // loads kernels, touches memory
  const double once = RunSeconds(stream, *graph);
  const int32_t most = std::max(1, kMaxRepetitions / cycle);
  const auto cycles =
      static_cast<int32_t>(std::clamp(options.run_seconds / once + 1, 1.0, double(most)));
  if (cycles > 1) {
    graph = Record(stream, cycles * cycle, append);
    RunSeconds(stream, *graph);
  }
  std::vector<double> seconds(static_cast<size_t>(options.runs));
  for (double& run : seconds) {
    run = RunSeconds(stream, *graph);
  }
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle / (cycles * cycle);
}

}  // namespace lserve::bench
