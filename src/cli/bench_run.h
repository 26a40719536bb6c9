// What lserve bench measures: one run of one mode at one length. Single-threaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/loaded_model.h"
#include "engine/memory_report.h"
#include "engine/settings.h"

namespace lserve {

struct BenchArguments {
  std::string model;  // or
  std::string shape;
  std::string fill = "prompt";
  Settings settings;
  std::vector<int64_t> lengths = {4096, 32768};
  int64_t decode_tokens = 64;
  int64_t batch = 1;
  int64_t repeat = 3;
  uint64_t seed = 1;
  std::string json;
};

// One run of a row.
struct Measurement {
  double fill_ms = 0;             // until the contexts are there: by prefill, unless --fill random
  std::vector<double> decode_ms;  // one a step
  int64_t kv_bytes = 0;
  int64_t resident_bytes = 0;
  int64_t device_bytes = 0;  // in use of a device's own memory, else 0
  MemoryReport memory;       // at the start
  PrefillBlocks blocks;      // in dynamic prefill attention
};

// `batch` sequences of `length` tokens each after decoding, on a runner of their own. Errors:
// kResourceExhausted if they do not fit; those of the runner.
Result<Measurement> MeasureRun(const LoadedModel& model, const std::string& attention,
                               const BenchArguments& arguments, int64_t length);

}  // namespace lserve
