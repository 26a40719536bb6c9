// Random identifiers of requests and answers. Free functions, thread-safe.
#pragma once

#include <string>

namespace lserve {

// `digits` random hexadecimal digits; unique, not secret.
std::string RandomHex(int digits);

}  // namespace lserve
