#include "bench_main.h"

#include <cstdio>
#include <memory>
#include <utility>

#include "base/build_info.h"
#include "base/file.h"

namespace lserve::bench {
namespace {

Status Measure(const CommonArguments& arguments, const MeasureRows& measure) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                   MakeBackend(arguments.device, BackendOptions{arguments.threads}));
  const Ceilings ceilings = MeasureCeilings(*backend, 5);
  Results results(arguments.json, {{"commit", BuildCommit()},
                                   {"device", backend->facts().name},
                                   {"instructions", backend->facts().instructions},
                                   {"threads", backend->facts().threads},
                                   {"ceilings",
                                    {{"bf16_product_gflops", ceilings.bf16_product_gflops},
                                     {"bf16_product_variant", ceilings.bf16_product_variant},
                                     {"f32_product_gflops", ceilings.f32_product_gflops},
                                     {"copy_gbps", ceilings.copy_gbps},
                                     {"read_gbps", ceilings.read_gbps}}},
                                   {"runs", arguments.timer.runs}});
  RETURN_IF_ERROR(measure(*backend, ceilings, results));
  std::printf("ceilings: copy %.0f, read %.0f GB/s, bf16 product %.3f TFLOP/s\n",
              ceilings.copy_gbps, ceilings.read_gbps, ceilings.bf16_product_gflops / 1e3);
  return OkStatus();
}

}  // namespace

Results::Results(std::string path, OrderedJson header)
    : path_(std::move(path)), result_(std::move(header)) {
  result_["rows"] = OrderedJson::array();
}

void Results::Add(const OrderedJson& row) {
  result_["rows"].push_back(row);
  if (!path_.empty()) {
    CHECK_OK(WriteFileAtomically(path_, DumpJson(result_)));
  }
}

int RunBench(CLI::App& app, int argc, char** argv, CommonArguments& arguments,
             const MeasureRows& measure) {
  app.add_option("--device", arguments.device)->capture_default_str();
  app.add_option("--runs", arguments.timer.runs, "of which the median counts")
      ->check(CLI::Range(1, 10001))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads)->capture_default_str();
  app.add_option("--json", arguments.json);
  CLI11_PARSE(app, argc, argv);
  if (const Status status = Measure(arguments, measure); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  return 0;
}

}  // namespace lserve::bench
