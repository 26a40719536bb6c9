// The key sketch of a page that closes. Free function, thread-safe for different heads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kv_layout.h"

namespace lserve::cpu {

// Writes box and codes of one head from the 64 keys that stand in the page (page_layout.h).
void WriteSketch(const KvPageLayout& layout, int32_t head, std::byte* page);

}  // namespace lserve::cpu
