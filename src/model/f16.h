#pragma once

#include <bit>
#include <cstdint>

namespace gemma {

/// An IEEE 754 half-precision number as it is stored.
struct f16 {
  std::uint16_t bits = 0;
};

/// Exact: every half has a float32 of the same value.
inline float to_float(f16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // Moved into place the exponent is 112 too small; a multiplication mends it and normalises subnormal numbers.
  constexpr std::uint32_t kInfinity = 0x0f800000u;  // of a half, moved
  if (magnitude >= kInfinity) return std::bit_cast<float>(sign | magnitude | 0x7f800000u);
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f));
}

}  // namespace gemma
