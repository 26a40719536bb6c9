#include "tensor/arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace lserve {
namespace {

// A block that tells when it is freed.
Buffer Block(int64_t bytes, int* freed) {
  return Buffer(new std::byte[static_cast<size_t>(bytes)], bytes,
                [freed](std::byte* data, int64_t) {
                  delete[] data;
                  ++*freed;
                });
}

TEST(Arena, BuffersLieBehindEachOther) {
  int freed = 0;
  Buffer block = Block(5 * 256, &freed);
  std::byte* const begin = block.data();
  Arena arena(std::move(block));
  const Buffer first = arena.Cut(1);
  const Buffer none = arena.Cut(0);
  const Buffer second = arena.Cut(256);
  const Buffer third = arena.Cut(257);
  EXPECT_EQ(first.data(), begin);
  EXPECT_EQ(first.bytes(), 1);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_EQ(second.data(), begin + 256);
  EXPECT_EQ(second.bytes(), 256);
  EXPECT_EQ(third.data(), begin + 512);
  EXPECT_EQ(arena.left(), 256);
  EXPECT_EQ(arena.Cut(255).data(), begin + 1024);
  EXPECT_EQ(arena.left(), 0);
}

TEST(Arena, TheBlockGoesWithTheLastOfItsUsers) {
  for (std::vector<size_t> order : {std::vector<size_t>{0, 1, 2}, {2, 1, 0}, {1, 0, 2}}) {
    for (const bool arena_first : {true, false}) {
      int freed = 0;
      auto arena = std::make_unique<Arena>(Block(1024, &freed));
      Buffer buffers[] = {arena->Cut(100), arena->Cut(200), arena->Cut(300)};
      if (arena_first) {
        arena.reset();
      }
      for (const size_t i : order) {
        EXPECT_EQ(freed, 0);
        std::fill_n(buffers[i].data(), buffers[i].bytes(), std::byte{1});
        const Buffer moved = std::move(buffers[i]);
      }
      EXPECT_EQ(freed, arena_first ? 1 : 0);
      arena.reset();
      EXPECT_EQ(freed, 1);
    }
  }
}

// A buffer that is assigned anew lets go of its block.
TEST(Arena, AssigningFrees) {
  int freed = 0;
  int freed_later = 0;
  Buffer buffer = Arena(Block(256, &freed)).Cut(10);
  buffer = Arena(Block(256, &freed_later)).Cut(20);
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(freed_later, 0);
}

TEST(ArenaDeathTest, RoomIsChecked) {
  int freed = 0;
  Arena arena(Block(300, &freed));
  EXPECT_EQ(arena.Cut(100).bytes(), 100);
  EXPECT_DEATH(arena.Cut(1), "Room");
}

}  // namespace
}  // namespace lserve
