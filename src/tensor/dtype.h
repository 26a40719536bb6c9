// Element types and their scalar conversions. Free functions and values; usable in device code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace lserve {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kInt32, kUInt8 };

constexpr int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kUInt8: return 1;
  }
  return 0;
}

constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kInt32: return "int32";
    case DType::kUInt8: return "uint8";
  }
  return "unknown";
}

// A bfloat16 as stored: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2);

// An IEEE half as stored.
struct Float16 {
  uint16_t bits;
};
static_assert(sizeof(Float16) == 2);

constexpr float ToFloat(float x) { return x; }

constexpr float ToFloat(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

constexpr float ToFloat(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1Fu;
  const uint32_t mantissa = x.bits & 0x3FFu;
  if (exponent == 0x1F) {
    return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * (1.0f / 16777216.0f);
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even; a NaN stays a NaN.
constexpr BFloat16 ToBFloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <typename T>
constexpr T FromFloat(float x);
template <>
constexpr float FromFloat<float>(float x) {
  return x;
}
template <>
constexpr BFloat16 FromFloat<BFloat16>(float x) {
  return ToBFloat16(x);
}

// x as it reads back after being stored in bfloat16.
constexpr float RoundToBFloat16(float x) { return ToFloat(ToBFloat16(x)); }

}  // namespace lserve
