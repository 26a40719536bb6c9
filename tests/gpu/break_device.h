// A device that fails for good, for tests of what the program does then. Thread-safe.
#pragma once

#include <string>

namespace lserve {

// Runs a kernel that traps on the first GPU. From then on every call of this process to it fails
// with the error whose words are returned.
std::string BreakDevice();

}  // namespace lserve
