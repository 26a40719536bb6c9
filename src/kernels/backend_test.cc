// What every backend shares: memory in one block, weights that none packs.
#include "kernels/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace lserve {
namespace {

using ::testing::HasSubstr;

TEST(AllocateTogether, GivesZerosThatGoInAnyOrder) {
  for (const char* device : {"ref", "cpu"}) {
    const auto backend = MakeBackend(device, BackendOptions{1}).value();
    Buffer small, none, large, last;
    ASSERT_TRUE(
        AllocateTogether(*backend, {{&small, 5}, {&none, 0}, {&large, 3 << 20}, {&last, 64}}).ok());
    EXPECT_EQ(none.data(), nullptr);
    for (Buffer* buffer : {&small, &large, &last}) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u) << device;
      EXPECT_TRUE(std::all_of(buffer->data(), buffer->data() + buffer->bytes(),
                              [](std::byte b) { return b == std::byte{0}; }));
      std::fill_n(buffer->data(), buffer->bytes(), std::byte{1});
    }
    EXPECT_EQ(small.bytes() + large.bytes() + last.bytes(), 5 + (3 << 20) + 64);
    small = Buffer();
    last = Buffer();
    EXPECT_EQ(large.data()[large.bytes() - 1], std::byte{1}) << device;
  }
}

TEST(AllocateTogether, NamesTheBytesOfTheBlock) {
  for (const char* device : {"ref", "cpu"}) {
    const auto backend = MakeBackend(device, BackendOptions{1}).value();
    Buffer a, b;
    const Status status = AllocateTogether(*backend, {{&a, 3}, {&b, int64_t{1} << 50}});
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << device;
    EXPECT_THAT(status.message(), HasSubstr(std::to_string((int64_t{1} << 50) + 256))) << device;
    EXPECT_EQ(a.data(), nullptr);
  }
}

TEST(PackLinear, RefusesWhatNoBackendPacks) {
  const BFloat16 data[6] = {};
  for (const char* device : {"ref", "cpu"}) {
    const auto backend = MakeBackend(device, BackendOptions{1}).value();
    const auto message = [&](const LinearWeight& weight, bool fused_silu) {
      const auto packed = backend->PackLinear(weight, DType::kBFloat16, fused_silu);
      EXPECT_EQ(packed.status().code(), StatusCode::kInvalidArgument);
      return std::string(packed.status().message());
    };
    EXPECT_THAT(message({data, DType::kBFloat16, -3, 2}, false), HasSubstr("[-3, 2]"));
    EXPECT_THAT(message({data, DType::kBFloat16, 3, int64_t{1} << 31}, false),
                HasSubstr("[3, 2147483648]"));
    EXPECT_THAT(message({data, DType::kInt32, 3, 2}, false), HasSubstr("int32"));
    EXPECT_THAT(message({data, DType::kBFloat16, 3, 2}, true), HasSubstr("3 rows"));
  }
}

}  // namespace
}  // namespace lserve
