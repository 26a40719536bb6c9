#include "kernels/cpu/cpu_stream.h"

#include <omp.h>

#include <utility>

namespace lserve::cpu {

void OpQueue::AppendBytes(RunFunction run, const void* params, size_t params_bytes) {
  const size_t padded = (params_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const Header header{run, padded};
  const size_t offset = bytes_.size();
  bytes_.resize(offset + sizeof(Header) + padded);
  std::memcpy(bytes_.data() + offset, &header, sizeof(header));
  std::memcpy(bytes_.data() + offset + sizeof(Header), params, params_bytes);
}

CpuStream::CpuStream(int32_t threads)
    : threads_(threads), barrier_(threads), scratch_(static_cast<size_t>(threads)) {}

Status CpuStream::Synchronize() {
  CHECK(!capturing_);
  if (!queue_.empty()) {
    Run();
    queue_.Clear();
  }
  return OkStatus();
}

void CpuStream::BeginCapture() {
  CHECK(!capturing_);
  capturing_ = true;
}

std::unique_ptr<Graph> CpuStream::EndCapture() {
  CHECK(capturing_);
  capturing_ = false;
  return std::make_unique<CpuGraph>(std::exchange(captured_, OpQueue()));
}

void CpuStream::Launch(const Graph& graph) {
  (capturing_ ? captured_ : queue_).Append(static_cast<const CpuGraph&>(graph).queue());
}

void CpuStream::Run() {
  next_[0].value.store(0, std::memory_order_relaxed);
#pragma omp parallel num_threads(threads_) default(none)
  {
    // The barriers count on the whole team: fewer threads than asked for would wait for ever.
    CHECK_EQ(omp_get_num_threads(), threads_);
    const int32_t thread = omp_get_thread_num();
    // oneDNN asks OpenMP how many threads it may use: this one only, also in a team of one, whose
    // region does not count as parallel. The setting ends with the region.
    omp_set_num_threads(1);
    int64_t index = 0;
    queue_.ForEach([&](OpQueue::RunFunction run, const void* params) {
      if (index > 0) {
        barrier_.Wait();
      }
      if (thread == 0) {
        next_[(index + 1) % 2].value.store(0, std::memory_order_relaxed);
      }
      Team team(thread, threads_, barrier_, next_[index % 2].value,
                scratch_[static_cast<size_t>(thread)]);
      run(params, team);
      ++index;
    });
  }
}

}  // namespace lserve::cpu
