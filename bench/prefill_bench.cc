// Prefill attention of one layer: a whole prompt, chunk by chunk, or its last rows with the rest as
// history; dense, with some heads streaming, with block lists that skip a share of the blocks, and
// with blocks left out by a threshold. Against the machine's product of bf16 matrices (operations
// are counted from the pairs that are visible: 4 x head size each) and against what the skipped
// blocks promise over the dense row. Keys, values and queries are random.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench_main.h"
#include "known_layers.h"
#include "random_layers.h"

namespace lserve::bench {
namespace {

struct Arguments {
  CommonArguments common;
  std::string shape = "needle-7m";
  std::vector<int64_t> lengths = {16384, 65536};
  int32_t chunk = 2048;
  int32_t last_rows = 0;
  std::vector<int32_t> retrieval_heads;
  std::vector<double> skip;
  std::vector<float> thresholds;
};

// KV blocks and pairs of a query head and key that one KV head's group visits and sees.
struct Work {
  double blocks = 0;
  double pairs = 0;
};

Work WorkOf(int64_t first, int64_t length, bool streaming, int32_t group) {
  constexpr int64_t kSink = RandomLayers::kSinkTokens;
  constexpr int64_t kLocal = RandomLayers::kLocalTokens;
  Work work;
  for (int64_t q0 = first; q0 < length; q0 += kQueryBlockTokens) {
    const int64_t end = std::min(q0 + kQueryBlockTokens, length);
    const int64_t last = (end - 1) / kPageTokens;
    const int64_t local = std::max<int64_t>(q0 - kLocal + 1, 0) / kPageTokens;
    const int64_t sink = std::min<int64_t>(kSink / kPageTokens, local);
    work.blocks += static_cast<double>(streaming ? last - local + 1 + sink : last + 1);
    for (int64_t q = q0; q < end; ++q) {
      const int64_t outside = std::max<int64_t>(0, q + 1 - kLocal - kSink);
      work.pairs += static_cast<double>(group * (q + 1 - (streaming ? outside : 0)));
    }
  }
  return work;
}

class PrefillBench {
 public:
  PrefillBench(Backend& backend, const Ceilings& ceilings, const Arguments& arguments,
               Results& results)
      : backend_(backend),
        ceilings_(ceilings),
        arguments_(arguments),
        model_(FindLayer(arguments.shape)),
        results_(results) {}

  Status Run() {
    RETURN_IF_ERROR(CheckRows());
    std::printf("%-12s %8s %9s %-22s %12s %9s %8s %9s %8s\n", "shape", "length", "rows", "mode",
                "us", "TFLOP/s", "of bf16", "promised", "reached");
    for (const int64_t length : arguments_.lengths) {
      RunLength(length);
    }
    return OkStatus();
  }

 private:
  Status CheckRows() const {
    if (arguments_.chunk % kQueryBlockTokens != 0) {
      return InvalidArgument("--chunk {} is no multiple of {}", arguments_.chunk,
                             kQueryBlockTokens);
    }
    if (arguments_.last_rows > 0) {
      for (const int64_t length : arguments_.lengths) {
        if ((length - arguments_.last_rows) % kQueryBlockTokens != 0) {
          return InvalidArgument("--lengths {} less --last-rows {} is no multiple of {}", length,
                                 arguments_.last_rows, kQueryBlockTokens);
        }
      }
    }
    for (const int32_t heads : arguments_.retrieval_heads) {
      if (heads < 0 || heads > model_.kv_heads) {
        return InvalidArgument("--retrieval-heads {} is outside 0 to {}", heads, model_.kv_heads);
      }
    }
    return OkStatus();
  }

  void RunLength(int64_t length) {
    first_ = arguments_.last_rows == 0 ? 0 : std::max<int64_t>(0, length - arguments_.last_rows);
    dense_seconds_ = 0;
    const int32_t group = model_.q_heads / model_.kv_heads;
    const Work all = WorkOf(first_, length, false, group);
    const Work streamed = WorkOf(first_, length, true, group);
    std::vector<int32_t> retrieval = {model_.kv_heads};
    retrieval.insert(retrieval.end(), arguments_.retrieval_heads.begin(),
                     arguments_.retrieval_heads.end());
    for (const int32_t heads : retrieval) {
      LayerShape shape{.q_heads = model_.q_heads,
                       .kv_heads = model_.kv_heads,
                       .retrieval_heads = heads,
                       .head_dim = model_.head_dim,
                       .score = PageScore::kNone,
                       .length = length,
                       .chunk = arguments_.chunk};
      RandomLayers layer(backend_, shape);
      layer.StartPrefill(first_, {});
      const int32_t streaming = model_.kv_heads - heads;
      const double promised =
          model_.kv_heads * all.blocks / (heads * all.blocks + streaming * streamed.blocks);
      AddRow(length, streaming == 0 ? "dense" : fmt::format("{} streaming", streaming),
             Seconds(layer), heads * all.pairs + streaming * streamed.pairs, promised,
             OrderedJson::object());
      if (streaming > 0) {
        continue;
      }
      for (const double share : arguments_.skip) {
        const SkippedBlocks blocks = layer.SkipBlocks(share);
        const double kept = static_cast<double>(blocks.kept) / static_cast<double>(blocks.total);
        AddRow(length, fmt::format("skip {}", share), Seconds(layer), blocks.pairs, 1 / kept,
               {{"skipped_share", 1 - kept}});
      }
      RunThresholds(length, layer, heads * all.pairs);
    }
  }

  // Rows are alike and keys random, so it is the threshold that sets the density: at 1 little but
  // the scores is computed. The row at 0 is the static one of the same queries.
  void RunThresholds(int64_t length, RandomLayers& layer, double pairs) {
    if (arguments_.thresholds.empty()) {
      return;
    }
    layer.AlikeQueries();
    for (const float threshold : arguments_.thresholds) {
      layer.StartPrefill(first_, {.threshold = threshold});
      const double seconds = Seconds(layer);
      const PrefillBlocks blocks = layer.ReadBlocks();
      const double density = blocks.scored == 0 ? 1
                                                : static_cast<double>(blocks.weighed) /
                                                      static_cast<double>(blocks.scored);
      // Scores are computed of all pairs, weighted sums of what is left.
      const double left = (1 + density) / 2;
      AddRow(length, fmt::format("threshold {}", threshold), seconds, pairs * left, 1 / left,
             {{"density", density}});
    }
  }

  double Seconds(RandomLayers& layer) {
    return MedianSeconds(
        layer.stream(), 1, [&](int32_t i) { layer.AttendPrefill(i); }, arguments_.common.timer);
  }

  void AddRow(int64_t length, const std::string& mode, double seconds, double pairs,
              double promised, const OrderedJson& more) {
    if (mode == "dense") {
      dense_seconds_ = seconds;
    }
    const double gflops = 4.0 * model_.head_dim * pairs / seconds / 1e9;
    const double speed_up = dense_seconds_ / seconds;
    const double of_product =
        ceilings_.bf16_product_gflops > 0 ? gflops / ceilings_.bf16_product_gflops : 0;
    std::printf("%-12s %8ld %9ld %-22s %12.1f %9.2f %7.0f%% %8.2fx %7.0f%%\n", model_.name,
                static_cast<long>(length), static_cast<long>(length - first_), mode.c_str(),
                seconds * 1e6, gflops / 1e3, 100 * of_product, promised, 100 * speed_up / promised);
    std::fflush(stdout);
    OrderedJson row = {{"kind", "prefill"},
                       {"shape", model_.name},
                       {"length", length},
                       {"last_rows", first_ > 0 ? length - first_ : 0},
                       {"mode", mode},
                       {"chunk", arguments_.chunk},
                       {"us", seconds * 1e6},
                       {"tflops", gflops / 1e3},
                       {"share_of_bf16_product", of_product},
                       {"promised_speed_up", promised},
                       {"speed_up", speed_up},
                       {"share_of_promise", speed_up / promised}};
    row.update(more);
    results_.Add(row);
  }

  Backend& backend_;
  const Ceilings& ceilings_;
  const Arguments& arguments_;
  const LayerSizes& model_;
  Results& results_;
  int64_t first_ = 0;
  double dense_seconds_ = 0;
};

int Main(int argc, char** argv) {
  Arguments arguments;
  arguments.common.timer.runs = 3;
  CLI::App app("prefill attention of one layer");
  app.add_option("--shape", arguments.shape, "llama-3-8b, llama-2-7b, minitron-4b, needle-7m")
      ->check(CLI::IsMember(LayerNames()))
      ->capture_default_str();
  app.add_option("--lengths", arguments.lengths)
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 21))
      ->capture_default_str();
  app.add_option("--chunk", arguments.chunk, "rows of a step, a multiple of 128")
      ->check(CLI::Range(128, 1 << 16))
      ->capture_default_str();
  app.add_option("--last-rows", arguments.last_rows,
                 "rows at the end of the prompt, a multiple of 128; 0: the whole prompt")
      ->capture_default_str();
  app.add_option("--retrieval-heads", arguments.retrieval_heads,
                 "layers in which the other KV heads stream, beside the dense one")
      ->delimiter(',');
  app.add_option("--skip", arguments.skip, "shares of the blocks that lists leave out")
      ->delimiter(',');
  app.add_option("--thresholds", arguments.thresholds, "of dynamic prefill attention")
      ->delimiter(',');
  return RunBench(app, argc, argv, arguments.common,
                  [&](Backend& backend, const Ceilings& ceilings, Results& results) {
                    return PrefillBench(backend, ceilings, arguments, results).Run();
                  });
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
