#pragma once

#include <bit>
#include <cstdint>

namespace gemma {

/// A bfloat16 number as it is stored: the upper half of a float32.
struct bf16 {
  std::uint16_t bits = 0;

  friend bool operator==(bf16, bf16) = default;
};

inline float to_float(bf16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

/// Rounds to nearest, ties to even; NaN stays NaN (made quiet), infinity stays infinity.
inline bf16 to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace gemma
