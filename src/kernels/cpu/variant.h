// Variants of an operation: an ordered list, best first, of structs with `name` and `supports()`;
// the last one runs everywhere. Free function, thread-safe.
#pragma once

#include <span>

#include "base/check.h"

namespace lserve::cpu {

// The first variant that this machine runs.
template <typename Variant>
const Variant& FirstSupported(std::span<const Variant> variants) {
  for (const Variant& variant : variants) {
    if (variant.supports()) {
      return variant;
    }
  }
  CheckFailed(__FILE__, __LINE__, "the last variant runs everywhere");
}

}  // namespace lserve::cpu
