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

// Prints its rows and adds them to `rows`.
using MeasureRows =
    std::function<Status(Backend& backend, const Ceilings& ceilings, OrderedJson& rows)>;

// Adds the common options to the benchmark's own, parses, measures and writes the result file. To
// be returned from main.
int RunBench(CLI::App& app, int argc, char** argv, CommonArguments& arguments,
             const MeasureRows& measure);

}  // namespace lserve::bench
