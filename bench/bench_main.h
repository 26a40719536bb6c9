// What every kernel benchmark does around its rows: common options, the backend, the ceilings of
// the run, a result file. Used by one thread.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "ceilings.h"
#include "graph_timer.h"
#include "kernels/backend.h"

namespace lserve::bench {

struct CommonArguments {
  std::string device = "cpu";
  std::string json;
  int32_t threads = 0;
  TimerOptions timer;
};

// The run's result file, if one was asked for.
class Results {
 public:
  Results(std::string path, OrderedJson header);

  // Written at once: what is there stays, whatever comes later.
  void Add(const OrderedJson& row);

 private:
  const std::string path_;
  OrderedJson result_;
};

// Measures the benchmark's rows, prints them and adds them to the results.
using MeasureRows =
    std::function<Status(Backend& backend, const Ceilings& ceilings, Results& results)>;

// Adds the common options to the benchmark's own, parses, measures and writes the result file. To
// be returned from main.
int RunBench(CLI::App& app, int argc, char** argv, CommonArguments& arguments,
             const MeasureRows& measure);

}  // namespace lserve::bench
