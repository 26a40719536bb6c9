#include "kv/page_pool.h"

#include <limits>

namespace lserve {

PagePool::PagePool(int64_t pages) {
  CHECK_GE(pages, 0);
  CHECK_LE(pages, std::numeric_limits<int32_t>::max());
  references_.assign(static_cast<size_t>(pages), 0);
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<int32_t>(page));
  }
}

Result<int32_t> PagePool::Allocate() {
  if (free_.empty()) {
    return ResourceExhausted("all {} cache pages are in use", total());
  }
  const int32_t page = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::Retain(int32_t page) {
  int32_t& references = references_.at(static_cast<size_t>(page));
  CHECK_GT(references, 0);
  ++references;
}

void PagePool::Release(int32_t page) {
  int32_t& references = references_.at(static_cast<size_t>(page));
  CHECK_GT(references, 0);
  if (--references == 0) {
    free_.push_back(page);
  }
}

}  // namespace lserve
