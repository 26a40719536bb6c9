// The report of an evaluation as one HTML page: style and pictures inside, nothing loaded from
// elsewhere, all text escaped. Free function, thread-safe.
#pragma once

#include <string>

#include "eval/report.h"

namespace lserve {

std::string ToHtml(const EvalReport& report);

}  // namespace lserve
