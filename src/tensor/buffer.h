// Buffer: a block of memory on some device, owned by one object and freed with it. Move-only; the
// bytes may be used from any thread that the device allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace lserve {

class Buffer {
 public:
  Buffer() = default;
  // Takes over `bytes` bytes at `data`; `release` frees them.
  Buffer(std::byte* data, int64_t bytes, std::function<void(std::byte*, int64_t)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
      release_ = std::exchange(other.release_, nullptr);
    }
    return *this;
  }
  ~Buffer() { Reset(); }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // The buffer as an array of T. Aligned to 64 bytes at least.
  template <typename T>
  T* As() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void Reset() {
    if (data_ != nullptr) {
      release_(data_, bytes_);
      data_ = nullptr;
    }
  }

  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  std::function<void(std::byte*, int64_t)> release_;
};

}  // namespace lserve
