#include "kernels/cpu/instructions.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lserve::cpu {
namespace {

bool DetectAmxBf16() {
  // The compiler's CPU test knows AMX only in later releases: leaf 7, EDX bits 22 (bf16), 24
  // (tile).
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) {
    return false;
  }
  constexpr unsigned kBits = (1u << 22) | (1u << 24);
  if ((edx & kBits) != kBits || !HasAvx512Bf16()) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool HasAvx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has;
}

bool HasAvx512Bf16() {
  static const bool has = HasAvx512() && __builtin_cpu_supports("avx512bf16");
  return has;
}

bool HasAmxBf16() {
  static const bool has = DetectAmxBf16();
  return has;
}

std::string InstructionSummary() {
  std::string summary = HasAvx512() ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "ssse3";
  if (HasAvx512Bf16()) {
    summary += ", avx512bf16";
  }
  if (HasAmxBf16()) {
    summary += ", amx";
  }
  return summary;
}

}  // namespace lserve::cpu
