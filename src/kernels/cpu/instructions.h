// Which instruction sets the variants may use: found once by CPUID, cut off above the environment's
// LSERVE_MAX_CPU_ISA (ssse3, avx2, avx512, avx512bf16 or amx), which shows on one machine what
// another one computes. Free functions, thread-safe.
#pragma once

#include <string>

#include "base/status.h"

namespace lserve::cpu {

// Holds Highway and oneDNN to the limit too; before their first use. Refuses an unknown name.
Status ApplyInstructionLimit();

// AVX-512 F, BW, DQ and VL, which oneDNN needs for bf16 products.
bool HasAvx512();
// The bf16 and the byte dot products of AVX-512 (no processor has the first alone).
bool HasAvx512Bf16();
// Tile products in bf16, with the kernel's permission to use the tile registers (asked for here).
bool HasAmxBf16();

// The best of each kind, for people: "avx2", "avx512", "avx512, avx512bf16, amx".
std::string InstructionSummary();

}  // namespace lserve::cpu
