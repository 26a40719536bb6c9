// Which instruction sets the variants may use, found once by CPUID. Free functions, thread-safe.
#pragma once

#include <string>

namespace lserve::cpu {

// AVX-512 F, BW, DQ and VL, which oneDNN needs for bf16 products.
bool HasAvx512();
// The bf16 dot product of AVX-512.
bool HasAvx512Bf16();
// Tile products in bf16, with the kernel's permission to use the tile registers (asked for here).
bool HasAmxBf16();

// The best of each kind, for people: "avx2", "avx512", "avx512, avx512bf16, amx".
std::string InstructionSummary();

}  // namespace lserve::cpu
