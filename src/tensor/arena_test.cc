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

// Large ones from the front, each at a multiple of 2 MiB, small ones from the back.
TEST(Arena, BuffersLieBesideEachOther) {
  constexpr int64_t kLarge = Arena::kLarge;
  const int64_t sizes[] = {1, kLarge, 256, kLarge + 1, 0, 257, kLarge - 1};
  int64_t room = 0;
  for (const int64_t size : sizes) {
    room += Arena::Room(size);
  }
  const int64_t front = 2 * kLarge + Arena::kLargeAlignment;
  const int64_t end = front + kLarge + 4 * 256;
  EXPECT_EQ(room, end);
  int freed = 0;
  Buffer block = Block(room + 255, &freed);
  std::byte* const begin = block.data();
  Arena arena(std::move(block));
  std::vector<int64_t> places;
  for (const int64_t size : sizes) {
    const Buffer buffer = arena.Cut(size);
    EXPECT_EQ(buffer.bytes(), size);
    EXPECT_EQ(buffer.data() == nullptr, size == 0);
    places.push_back(size == 0 ? 0 : buffer.data() - begin);
  }
  EXPECT_EQ(places, (std::vector<int64_t>{end - 256, 0, end - 512, kLarge, 0, end - 1024, front}));
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
