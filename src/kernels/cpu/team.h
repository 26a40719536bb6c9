// Team: the threads that run a stream's operations together. The stream opens one parallel region
// for everything that was appended; in it every thread runs every operation, with a barrier between
// two operations and further barriers inside an operation where it needs them.
//
// An operation is a function
//   void RunFoo(const FooParams& params, Team& team);
// called once by every thread of the team. It divides the work by team.thread() and team.threads(),
// or by a static rule that does not depend on them: results must not depend on the thread count.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace lserve::cpu {

// Shared by the threads of a team. A barrier spins for a bounded time, then sleeps.
class TeamBarrier {
 public:
  explicit TeamBarrier(int32_t threads) : threads_(threads) {}
  void Wait();

 private:
  const int32_t threads_;
  std::atomic<int32_t> arrived_{0};
  std::atomic<uint32_t> generation_{0};
};

// A thread's scratch memory; grows, never shrinks. Owned by the stream.
class ThreadScratch {
 public:
  ThreadScratch() = default;
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;
  ~ThreadScratch();
  // At least `bytes` bytes, aligned to 64; the content of the last call is lost.
  std::byte* Get(int64_t bytes);

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// One thread's view of its team, for the length of one operation.
class Team {
 public:
  Team(int32_t thread, int32_t threads, TeamBarrier& barrier, std::atomic<int64_t>& next,
       ThreadScratch& scratch)
      : thread_(thread), threads_(threads), barrier_(barrier), next_(next), scratch_(scratch) {}

  int32_t thread() const { return thread_; }
  int32_t threads() const { return threads_; }

  // Waits for all threads; what they wrote before is visible after.
  void Barrier() { barrier_.Wait(); }

  // The next index of a shared counter, for uneven work: while ((i = team.Next()) < tasks) ... The
  // counter starts at 0 in every operation; a second phase needs ResetNext().
  int64_t Next() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // Barrier, counter back to 0, barrier. Called by every thread.
  void ResetNext() {
    Barrier();
    if (thread_ == 0) {
      next_.store(0, std::memory_order_relaxed);
    }
    Barrier();
  }

  // This thread's scratch, valid until the next call or the end of the operation.
  std::byte* Scratch(int64_t bytes) { return scratch_.Get(bytes); }

 private:
  int32_t thread_;
  int32_t threads_;
  TeamBarrier& barrier_;
  std::atomic<int64_t>& next_;
  ThreadScratch& scratch_;
};

}  // namespace lserve::cpu
