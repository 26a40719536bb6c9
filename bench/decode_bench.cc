// Attention of one layer's decode step: the selector, the attention that it leaves, and both one
// after the other, by model shape, length, batch, cache format and selection, against the machine's
// memory bandwidth. Times are medians over recorded repetitions (graph_timer.h); bytes are those
// that the operations must read of the cache (random_layers.h).
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
  std::vector<std::string> shapes = {"needle-7m"};
  std::vector<int64_t> lengths = {16384, 65536};
  std::vector<int32_t> batches = {1};
  std::vector<std::string> formats = {"bf16"};
  std::vector<std::string> selections = {"dense", "minmax-64-4096-1", "sketch-16-512-1"};
  int64_t rotate_bytes = kRotatedBytes;
  int64_t memory_bytes = 0;
};

// "dense", or SCORE-UNIT-BUDGET-INTERVAL.
struct Selection {
  std::string name;
  PageScore score = PageScore::kNone;
  SelectionPolicy policy = {.token_budget = 0, .unit_tokens = 64, .reuse_interval = 1};
  bool dense() const { return policy.token_budget == 0; }
};

Result<Selection> ParseSelection(const std::string& name) {
  Selection selection{.name = name};
  if (name == "dense") {
    return selection;
  }
  char score[16];
  SelectionPolicy& policy = selection.policy;
  if (std::sscanf(name.c_str(), "%15[a-z]-%d-%d-%d", score, &policy.unit_tokens,
                  &policy.token_budget, &policy.reuse_interval) != 4) {
    return InvalidArgument("--selections {}: must be dense or SCORE-UNIT-BUDGET-INTERVAL", name);
  }
  selection.score = score == std::string("sketch") ? PageScore::kSketch : PageScore::kMinMax;
  if (selection.score == PageScore::kMinMax && score != std::string("minmax")) {
    return InvalidArgument("--selections {}: the score must be minmax or sketch", name);
  }
  RETURN_IF_ERROR(Validate(policy));
  return selection;
}

Result<KvFormat> ParseFormat(const std::string& name) {
  if (name == "bf16") {
    return KvFormat::kBFloat16;
  }
  if (name == "int8") {
    return KvFormat::kInt8;
  }
  if (name == "int4") {
    return KvFormat::kInt4;
  }
  return InvalidArgument("--formats {}: must be bf16, int8 or int4", name);
}

class DecodeBench {
 public:
  DecodeBench(Backend& backend, const Ceilings& ceilings, const Arguments& arguments,
              Results& results)
      : backend_(backend), ceilings_(ceilings), arguments_(arguments), results_(results) {}

  Status Run() {
    std::printf("%-12s %8s %5s %-5s %-17s %9s %9s %9s %8s %8s\n", "shape", "length", "batch",
                "cache", "selection", "select us", "attend us", "both us", "GB/s", "of memory");
    for (const std::string& shape : arguments_.shapes) {
      for (const std::string& format : arguments_.formats) {
        for (const int32_t batch : arguments_.batches) {
          for (const int64_t length : arguments_.lengths) {
            for (const std::string& name : arguments_.selections) {
              ASSIGN_OR_RETURN(const Selection selection, ParseSelection(name));
              RETURN_IF_ERROR(Row(FindLayer(shape), format, batch, length, selection));
            }
          }
        }
      }
    }
    return OkStatus();
  }

 private:
  Status Row(const LayerSizes& model, const std::string& format, int32_t batch, int64_t length,
             const Selection& selection) {
    const auto streaming = static_cast<int32_t>(
        selection.dense() ? 0 : model.streaming_share * static_cast<float>(model.kv_heads) + 0.5f);
    LayerShape shape{.q_heads = model.q_heads,
                     .kv_heads = model.kv_heads,
                     .retrieval_heads = model.kv_heads - streaming,
                     .head_dim = model.head_dim,
                     .score = selection.score,
                     .length = length,
                     .batch = batch};
    ASSIGN_OR_RETURN(shape.format, ParseFormat(format));
    // Within the budget a step asks the selector, too, which has nothing to read.
    const bool selects = !selection.dense();
    const int64_t select_bytes =
        selects && length > selection.policy.token_budget ? RandomLayers::SelectBytes(shape) : 0;
    const int64_t attend_bytes = RandomLayers::AttendBytes(shape, selection.policy);
    OrderedJson row = {{"kind", "decode"},
                       {"shape", model.name},
                       {"length", length},
                       {"batch", batch},
                       {"format", format},
                       {"selection", selection.name},
                       {"q_heads", shape.q_heads},
                       {"kv_heads", shape.kv_heads},
                       {"retrieval_heads", shape.retrieval_heads},
                       {"head_dim", shape.head_dim}};
    const int64_t memory = arguments_.memory_bytes > 0 ? arguments_.memory_bytes
                                                       : backend_.facts().free_bytes / 10 * 9;
    const int64_t layer_bytes = RandomLayers::CacheBytes(shape);
    if (layer_bytes > memory) {
      row["skipped"] = fmt::format("a layer takes {} bytes, {} are given", layer_bytes, memory);
      std::printf("%-12s %8ld %5d %-5s %-17s does not fit\n", model.name, static_cast<long>(length),
                  batch, format.c_str(), selection.name.c_str());
      results_.Add(row);
      return OkStatus();
    }
    const int64_t read = select_bytes / selection.policy.reuse_interval + attend_bytes;
    constexpr int64_t kMaxLayers = 64;
    shape.layers =
        static_cast<int32_t>(std::clamp<int64_t>((arguments_.rotate_bytes + read - 1) / read, 1,
                                                 std::min(kMaxLayers, memory / layer_bytes)));
    RandomLayers layers(backend_, shape);
    layers.StartDecode(selection.policy);
    const auto time = [&](auto append) {
      return MedianSeconds(layers.stream(), layers.decode_cycle(), append,
                           arguments_.common.timer) *
             1e6;
    };
    double select_us = 0;
    if (selects) {
      select_us = time([&](int32_t i) { layers.Select(i); });
    }
    const double attend_us = time([&](int32_t i) { layers.AttendDecode(i); });
    double both_us = attend_us;
    if (selects) {
      both_us = time([&](int32_t i) {
        layers.Select(i);
        layers.AttendDecode(i);
      });
    }
    const double gbps = static_cast<double>(read) / both_us / 1e3;
    const double share = gbps / ceilings_.memory_gbps();
    std::printf("%-12s %8ld %5d %-5s %-17s %9.1f %9.1f %9.1f %8.0f %7.0f%%\n", model.name,
                static_cast<long>(length), batch, format.c_str(), selection.name.c_str(), select_us,
                attend_us, both_us, gbps, 100 * share);
    std::fflush(stdout);
    row["layers"] = shape.layers;
    row["select_us"] = select_us;
    row["attend_us"] = attend_us;
    row["us"] = both_us;
    row["select_bytes"] = select_bytes;
    row["attend_bytes"] = attend_bytes;
    row["gbps"] = gbps;
    row["share_of_memory"] = share;
    results_.Add(row);
    return OkStatus();
  }

  Backend& backend_;
  const Ceilings& ceilings_;
  const Arguments& arguments_;
  Results& results_;
};

int Main(int argc, char** argv) {
  Arguments arguments;
  int64_t rotate_mib = arguments.rotate_bytes >> 20;
  int64_t memory_mib = 0;
  CLI::App app("attention of one layer's decode step");
  app.add_option("--shapes", arguments.shapes, "llama-3-8b, llama-2-7b, minitron-4b, needle-7m")
      ->delimiter(',')
      ->check(CLI::IsMember(LayerNames()))
      ->capture_default_str();
  app.add_option("--lengths", arguments.lengths)
      ->delimiter(',')
      ->check(CLI::Range(128, 1 << 21))
      ->capture_default_str();
  app.add_option("--batches", arguments.batches)
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--formats", arguments.formats, "bf16, int8, int4")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--selections", arguments.selections,
                 "dense, or SCORE-UNIT-BUDGET-INTERVAL: sketch-16-512-1, minmax-64-4096-4")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--rotate-mib", rotate_mib, "bytes read before a layer is read again")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--memory-mib", memory_mib, "rows that take more are skipped; 0: 9 tenths")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  return RunBench(app, argc, argv, arguments.common,
                  [&](Backend& backend, const Ceilings& ceilings, Results& results) {
                    arguments.rotate_bytes = rotate_mib << 20;
                    arguments.memory_bytes = memory_mib << 20;
                    return DecodeBench(backend, ceilings, arguments, results).Run();
                  });
}

}  // namespace
}  // namespace lserve::bench

int main(int argc, char** argv) { return lserve::bench::Main(argc, argv); }
