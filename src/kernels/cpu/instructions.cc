#include "kernels/cpu/instructions.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <dnnl.hpp>
#include <iterator>
#include <string_view>

#include "hwy/targets.h"

namespace lserve::cpu {
namespace {

// Weakest first; what Highway must leave out, and oneDNN's word for it.
struct InstructionLevel {
  std::string_view name;
  int64_t highway_disabled;
  dnnl::cpu_isa one_dnn;
};

constexpr int64_t kHighwayAvx512 = HWY_AVX3 | HWY_AVX3_DL;
constexpr InstructionLevel kLevels[] = {
    {"ssse3", kHighwayAvx512 | HWY_AVX2, dnnl::cpu_isa::sse41},
    {"avx2", kHighwayAvx512, dnnl::cpu_isa::avx2},
    {"avx512", 0, dnnl::cpu_isa::avx512_core},
    {"avx512bf16", 0, dnnl::cpu_isa::avx512_core_bf16},
    {"amx", 0, dnnl::cpu_isa::all},
};

std::string_view LimitName() {
  const char* name = std::getenv("LSERVE_MAX_CPU_ISA");
  return name == nullptr ? "" : name;
}

// The level that the environment names; the last one without a name, null for an unknown one.
const InstructionLevel* Limit() {
  static const InstructionLevel* const limit = [] {
    const std::string_view name = LimitName();
    const InstructionLevel* level =
        std::find_if(std::begin(kLevels), std::end(kLevels),
                     [&](const InstructionLevel& candidate) { return candidate.name == name; });
    return name.empty() ? std::end(kLevels) - 1 : level == std::end(kLevels) ? nullptr : level;
  }();
  return limit;
}

bool Allows(std::string_view name) {
  const InstructionLevel* level = Limit();
  return level != nullptr &&
         std::any_of(std::begin(kLevels), level + 1,
                     [&](const InstructionLevel& allowed) { return allowed.name == name; });
}

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

Status ApplyInstructionLimit() {
  const InstructionLevel* level = Limit();
  if (level == nullptr) {
    return InvalidArgument(
        "LSERVE_MAX_CPU_ISA is \"{}\": give ssse3, avx2, avx512, avx512bf16 or amx", LimitName());
  }
  if (level != std::end(kLevels) - 1) {
    hwy::DisableTargets(level->highway_disabled);
    // Refused once oneDNN is in use; a second backend finds the limit set.
    (void)dnnl::set_max_cpu_isa(level->one_dnn);
  }
  return OkStatus();
}

bool HasAvx512() {
  static const bool has = Allows("avx512") && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has;
}

bool HasAvx512Bf16() {
  static const bool has = HasAvx512() && Allows("avx512bf16") &&
                          __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
}

bool HasAmxBf16() {
  static const bool has = Allows("amx") && DetectAmxBf16();
  return has;
}

std::string InstructionSummary() {
  std::string summary = HasAvx512()                                        ? "avx512"
                        : Allows("avx2") && __builtin_cpu_supports("avx2") ? "avx2"
                                                                           : "ssse3";
  if (HasAvx512Bf16()) {
    summary += ", avx512bf16";
  }
  if (HasAmxBf16()) {
    summary += ", amx";
  }
  return summary;
}

}  // namespace lserve::cpu
