#pragma once

#include <bit>
#include <cstdint>

namespace gemma {

/// An IEEE 754 half-precision number as it is stored.
struct f16 {
  std::uint16_t bits = 0;

  friend bool operator==(f16, f16) = default;
};

inline constexpr float kLargestF16 = 65504;

/// Exact: every half has a float32 of the same value.
inline float to_float(f16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // Moved into place the exponent is 112 too small; a multiplication mends it and normalises subnormal numbers.
  constexpr std::uint32_t kInfinity = 0x0f800000u;  // of a half, moved
  if (magnitude >= kInfinity) return std::bit_cast<float>(sign | magnitude | 0x7f800000u);
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f));
}

/// Rounds to nearest, ties to even; what is too large becomes infinity, NaN stays NaN.
inline f16 to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t kOverflow = 0x477ff000u;  // 65520, halfway from the largest half to the next there would be
  constexpr std::uint32_t kNormal = 0x38800000u;    // 2^-14, the smallest normal half
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= kOverflow) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < kNormal) {
    // Adding a half rounds to its last place, 2^-24, which is that of subnormal halves, too.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

}  // namespace gemma
