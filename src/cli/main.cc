// lserve: the program. Parses the command line, runs one subcommand, prints one line on failure.
#include <cstdio>
#include <exception>
#include <vector>

#include "base/build_info.h"
#include "base/log.h"
#include "cli/command.h"

namespace lserve {
namespace {

int Main(int argc, char** argv) {
  CLI::App program("lserve: long-context LLM serving with unified sparse attention");
  program.set_version_flag("--version",
                           fmt::format("lserve {} ({})", BuildVersion(), BuildCommit()));
  program.require_subcommand(1);
  std::string log_level = "info";
  program.add_option("--log-level", log_level, "trace, debug, info, warning, error or off")
      ->capture_default_str();
  const std::vector<RegisteredCommand> commands = {
      RegisterServe(program), RegisterGenerate(program), RegisterEval(program),
      RegisterBench(program), RegisterInspect(program),  RegisterCalibrate(program)};
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return program.exit(asked);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "lserve: %s (try --help)\n", error.what());
    return 1;
  }
  Status status = InitLogging(log_level);
  for (const RegisteredCommand& command : commands) {
    if (status.ok() && command.app->parsed()) {
      status = command.run();
    }
  }
  if (!status.ok()) {
    std::fprintf(stderr, "lserve: %s\n", status.message().c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace lserve

int main(int argc, char** argv) {
  try {
    return lserve::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lserve: %s\n", error.what());
    return 1;
  }
}
