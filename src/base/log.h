// The program's log: spdlog to standard error. LOG level comes from `--log-level`. Thread-safe.
// Never logs prompts or generated text.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "base/status.h"

namespace lserve {

// Sets pattern and level for the process. `level`: trace, debug, info, warning, error, off.
Status InitLogging(const std::string& level);

}  // namespace lserve
