#pragma once

// A product's input as whole numbers, for packed weights. The tensor cores multiply bytes as fast as bf16, and a packed
// weight's code is a byte already, or becomes one with a mask.
//
// The numbers of 32 columns, which are one group of weights, share a scale, a power of two that makes the largest of
// them have 14 bits. Each is two digits to the base 256, both of them signed bytes. What the digits give is put
// together again in whole numbers, so that nothing is rounded before the sum over the group is. The error of an input
// is below 2^-14 of the largest in its group; in bf16 it is up to 2^-8 of each.
//
// Digits take as many bytes as bf16, and a lane finds what it feeds to the tensor cores for a step in 16 bytes.

#include <cstddef>
#include <cstdint>

#include "packed_weights.cuh"
#include "ptx.cuh"

namespace gemma {

/// Columns whose inputs have a scale of their own, and bytes of their digits.
inline constexpr int kDigitColumns = kGroupColumns;
inline constexpr int kDigitStepBytes = 2 * kDigitColumns;
static_assert(kDigitColumns == 32);

/// The scale of 32 numbers.
/// @param largest_bits  of the largest magnitude
/// @return NaN if one of them is not finite
__device__ inline float digit_scale(unsigned largest_bits) {
  constexpr unsigned kExponent = 1u << 23;
  if (largest_bits >= 0x7f800000u) return __uint_as_float(0x7fc00000u);
  // So that the scale, and its inverse, are normal numbers: what is below 2^-113 loses bits.
  const unsigned exponent = max(largest_bits & 0x7f800000u, 14 * kExponent);
  return __uint_as_float(exponent - 13 * kExponent);
}

/// A number in units of a scale; in units of NaN, any.
__device__ inline int in_units_of(float scale, float x) {
  // The inverse of a power of two.
  return __float2int_rn(__fmul_rn(x, __uint_as_float(0x7f000000u - __float_as_uint(scale))));
}

/// Four neighbouring numbers in units of their group's scale.
struct FourInUnits {
  int values[4];

  /// Without a sign, since in units of NaN it may be too large for one.
  __device__ unsigned sum() const {
    unsigned sum = 0;
    for (const int value : values) sum += static_cast<unsigned>(value);
    return sum;
  }
};

/// Where a number's digits lie among those that a lane has of a step.
/// @return  the byte of the upper one; the lower one lies four bytes behind
__device__ inline int digit_byte(int column) {
  const int index = index_in_lane<WeightType::kQ8>(column % kDigitColumns);
  return index / 4 * 8 + index % 4;
}
__device__ inline std::byte upper_digit(int value) {
  return static_cast<std::byte>((static_cast<unsigned>(value) + 128) >> 8);
}
__device__ inline std::byte lower_digit(int value) { return static_cast<std::byte>(value); }

/// What the digits of a sum give together.
__device__ inline int join_digits(int upper, int lower) { return upper * 256 + lower; }

/// What a lane feeds to the tensor cores for 32 columns of a row: of its first four columns, in the order of
/// column_in_step(), the upper digits and then the lower ones; the same of the others.
using LaneDigits = uint4;

/// One row of a product's input, in shared or in global memory.
struct DigitRow {
  static constexpr bool kMayBeBf16 = false, kMayBeDigits = true;

  std::byte* digits;   ///< [columns / 32, 4 lanes] of LaneDigits
  DigitGroup* groups;  ///< [columns / 32]

  /// @param column  the first of four: a multiple of 4
  __device__ void put(int column, const FourInUnits& four, const DigitGroup& group) const {
    std::byte* const step = digits + column / kDigitColumns * kDigitStepBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::byte* const to = step + (column + i) % 8 / 2 * 16 + digit_byte(column + i);
      to[0] = upper_digit(four.values[i]);
      to[4] = lower_digit(four.values[i]);
    }
    if (column % kDigitColumns == 0) groups[column / kDigitColumns] = group;
  }
  __device__ static constexpr bool are_digits() { return true; }
  __device__ const DigitRow& in_digits() const { return *this; }
  __device__ LaneDigits read(int step) const {
    return *reinterpret_cast<const LaneDigits*>(digits + step * kDigitStepBytes + threadIdx.x % 4 * 16);
  }
};

/// Rows of a product's input.
struct DigitOperand {
  static constexpr bool kMayBeBf16 = false, kMayBeDigits = true;

  DigitRow first;
  int pitch;        ///< bytes from a row's digits to the next one's
  int group_pitch;  ///< from a row's groups to the next one's

  __device__ static constexpr bool are_digits() { return true; }
  __device__ const DigitOperand& in_digits() const { return *this; }
  __device__ DigitRow row(int i) const {
    return {first.digits + static_cast<std::size_t>(i) * pitch,
            first.groups + static_cast<std::size_t>(i) * group_pitch};
  }
};

/// The sums of one step for the only row: of what lanes hold, whose own row is lane / 4.
/// @return  for outputs 2t and 2t + 1, with t = lane % 4
__device__ inline int2 multiply_digits(const LaneDigits& own, const std::uint32_t (&b)[2]) {
  int sums[4] = {};
  multiply_accumulate(sums, own.x, own.y, own.z, own.w, b[0], b[1]);
  return {join_digits(sums[0], sums[2]), join_digits(sums[1], sums[3])};
}

/// The same for the rows lane / 4 (`upper`) and lane / 4 + 8 (`lower`).
struct DigitSums {
  int2 upper, lower;
};
__device__ inline DigitSums multiply_digits(const std::uint32_t (&upper_digits)[4],
                                            const std::uint32_t (&lower_digits)[4], const std::uint32_t (&b)[2]) {
  int upper[4] = {}, lower[4] = {};
  multiply_accumulate(upper, upper_digits[0], upper_digits[1], upper_digits[2], upper_digits[3], b[0], b[1]);
  multiply_accumulate(lower, lower_digits[0], lower_digits[1], lower_digits[2], lower_digits[3], b[0], b[1]);
  return {{join_digits(upper[0], lower[0]), join_digits(upper[1], lower[1])},
          {join_digits(upper[2], lower[2]), join_digits(upper[3], lower[3])}};
}

/// Adds a group's part to the sums of two outputs.
/// @param is_there  whether there is one: else codes and scales are anything
template <WeightType kType>
__device__ float2 add_group(float2 sums, const GroupScales<kType>& weights, int2 codes, const DigitGroup& inputs,
                            bool is_there = true) {
  float2 terms = weights.apply({static_cast<float>(codes.x), static_cast<float>(codes.y)}, inputs.sum);
  terms = {is_there ? terms.x : 0, is_there ? terms.y : 0};  // a branch would keep steps from being interleaved
  return {fmaf(terms.x, inputs.scale, sums.x), fmaf(terms.y, inputs.scale, sums.y)};
}

}  // namespace gemma
