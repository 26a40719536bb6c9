// The page at /: state of the server, its models, a curl line, and a box to ask the model about a
// pasted document. One self-contained HTML text. Thread-safe.
#pragma once

#include <string>

namespace lserve {

std::string WebPage();

}  // namespace lserve
