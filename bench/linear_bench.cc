// Linear layers by model shape and rows: a decode step's, bound by the bandwidth of the weight, and
// a prefill step's, bound by products; "layer" is the four of one layer in a row, as a step has
// them. Weights are taken in turn (graph_timer.h). Bytes: the weight once, inputs and outputs.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench_main.h"
#include "known_layers.h"
#include "linear_layers.h"

namespace lserve::bench {
namespace {

struct Arguments {
  CommonArguments common;
  std::string shape = "needle-7m";
  std::vector<int32_t> decode_rows = {1, 2, 4, 8, 16, 32};
  std::vector<int32_t> prefill_rows = {256, 1024, 2048, 8192};
};

struct Layer {
  const char* name;
  int64_t out_features;
  int64_t in_features;
  Epilogue epilogue;
};

std::vector<Layer> LayersOf(const LayerSizes& model) {
  const int64_t hidden = model.hidden;
  const int64_t q = int64_t{model.q_heads} * model.head_dim;
  const int64_t kv = int64_t{model.kv_heads} * model.head_dim;
  return {{"qkv", q + 2 * kv, hidden, Epilogue::kNone},
          {"o", hidden, q, Epilogue::kResidual},
          {"gate_up", 2 * int64_t{model.intermediate}, hidden, Epilogue::kSiluMul},
          {"down", hidden, model.intermediate, Epilogue::kResidual},
          {"lm_head", model.vocab_size, hidden, Epilogue::kNone}};
}

class LinearBench {
 public:
  LinearBench(Backend& backend, const Ceilings& ceilings, const Arguments& arguments,
              Results& results)
      : backend_(backend), ceilings_(ceilings), arguments_(arguments), results_(results) {}

  Status Run() {
    std::printf("%-12s %-8s %-8s %6s %10s %8s %9s %9s %9s  %s\n", "shape", "layer", "kind", "rows",
                "us", "GB/s", "of memory", "TFLOP/s", "of bf16", "variant");
    std::vector<std::unique_ptr<LinearLayers>> layer;
    for (const Layer& linear : LayersOf(FindLayer(arguments_.shape))) {
      const bool head = linear.name == std::string("lm_head");
      LinearShape shape{.out_features = linear.out_features,
                        .in_features = linear.in_features,
                        .epilogue = linear.epilogue};
      shape.copies = static_cast<int32_t>(
          std::clamp<int64_t>(kRotatedBytes / shape.weight_bytes() + 1, 1, 16));
      shape.rows = *std::max_element(arguments_.decode_rows.begin(), arguments_.decode_rows.end());
      if (!head && !arguments_.prefill_rows.empty()) {
        shape.rows = std::max(shape.rows, *std::max_element(arguments_.prefill_rows.begin(),
                                                            arguments_.prefill_rows.end()));
      }
      layer.push_back(std::make_unique<LinearLayers>(backend_, shape));
      LinearLayers& layers = *layer.back();
      const auto time = [&](RowKind kind, int32_t rows) {
        layers.Start(kind, rows);
        const double seconds = MedianSeconds(
            layers.stream(), shape.copies, [&](int32_t i) { layers.Run(i); },
            arguments_.common.timer);
        AddRow(linear.name, kind, rows, {&layers.shape()}, seconds, layers.variant());
      };
      for (const int32_t rows : arguments_.decode_rows) {
        time(head ? RowKind::kLogits : RowKind::kDecode, rows);
      }
      if (head) {
        layer.pop_back();
        continue;
      }
      for (const int32_t rows : arguments_.prefill_rows) {
        time(RowKind::kPrefill, rows);
      }
    }
    TimeLayers(layer, RowKind::kDecode, arguments_.decode_rows);
    TimeLayers(layer, RowKind::kPrefill, arguments_.prefill_rows);
    return OkStatus();
  }

 private:
  void TimeLayers(const std::vector<std::unique_ptr<LinearLayers>>& layer, RowKind kind,
                  const std::vector<int32_t>& row_counts) {
    std::vector<const LinearShape*> shapes;
    int32_t copies = 1;
    for (const auto& linear : layer) {
      shapes.push_back(&linear->shape());
      copies = std::max(copies, linear->shape().copies);
    }
    for (const int32_t rows : row_counts) {
      for (const auto& linear : layer) {
        linear->Start(kind, rows);
      }
      Stream& stream = layer[0]->stream();
      const double seconds = MedianSeconds(
          stream, copies,
          [&](int32_t i) {
            for (const auto& linear : layer) {
              linear->Run(i, stream);
            }
          },
          arguments_.common.timer);
      AddRow("layer", kind, rows, shapes, seconds, "");
    }
  }

  void AddRow(const char* name, RowKind kind, int32_t rows,
              const std::vector<const LinearShape*>& shapes, double seconds, const char* variant) {
    const char* kind_name = kind == RowKind::kPrefill ? "prefill" : "decode";
    double bytes = 0;
    double flop = 0;
    for (const LinearShape* shape : shapes) {
      const int64_t out_bytes = shape->columns() * (kind == RowKind::kLogits ? 4 : 2);
      bytes +=
          static_cast<double>(shape->weight_bytes() + rows * (2 * shape->in_features + out_bytes));
      flop += 2.0 * rows * static_cast<double>(shape->out_features * shape->in_features);
    }
    const double gbps = bytes / seconds / 1e9;
    const double gflops = flop / seconds / 1e9;
    const double of_memory = gbps / ceilings_.memory_gbps();
    const double of_product =
        ceilings_.bf16_product_gflops > 0 ? gflops / ceilings_.bf16_product_gflops : 0;
    std::printf("%-12s %-8s %-8s %6d %10.1f %8.0f %8.0f%% %9.2f %8.0f%%  %s\n",
                arguments_.shape.c_str(), name, kind_name, rows, seconds * 1e6, gbps,
                100 * of_memory, gflops / 1e3, 100 * of_product, variant);
    std::fflush(stdout);
    results_.Add({{"kind", "linear"},
                  {"shape", arguments_.shape},
                  {"layer", name},
                  {"row_kind", kind_name},
                  {"rows", rows},
                  {"variant", variant},
                  {"us", seconds * 1e6},
                  {"bytes", bytes},
                  {"gbps", gbps},
                  {"share_of_memory", of_memory},
                  {"tflops", gflops / 1e3},
                  {"share_of_bf16_product", of_product}});
  }

  Backend& backend_;
  const Ceilings& ceilings_;
  const Arguments& arguments_;
  Results& results_;
};

int Main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("linear layers of a model's shape");
  app.add_option("--shape", arguments.shape, "llama-3-8b, llama-2-7b, minitron-4b, needle-7m")
      ->check(CLI::IsMember(LayerNames()))
      ->capture_default_str();
  app.add_option("--decode-rows", arguments.decode_rows)
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--prefill-rows", arguments.prefill_rows)
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  return RunBench(app, argc, argv, arguments.common,
                  [&](Backend& backend, const Ceilings& ceilings, Results& results) {
                    return LinearBench(backend, ceilings, arguments, results).Run();
                  });
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
