// Attention of one layer against the machine's ceilings: prefill of a whole prompt, chunk by chunk,
// and decode at its end, for layers with all, some or no retrieval heads. Keys, values and queries
// are random; operations are counted from the pairs that are causally visible.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/build_info.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "ceilings.h"
#include "random_layer.h"

namespace lserve::bench {
namespace {

struct Arguments {
  std::string device = "cpu";
  std::string json;
  std::vector<int64_t> lengths = {16384, 65536};
  int32_t q_heads = 8;
  int32_t kv_heads = 4;
  int32_t head_dim = 64;
  int32_t chunk = 2048;
  int32_t repeat = 3;
  int32_t threads = 0;
  std::vector<float> thresholds;
};

// KV blocks that one head's query blocks visit over a prompt.
int64_t Blocks(int64_t length, bool streaming) {
  int64_t blocks = 0;
  for (int64_t q0 = 0; q0 < length; q0 += kQueryBlockTokens) {
    const int64_t last = (std::min(q0 + kQueryBlockTokens, length) - 1) / kPageTokens;
    const int64_t local = std::max<int64_t>(q0 - 255, 0) / kPageTokens;
    const int64_t sink = std::min<int64_t>(2, local);
    blocks += streaming ? last - local + 1 + sink : last + 1;
  }
  return blocks;
}

// Prefill of a layer of retrieval heads that leaves blocks out, against the static one beside it.
// The rows are alike and the keys random, so it is the threshold that sets the density: at 1 little
// but the scores is computed.
OrderedJson ThresholdRows(RandomLayer& layer, const Arguments& arguments, int64_t length) {
  std::vector<float> thresholds = {0.0f};
  thresholds.insert(thresholds.end(), arguments.thresholds.begin(), arguments.thresholds.end());
  std::vector<RandomLayer::PrefillRun> best(thresholds.size(), {.seconds = 1e30, .blocks = {}});
  layer.AlikeQueries();
  for (int32_t i = 0; i < arguments.repeat; ++i) {
    for (size_t t = 0; t < thresholds.size(); ++t) {
      const RandomLayer::PrefillRun run = layer.Prefill({.threshold = thresholds[t]});
      best[t] = run.seconds < best[t].seconds ? run : best[t];
    }
  }
  OrderedJson rows = OrderedJson::array();
  for (size_t t = 0; t < thresholds.size(); ++t) {
    const PrefillBlocks& blocks = best[t].blocks;
    const double density = static_cast<double>(blocks.weighed) / static_cast<double>(blocks.scored);
    std::printf("%8ld threshold %-8g density %.3f %9.1f ms, %.2f of static\n",
                static_cast<long>(length), static_cast<double>(thresholds[t]), density,
                best[t].seconds * 1e3, best[t].seconds / best[0].seconds);
    rows.push_back({{"length", length},
                    {"threshold", thresholds[t]},
                    {"density", density},
                    {"prefill_ms", best[t].seconds * 1e3}});
  }
  return rows;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("attention of one layer against the machine's ceilings");
  app.add_option("--device", arguments.device)->capture_default_str();
  app.add_option("--lengths", arguments.lengths)->delimiter(',')->capture_default_str();
  app.add_option("--q-heads", arguments.q_heads)->capture_default_str();
  app.add_option("--kv-heads", arguments.kv_heads)->capture_default_str();
  app.add_option("--head-dim", arguments.head_dim)->capture_default_str();
  app.add_option("--chunk", arguments.chunk)->capture_default_str();
  app.add_option("--repeat", arguments.repeat)->capture_default_str();
  app.add_option("--threads", arguments.threads)->capture_default_str();
  app.add_option("--thresholds", arguments.thresholds, "of dynamic prefill attention")
      ->delimiter(',');
  app.add_option("--json", arguments.json);
  CLI11_PARSE(app, argc, argv);
  const auto backend = MakeBackend(arguments.device, BackendOptions{arguments.threads}).value();
  OrderedJson rows = OrderedJson::array();
  OrderedJson threshold_rows = OrderedJson::array();
  OrderedJson ceilings_json = OrderedJson::array();
  std::printf("%8s %9s %12s %12s %9s %10s %9s %10s\n", "length", "retrieval", "prefill ms",
              "GFLOP/s", "of bf16", "promised", "reached", "decode ms");
  for (const int64_t length : arguments.lengths) {
    const Ceilings ceilings = MeasureCeilings(backend->facts().threads, arguments.repeat);
    ceilings_json.push_back({{"length", length},
                             {"bf16_product_gflops", ceilings.bf16_product_gflops},
                             {"f32_product_gflops", ceilings.f32_product_gflops},
                             {"read_gbps", ceilings.read_gbps}});
    const auto n = static_cast<double>(length);
    const double dense_flop = n * (n + 1) / 2 * 4.0 * arguments.head_dim * arguments.q_heads;
    // The layers interleaved, repetition by repetition; the best of each.
    std::vector<int32_t> retrieval = {arguments.kv_heads, arguments.kv_heads - 1, 0};
    std::vector<double> prefill(3, 1e30), decode(3, 1e30);
    std::vector<std::unique_ptr<RandomLayer>> layers;
    for (const int32_t heads : retrieval) {
      layers.push_back(
          std::make_unique<RandomLayer>(*backend, LayerShape{.q_heads = arguments.q_heads,
                                                             .kv_heads = arguments.kv_heads,
                                                             .retrieval_heads = heads,
                                                             .head_dim = arguments.head_dim,
                                                             .length = length,
                                                             .chunk = arguments.chunk}));
    }
    for (int32_t i = 0; i < arguments.repeat; ++i) {
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        prefill[layer] = std::min(prefill[layer], layers[layer]->Prefill().seconds);
        for (int32_t j = 0; j < 10; ++j) {
          const auto time = layers[layer]->Decode(
              {.token_budget = layer == 0 ? 0 : 4096, .unit_tokens = 64, .reuse_interval = 1});
          decode[layer] = std::min(decode[layer], time.select + time.attend);
        }
      }
    }
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      const int64_t streaming = arguments.kv_heads - retrieval[layer];
      const double promised = static_cast<double>(arguments.kv_heads * Blocks(length, false)) /
                              static_cast<double>(retrieval[layer] * Blocks(length, false) +
                                                  streaming * Blocks(length, true));
      const double speed_up = prefill[0] / prefill[layer];
      const double gflops = dense_flop / promised / prefill[layer] / 1e9;
      std::printf("%8ld %5d of %d %12.1f %12.1f %8.0f%% %9.2fx %8.0f%% %10.3f\n",
                  static_cast<long>(length), retrieval[layer], arguments.kv_heads,
                  prefill[layer] * 1e3, gflops, 100 * gflops / ceilings.bf16_product_gflops,
                  promised, 100 * speed_up / promised, decode[layer] * 1e3);
      rows.push_back({{"length", length},
                      {"retrieval_heads", retrieval[layer]},
                      {"kv_heads", arguments.kv_heads},
                      {"prefill_ms", prefill[layer] * 1e3},
                      {"gflops", gflops},
                      {"share_of_bf16_product", gflops / ceilings.bf16_product_gflops},
                      {"promised_speed_up", promised},
                      {"speed_up", speed_up},
                      {"share_of_promise", speed_up / promised},
                      {"decode_ms", decode[layer] * 1e3}});
    }
    // The share of 0.875 of a six-layer model: one layer with one streaming head, five of them
    // only.
    const double dense_ms = 6 * prefill[0];
    const double lserve_ms = prefill[1] + 5 * prefill[2];
    const double promise =
        24.0 * static_cast<double>(Blocks(length, false)) /
        static_cast<double>(3 * Blocks(length, false) + 21 * Blocks(length, true));
    std::printf("%8ld six layers, 21 of 24 KV heads streaming: %.2fx of %.2fx promised, %.0f%%\n",
                static_cast<long>(length), dense_ms / lserve_ms, promise,
                100 * dense_ms / lserve_ms / promise);
    std::printf(
        "         ceilings: bf16 product %.0f, float32 product %.0f GFLOP/s, read %.1f GB/s\n",
        ceilings.bf16_product_gflops, ceilings.f32_product_gflops, ceilings.read_gbps);
    if (!arguments.thresholds.empty()) {
      for (const OrderedJson& row : ThresholdRows(*layers[0], arguments, length)) {
        threshold_rows.push_back(row);
      }
    }
  }
  if (!arguments.json.empty()) {
    const OrderedJson result = {{"commit", BuildCommit()},
                                {"device", backend->facts().name},
                                {"instructions", backend->facts().instructions},
                                {"threads", backend->facts().threads},
                                {"q_heads", arguments.q_heads},
                                {"kv_heads", arguments.kv_heads},
                                {"head_dim", arguments.head_dim},
                                {"chunk", arguments.chunk},
                                {"repeat", arguments.repeat},
                                {"ceilings", ceilings_json},
                                {"rows", rows},
                                {"thresholds", threshold_rows}};
    CHECK_OK(WriteFileAtomically(arguments.json, DumpJson(result)));
  }
  return 0;
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
