// PagePool: which pages of a pool are in use, and by how many sequences. It knows numbers, not
// bytes. Not thread-safe; the engine's thread owns it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace lserve {

class PagePool {
 public:
  explicit PagePool(int64_t pages);

  // A free page with one reference. Errors: kResourceExhausted.
  Result<int32_t> Allocate();
  void Retain(int32_t page);
  // Frees the page when its last reference goes.
  void Release(int32_t page);

  int64_t total() const { return static_cast<int64_t>(references_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }

 private:
  std::vector<int32_t> references_;  // by page; 0: free
  std::vector<int32_t> free_;        // last in, first out: a page in use lately is in cache
};

}  // namespace lserve
