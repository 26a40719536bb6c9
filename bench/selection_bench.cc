// One decode step of one layer's retrieval heads: the selector and the attention that it leaves, by
// page score, unit, budget and length, beside dense attention and the machine's read bandwidth.
// Random keys: the work does not depend on them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/build_info.h"
#include "base/file.h"
#include "base/json.h"
#include "ceilings.h"
#include "random_layer.h"

namespace lserve::bench {
namespace {

struct Configuration {
  const char* name;
  PageScore score;
  SelectionPolicy policy;
  KvFormat format = KvFormat::kBFloat16;
};

constexpr Configuration kConfigurations[] = {
    {"dense", PageScore::kNone, {0, 64, 1}},
    {"minmax 64/4096", PageScore::kMinMax, {4096, 64, 1}},
    {"minmax 16/4096", PageScore::kMinMax, {4096, 16, 1}},
    {"sketch 64/4096", PageScore::kSketch, {4096, 64, 1}},
    {"sketch 16/512", PageScore::kSketch, {512, 16, 1}},
    {"sketch int8", PageScore::kSketch, {512, 16, 1}, KvFormat::kInt8},
    {"sketch int4", PageScore::kSketch, {512, 16, 1}, KvFormat::kInt4},
    {"dense int4", PageScore::kNone, {0, 64, 1}, KvFormat::kInt4},
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

int Main(int argc, char** argv) {
  LayerShape shape{.retrieval_heads = 3};
  std::vector<int64_t> lengths = {16384, 65536};
  std::string device = "cpu";
  std::string json;
  int32_t repeat = 101;
  int32_t threads = 0;
  CLI::App app("selection and attention of one layer's decode step");
  app.add_option("--device", device)->capture_default_str();
  app.add_option("--lengths", lengths)->delimiter(',')->capture_default_str();
  app.add_option("--q-heads", shape.q_heads)->capture_default_str();
  app.add_option("--kv-heads", shape.kv_heads)->capture_default_str();
  app.add_option("--retrieval-heads", shape.retrieval_heads)->capture_default_str();
  app.add_option("--head-dim", shape.head_dim)->capture_default_str();
  app.add_option("--repeat", repeat)->capture_default_str();
  app.add_option("--threads", threads)->capture_default_str();
  app.add_option("--json", json);
  CLI11_PARSE(app, argc, argv);

  const auto backend = MakeBackend(device, BackendOptions{threads}).value();
  OrderedJson rows = OrderedJson::array();
  std::printf("%8s %-15s %10s %10s %10s %9s %8s\n", "length", "selection", "select us", "attend us",
              "sum us", "GB/s", "of read");
  for (const int64_t length : lengths) {
    const Ceilings ceilings = MeasureCeilings(backend->facts().threads, 3);
    shape.length = length;
    std::vector<std::unique_ptr<RandomLayer>> layers;
    for (const Configuration& configuration : kConfigurations) {
      shape.score = configuration.score;
      shape.format = configuration.format;
      layers.push_back(std::make_unique<RandomLayer>(*backend, shape));
    }
    // Interleaved, so that a change of the machine's speed meets all alike.
    std::vector<std::vector<double>> select(layers.size()), attend(layers.size());
    for (int32_t i = 0; i < repeat; ++i) {
      for (size_t c = 0; c < layers.size(); ++c) {
        const auto time = layers[c]->Decode(kConfigurations[c].policy);
        select[c].push_back(time.select);
        attend[c].push_back(time.attend);
      }
    }
    for (size_t c = 0; c < layers.size(); ++c) {
      const double select_us = Median(select[c]) * 1e6;
      const double attend_us = Median(attend[c]) * 1e6;
      const bool dense = kConfigurations[c].policy.token_budget == 0;
      const auto bytes = static_cast<double>(dense ? 0 : layers[c]->SelectorBytes());
      const double gbps = dense ? 0 : bytes / select_us / 1e3;
      std::printf("%8ld %-15s %10.1f %10.1f %10.1f %9.1f %7.0f%%\n", static_cast<long>(length),
                  kConfigurations[c].name, select_us, attend_us, select_us + attend_us, gbps,
                  100 * gbps / ceilings.read_gbps);
      rows.push_back({{"length", length},
                      {"selection", kConfigurations[c].name},
                      {"select_us", select_us},
                      {"attend_us", attend_us},
                      {"selector_bytes", bytes},
                      {"selector_gbps", gbps},
                      {"read_gbps", ceilings.read_gbps}});
    }
  }
  if (!json.empty()) {
    const OrderedJson result = {{"commit", BuildCommit()},
                                {"device", backend->facts().name},
                                {"instructions", backend->facts().instructions},
                                {"threads", backend->facts().threads},
                                {"q_heads", shape.q_heads},
                                {"kv_heads", shape.kv_heads},
                                {"retrieval_heads", shape.retrieval_heads},
                                {"head_dim", shape.head_dim},
                                {"repeat", repeat},
                                {"rows", rows}};
    CHECK_OK(WriteFileAtomically(json, DumpJson(result)));
  }
  return 0;
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
