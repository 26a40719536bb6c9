// Codes of closed pages (sketch.h, boxed.h): written when a page closes, read back by attention.
// Free functions, thread-safe for different heads.
#pragma once

#include <cstdint>

#include "kernels/cpu/page_layout.h"

namespace lserve::cpu {

// Writes box and codes of a head's 64 keys, which are given in full: the sketch, and in a boxed
// format the planes below it.
void WriteKeyCodes(const KvPageLayout& layout, const uint16_t* keys, const HeadCodes& codes);

// Writes grids and codes of a head's 64 values, which are given in full, in a boxed page.
void WriteValueCodes(const KvPageLayout& layout, const uint16_t* values, const HeadCodes& codes);

// Reads 16-token units [first, first + units) of a head in a boxed page back to bf16, in the order
// of units in full.
void ReadBackUnits(const KvPageLayout& layout, const HeadCodes& codes, int32_t first, int32_t units,
                   uint16_t* keys, uint16_t* values);

}  // namespace lserve::cpu
