// The stream and the graph of the CPU backend: a queue of operations, each a function and a copy of
// its parameters in one arena, which Synchronize runs in a single parallel region. Used by one
// thread at a time; the team that runs the queue exists only inside Run.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/cpu/team.h"

namespace lserve::cpu {

// Operations in order, in one block of memory that grows to the longest step and stays.
class OpQueue {
 public:
  using RunFunction = void (*)(const void* params, Team& team);

  OpQueue() { bytes_.reserve(kInitialBytes); }

  template <typename Params>
  void Append(RunFunction run, const Params& params) {
    static_assert(std::is_trivially_copyable_v<Params> && alignof(Params) <= kAlignment);
    AppendBytes(run, &params, sizeof(Params));
  }
  // Appends a copy of every operation of `other`.
  void Append(const OpQueue& other) {
    bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
  }

  bool empty() const { return bytes_.empty(); }
  void Clear() { bytes_.clear(); }
  void ShrinkToFit() { bytes_.shrink_to_fit(); }

  // Calls visit(run, params) for every operation.
  template <typename Visitor>
  void ForEach(Visitor&& visit) const {
    const std::byte* entry = bytes_.data();
    const std::byte* end = entry + bytes_.size();
    while (entry < end) {
      Header header;
      std::memcpy(&header, entry, sizeof(header));
      visit(header.run, static_cast<const void*>(entry + sizeof(Header)));
      entry += sizeof(Header) + header.params_bytes;
    }
  }

 private:
  static constexpr size_t kAlignment = 16;  // of operator new, so of the arena
  static constexpr size_t kInitialBytes = size_t{256} << 10;

  struct alignas(kAlignment) Header {
    RunFunction run;
    uint64_t params_bytes;  // rounded up to the alignment
  };

  void AppendBytes(RunFunction run, const void* params, size_t params_bytes);

  std::vector<std::byte> bytes_;
};

class CpuGraph : public Graph {
 public:
  explicit CpuGraph(OpQueue queue) : queue_(std::move(queue)) { queue_.ShrinkToFit(); }
  const OpQueue& queue() const { return queue_; }

 private:
  OpQueue queue_;
};

class CpuStream : public Stream {
 public:
  explicit CpuStream(int32_t threads);

  Status Synchronize() override;
  void BeginCapture() override;
  std::unique_ptr<Graph> EndCapture() override;
  void Launch(const Graph& graph) override;

  bool capturing() const { return capturing_; }

  // Appends `run` with a copy of `params`.
  template <typename Params>
  void Append(OpQueue::RunFunction run, const Params& params) {
    (capturing_ ? captured_ : queue_).Append(run, params);
  }

 private:
  void Run();

  const int32_t threads_;
  bool capturing_ = false;
  OpQueue queue_;
  OpQueue captured_;
  TeamBarrier barrier_;
  // Operation i counts with next_[i % 2]; the other is reset meanwhile.
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  Counter next_[2];
  std::vector<ThreadScratch> scratch_;
};

// An operation's entry for Op::run: appends kRun to a CpuStream.
template <typename Params, void (*kRun)(const Params&, Team&)>
void AppendOp(Stream& stream, const Params& params) {
  static_cast<CpuStream&>(stream).Append(
      [](const void* erased, Team& team) { kRun(*static_cast<const Params*>(erased), team); },
      params);
}

}  // namespace lserve::cpu
