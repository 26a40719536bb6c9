// What was built. Thread-safe.
#pragma once

namespace lserve {

// The commit, 12 hex digits, with "-dirty" if the tree had changes; "unknown" outside a checkout.
const char* BuildCommit();

// "0.1.0"
const char* BuildVersion();

}  // namespace lserve
