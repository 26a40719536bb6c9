// What one rendering of a chat template may spend, so that no template or request runs away.
// Belongs to one rendering; not thread-safe.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace lserve::jinja {

class Budget {
 public:
  // `steps`: evaluated nodes; `bytes`: text and list storage made, output included.
  Budget(int64_t steps, int64_t bytes) : steps_left_(steps), bytes_left_(bytes) {}

  Status Step() {
    return --steps_left_ < 0 ? ResourceExhausted("the chat template takes too many steps")
                             : OkStatus();
  }
  // Call before making something large.
  Status Charge(uint64_t bytes) {
    if (bytes > static_cast<uint64_t>(bytes_left_)) {
      return ResourceExhausted("the chat template makes too much text");
    }
    bytes_left_ -= static_cast<int64_t>(bytes);
    return OkStatus();
  }
  // Of a list of `count` values.
  Status ChargeList(uint64_t count) {
    constexpr uint64_t kBytesPerItem = 128;
    return count > UINT64_MAX / kBytesPerItem ? Charge(UINT64_MAX) : Charge(count * kBytesPerItem);
  }

 private:
  int64_t steps_left_;
  int64_t bytes_left_;
};

}  // namespace lserve::jinja
