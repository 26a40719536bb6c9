#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace lserve {

Status InitLogging(const std::string& level) {
  const auto parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return InvalidArgument(
        "log level \"{}\" is none of trace, debug, info, warning, error, critical, off", level);
  }
  auto logger = spdlog::get("lserve");
  if (logger == nullptr) {
    logger = spdlog::stderr_color_mt("lserve");
  }
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  logger->set_level(parsed);
  spdlog::set_default_logger(logger);
  return OkStatus();
}

}  // namespace lserve
