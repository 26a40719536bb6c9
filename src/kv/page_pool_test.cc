#include "kv/page_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace lserve {
namespace {

TEST(PagePool, HandsOutEveryPageOnce) {
  PagePool pool(5);
  std::set<int32_t> pages;
  for (int i = 0; i < 5; ++i) {
    const Result<int32_t> page = pool.Allocate();
    ASSERT_TRUE(page.ok());
    EXPECT_GE(*page, 0);
    EXPECT_LT(*page, 5);
    EXPECT_TRUE(pages.insert(*page).second);
  }
  EXPECT_EQ(pool.free(), 0);
  const Result<int32_t> none = pool.Allocate();
  EXPECT_EQ(none.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(none.status().message().find("5"), std::string::npos);
}

TEST(PagePool, SharedPageIsFreeAfterItsLastReference) {
  PagePool pool(1);
  const int32_t page = pool.Allocate().value();
  pool.Retain(page);
  pool.Release(page);
  EXPECT_EQ(pool.free(), 0);
  pool.Release(page);
  EXPECT_EQ(pool.free(), 1);
}

TEST(PagePoolDeathTest, ReleasingAFreePageIsABug) {
  PagePool pool(2);
  EXPECT_DEATH(pool.Release(1), "references");
}

}  // namespace
}  // namespace lserve
