#include "kernels/cpu/team.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <new>

namespace lserve::cpu {
namespace {

// How long a barrier spins before it sleeps. A sleep and its wake-up cost 50 to 100 µs, the threads
// of a decode step arrive within a few µs of each other: so spinning for one wake-up's time never
// costs more than twice the best choice, and a thread whose peer lost its core gives its own up.
constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 32;

}  // namespace

void TeamBarrier::Wait() {
  if (threads_ == 1) {
    return;
  }
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    generation_.notify_all();
    return;
  }
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (generation_.load(std::memory_order_acquire) != generation) {
        return;
      }
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  generation_.wait(generation, std::memory_order_acquire);
}

ThreadScratch::~ThreadScratch() { ::operator delete (data_, std::align_val_t{64}); }

std::byte* ThreadScratch::Get(int64_t bytes) {
  if (bytes > bytes_) {
    ::operator delete (data_, std::align_val_t{64});
    bytes_ = std::max(bytes, 2 * bytes_);
    data_ =
        static_cast<std::byte*>(::operator new (static_cast<size_t>(bytes_), std::align_val_t{64}));
  }
  return data_;
}

}  // namespace lserve::cpu
