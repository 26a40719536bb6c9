// Arena: a block of memory that is cut into buffers, one behind the other. Every buffer keeps the
// whole block, so arena and buffers may go in any order, and the memory goes with the last of them.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/check.h"
#include "tensor/buffer.h"

namespace lserve {

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;  // of a buffer in the block
  // Of one of kLarge bytes and more: a page of a GPU's memory, so that its rows begin as they do in
  // an allocation of its own.
  static constexpr int64_t kLargeAlignment = int64_t{2} << 20;
  static constexpr int64_t kLarge = int64_t{16} << 20;

  // What a buffer takes of the block.
  static constexpr int64_t Room(int64_t bytes) {
    const int64_t alignment = bytes >= kLarge ? kLargeAlignment : kAlignment;
    return (bytes + alignment - 1) / alignment * alignment;
  }

  explicit Arena(Buffer block)
      : block_(std::make_shared<const Buffer>(std::move(block))),
        end_(block_->bytes() / kAlignment * kAlignment) {}

  // Bytes of the block, which must have Room for them: large buffers from its front, others from
  // its back. Of none: an empty buffer.
  Buffer Cut(int64_t bytes) {
    CHECK_GE(bytes, 0);
    CHECK_LE(Room(bytes), left());
    if (bytes == 0) {
      return Buffer();
    }
    std::byte* data = block_->data();
    if (bytes >= kLarge) {
      data += begin_;
      begin_ += Room(bytes);
    } else {
      end_ -= Room(bytes);
      data += end_;
    }
    return Buffer(data, bytes, [block = block_](std::byte*, int64_t) {});
  }

  int64_t left() const { return end_ - begin_; }

 private:
  std::shared_ptr<const Buffer> block_;
  int64_t begin_ = 0;  // of what is left
  int64_t end_;
};

}  // namespace lserve
