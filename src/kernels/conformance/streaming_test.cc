// The streaming lane: which tokens a query sees, at every length, in decode and in prefill.
#include "kernels/conformance/uniform.h"

namespace lserve::conformance {
namespace {

class Streaming : public TargetTest {
 protected:
  static LayerShape Shape(int32_t sink_tokens, int32_t local_tokens) {
    return {0, 1, 64, 1, sink_tokens, local_tokens, {0, 64, 1}, false, false};
  }

  // Runs the schedule with uniform attention and checks every row of sequence 0.
  void CheckWindow(const LayerShape& shape, const SequenceLengths& lengths, int32_t chunk) {
    SCOPED_TRACE(testing::Message()
                 << shape << ", prompt " << lengths.prompt << " in chunks of " << chunk);
    const TokenData data = UniformData(shape, 3);
    Layer layer(*backend_, shape, dtype(), data, lengths.total + kPageTokens);
    layer.Run(PlainSchedule({lengths}, chunk));
    for (const auto& [key, row] : layer.record()) {
      ASSERT_TRUE(
          IsMeanOf(row.output, StreamingTokens(shape, key.second), shape, dtype(), data, 0, 0))
          << "position " << key.second;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, Streaming, testing::ValuesIn(Targets(BackendNames())),
                         TargetTestName);

TEST_P(Streaming, RingHoldsWindowAtEveryLength) {
  CheckWindow(Shape(128, 256), {1, 1000}, 1);
  CheckWindow(Shape(64, 66), {1, 400}, 1);
}

TEST_P(Streaming, RingHoldsWindowAfterPromptsAroundPageBoundaries) {
  for (const int32_t prompt : {200, 256, 300, 383, 384, 385, 448}) {
    CheckWindow(Shape(128, 256), {prompt, prompt + 66}, 512);
  }
}

// A window of 65 or 66 tokens is where the ring grows by a page; sinks end inside and between
// pages.
TEST_P(Streaming, WindowsAroundPageSizes) {
  for (const int32_t sink : {0, 1, 64, 65, 100}) {
    for (const int32_t local : {1, 2, 17, 64, 65, 66, 129}) {
      CheckWindow(Shape(sink, local), {250, 270}, 90);
    }
  }
}

TEST_P(Streaming, SinkAndWindowThatOverlapCountEveryTokenOnce) {
  CheckWindow(Shape(128, 256), {100, 420}, 64);
}

TEST_P(Streaming, SinkLargerThanTheSequence) { CheckWindow(Shape(1000, 10), {190, 200}, 64); }

TEST_P(Streaming, PrefillMaskIsExactAtTokenLevel) {
  for (const int32_t chunk : {65, 128, 500}) {
    CheckWindow(Shape(100, 77), {500, 500}, chunk);
  }
}

// Each chunk needs keys of the one before, also when chunks are smaller or larger than the window.
TEST_P(Streaming, ChunksSeeTheTailOfTheChunkBefore) {
  for (const int32_t chunk : {1, 15, 63, 64, 100}) {
    CheckWindow(Shape(10, 130), {330, 331}, chunk);
  }
}

// Pages beyond the ring overwrite the oldest only.
TEST_P(Streaming, ChunkThatOverrunsTheRingKeepsSinksAndNewestPages) {
  CheckWindow(Shape(64, 2), {600, 620}, 600);
  CheckWindow(Shape(130, 256), {600, 620}, 600);
}

}  // namespace
}  // namespace lserve::conformance
