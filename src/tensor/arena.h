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
  static constexpr int64_t kAlignment = 256;  // of a buffer's place in the block

  // What a buffer takes of the block.
  static constexpr int64_t Room(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  explicit Arena(Buffer block) : block_(std::make_shared<const Buffer>(std::move(block))) {}

  // The next bytes of the block, which must have room for them. Of none: an empty buffer.
  Buffer Cut(int64_t bytes) {
    CHECK_GE(bytes, 0);
    CHECK_LE(Room(bytes), left());
    if (bytes == 0) {
      return Buffer();
    }
    std::byte* const data = block_->data() + used_;
    used_ += Room(bytes);
    return Buffer(data, bytes, [block = block_](std::byte*, int64_t) {});
  }

  int64_t left() const { return block_->bytes() - used_; }

 private:
  std::shared_ptr<const Buffer> block_;
  int64_t used_ = 0;
};

}  // namespace lserve
