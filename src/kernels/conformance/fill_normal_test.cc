// FillNormal: the bits of `ref`.
#include "kernels/conformance/harness.h"

namespace lserve::conformance {
namespace {

class FillNormals : public TargetTest {
 protected:
  int32_t threads() const override { return 2; }

  // Two elements more than are filled.
  std::vector<float> Filled(Backend& backend, int64_t count, uint64_t seed, uint64_t first) const {
    ActivationArray data(backend, dtype(), count + 2);
    const FillNormalParams params{.data = data.data(),
                                  .dtype = dtype(),
                                  .count = count,
                                  .seed = seed,
                                  .first = first,
                                  .deviation = 0.3f};
    EXPECT_EQ(Validate(params).message(), "");
    const std::unique_ptr<Stream> stream = backend.MakeStream();
    backend.ops().fill_normal.run(*stream, params);
    EXPECT_TRUE(stream->Synchronize().ok());
    return data.Download(0, count + 2);
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, FillNormals, testing::ValuesIn(Targets(ComparedBackendNames())),
                         TargetTestName);

TEST_P(FillNormals, MatchRef) {
  for (const int64_t count : {0, 1, 7, 8, 2051, 100003}) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{6}, uint64_t{1} << 40}) {
      const uint64_t seed = 0x123456789abcdef0 + static_cast<uint64_t>(count);
      EXPECT_TRUE(
          Identical(Filled(*backend_, count, seed, first), Filled(*ref_, count, seed, first)))
          << count << " from " << first;
    }
  }
}

// A part of a sequence of numbers is what it is in the whole.
TEST_P(FillNormals, APartIsOfTheWhole) {
  const std::vector<float> whole = Filled(*backend_, 5000, 3, 2);
  const std::vector<float> part = Filled(*backend_, 77, 3, 1002);
  EXPECT_TRUE(Identical(std::span(part).first(77), std::span(whole).subspan(1000, 77)));
}

}  // namespace
}  // namespace lserve::conformance
