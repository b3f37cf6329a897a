#pragma once

// A product's input as whole numbers, for packed weights. Their products with codes, which are whole numbers, too, are
// added up over a group exactly, in whatever order and by whatever means: so kernels for few rows and for many may
// differ in it.
//
// The numbers of 32 columns, which are one group of weights, share a scale, a power of two that leaves the largest of
// them 11 bits: at most 2^11. The error of an input is at most 2^-11 of the largest in its group; in bf16 it is up to
// 2^-8 of each. A group's sum is at most 2^23, and float32 holds all whole numbers up to 2^24. (Of normalised rows, a
// group whose largest number is below 2^-14 has fewer bits: kLeastScaleOfHalves.)
//
// For few rows, each number is two digits to the base 256, both of them signed bytes: the tensor cores multiply bytes
// as fast as bf16, and a packed weight's code is a byte already, or becomes one with a mask. What the digits give is
// put together again. Digits take as many bytes as bf16, and a lane finds what it feeds to the tensor cores for a step
// in 16 bytes. For many rows, where one weight is multiplied so often that unpacking it counts little, numbers and
// codes are float16, which holds either: nothing is to be put together (decode_many_product.cuh). Those of normalised
// rows are multiplied by their scale even before.
//
// Normalised rows are made of whole numbers once, by whoever normalises them, and so is a single row's attention where
// every block puts it together for itself. What other products and attention leave is in bf16, since nobody knows the
// largest of 32 numbers when they are made: each warp makes whole numbers of what it multiplies by.

#include <cstddef>
#include <cstdint>

#include "packed_weights.cuh"
#include "ptx.cuh"

namespace gemma {

/// Columns whose inputs have a scale of their own, and bytes of their digits.
inline constexpr int kDigitColumns = kGroupColumns;
inline constexpr int kDigitStepBytes = 2 * kDigitColumns;
static_assert(kDigitColumns == 32);

/// The middle of the float32 that are whole numbers one apart: 1.5 * 2^23. What is added to it is found in the last
/// bits.
inline constexpr float kMiddle = 12582912.0f;

/// The least scales, as powers of two; numbers whose own would be less lose bits. Of any inputs: so that the scale, and
/// its inverse, are normal numbers.
inline constexpr int kLeastScale = -123;
/// Of normalised rows: so that float16 holds their whole numbers times the scale.
inline constexpr int kLeastScaleOfHalves = -24;

/// The scale of 32 numbers.
/// @param largest_bits  of the largest magnitude
/// @return NaN if one of them is not finite
template <int kLeast>
__device__ float digit_scale(unsigned largest_bits) {
  constexpr unsigned kExponent = 1u << 23;
  if (largest_bits >= 0x7f800000u) return __uint_as_float(0x7fc00000u);
  const unsigned exponent = max(largest_bits & 0x7f800000u, (127 + 10 + kLeast) * kExponent);
  return __uint_as_float(exponent - 10 * kExponent);
}

/// A number in units of a scale, plus 128, in the lower two bytes of a float32 that is 1.5 * 2^23 more; in units of
/// NaN, anything.
__device__ inline std::uint32_t in_units_of(float scale, float x) {
  // The inverse of a power of two.
  return __float_as_uint(fmaf(x, __uint_as_float(0x7f000000u - __float_as_uint(scale)), kMiddle + 128.0f));
}
/// The same less what was added to it.
__device__ inline float whole_number(std::uint32_t number) { return __uint_as_float(number) - (kMiddle + 128.0f); }
/// The sum of some of them, less what was added to each.
template <int kCount>
__device__ int sum_in_units(const std::uint32_t (&numbers)[kCount]) {
  unsigned sum = 0;  // in units of NaN, too large for one with a sign
  for (const std::uint32_t number : numbers) sum += number;
  return static_cast<int>(sum - kCount * __float_as_uint(kMiddle + 128.0f));
}

/// The digits of the four numbers that a lane feeds to the tensor cores for 16 columns, in the order of
/// column_in_step(): of columns 2t, 2t + 8, 2t + 1 and 2t + 9.
struct FourDigits {
  std::uint32_t upper, lower;
};

/// @param first_pair   what in_units_of() gives for columns 2t and 2t + 1, as pair_of() puts them together
/// @param second_pair  the same for columns 2t + 8 and 2t + 9
__device__ inline FourDigits digits_of(std::uint32_t first_pair, std::uint32_t second_pair) {
  return {__byte_perm(first_pair, second_pair, 0x7351), __byte_perm(first_pair, second_pair, 0x6240) ^ 0x80808080u};
}
/// The lower halves of two words.
__device__ inline std::uint32_t pair_of(std::uint32_t first, std::uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}

/// The digits of a step's numbers where each thread has a unit of four neighbouring columns, and neighbouring threads
/// have neighbouring units: by all lanes of a warp. Where they belong, DigitPlace says.
__device__ inline FourDigits exchange_digits(const std::uint32_t (&numbers)[4]) {
  const bool is_second = (threadIdx.x & 2) != 0;  // 8 columns behind what the lane across has
  const std::uint32_t low = pair_of(numbers[0], numbers[1]), high = pair_of(numbers[2], numbers[3]);
  const std::uint32_t kept = is_second ? high : low;
  const std::uint32_t given = __shfl_xor_sync(~0u, is_second ? low : high, 2);
  return is_second ? digits_of(given, kept) : digits_of(kept, given);
}

/// Units of four columns in units of their groups' scales, where neighbouring threads have neighbouring ones, and eight
/// of these a whole group: by all lanes of a warp. Of all units at once, without a branch between them: lanes would
/// wait for each other again in each.
/// @tparam kHasSums  whether the groups' sums are wanted; else they are 0
/// @tparam kLeast    of digit_scale()
template <bool kHasSums, int kLeast, int kUnits>
__device__ void number_units(const float4 (&x)[kUnits], std::uint32_t (&numbers)[kUnits][4],
                             DigitGroup (&groups)[kUnits]) {
  constexpr int kGroupUnits = kDigitColumns / 4;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    // As numbers without a sign, what is not finite is largest.
    const auto magnitude = [](float value) { return __float_as_uint(value) & 0x7fffffffu; };
    unsigned largest = max(max(magnitude(x[i].x), magnitude(x[i].y)), max(magnitude(x[i].z), magnitude(x[i].w)));
#pragma unroll
    for (int offset = 1; offset < kGroupUnits; offset *= 2)
      largest = max(largest, __shfl_xor_sync(~0u, largest, offset));
    const float scale = digit_scale<kLeast>(largest);
    const float values[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) numbers[i][j] = in_units_of(scale, values[j]);
    unsigned sum = 0;
    if constexpr (kHasSums) {
      sum = static_cast<unsigned>(sum_in_units(numbers[i]));
#pragma unroll
      for (int offset = 1; offset < kGroupUnits; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    }
    groups[i] = {scale, static_cast<float>(static_cast<int>(sum)) * scale};
  }
}

/// The same, and the digits of them. Calls put(i, digits as exchange_digits() gives them, their group).
template <bool kHasSums, int kLeast, int kUnits, class Put>
__device__ void make_digits_of_units(const float4 (&x)[kUnits], const Put& put) {
  std::uint32_t numbers[kUnits][4];
  DigitGroup groups[kUnits];
  number_units<kHasSums, kLeast>(x, numbers, groups);
  FourDigits digits[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) digits[i] = exchange_digits(numbers[i]);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) put(i, digits[i], groups[i]);
}

/// The same in float16, of normalised rows: the numbers times their scale, so that the group's is 1. Calls put(i, two
/// pairs of neighbouring columns, their group).
template <bool kHasSums, int kUnits, class Put>
__device__ void make_halves_of_units(const float4 (&x)[kUnits], const Put& put) {
  std::uint32_t numbers[kUnits][4];
  DigitGroup groups[kUnits];
  number_units<kHasSums, kLeastScaleOfHalves>(x, numbers, groups);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const auto value = [&](int j) { return whole_number(numbers[i][j]) * groups[i].scale; };
    put(i, uint2{pack_f16(value(0), value(1)), pack_f16(value(2), value(3))}, DigitGroup{1, groups[i].sum});
  }
}

/// Where the digits that exchange_digits() gives for a unit of four columns lie.
struct DigitPlace {
  int step, lane;
  int half;  // of the lane's digits of the step

  __device__ explicit DigitPlace(int unit)
      : step(unit / (kDigitColumns / 4)), lane(unit % 2 * 2 + unit / 2 % 2), half(unit / 4 % 2) {}
  /// Whether the unit is the first of its group.
  __device__ static bool is_first(int unit) { return unit % (kDigitColumns / 4) == 0; }
};

/// What a lane feeds to the tensor cores for 32 columns of a row: the upper digits of its first four columns and of the
/// others, then the lower ones. As many bytes as in bf16, in the place of the same columns (operand_order()).
using LaneDigits = uint4;

/// What a lane feeds to the tensor cores for 32 columns in bf16 in units of their scale: by whole warps, of which four
/// lanes t have a row's columns.
/// @return what they have in common
/// @tparam kHasSum  whether the group's sum is wanted; else it is 0
template <bool kHasSum>
__device__ DigitGroup number_step(const uint4& step, std::uint32_t (&numbers)[8]) {
  constexpr std::uint32_t kMagnitudes = 0x7fff7fffu;
  // Of numbers without a sign, what is not finite is largest.
  std::uint32_t two = __vmaxu2(__vmaxu2(step.x & kMagnitudes, step.y & kMagnitudes),
                               __vmaxu2(step.z & kMagnitudes, step.w & kMagnitudes));
  two = __vmaxu2(two, __shfl_xor_sync(~0u, two, 1));
  two = __vmaxu2(two, __shfl_xor_sync(~0u, two, 2));
  const float scale = digit_scale<kLeastScale>(max(two & 0xffff0000u, two << 16));
  const std::uint32_t words[4] = {step.x, step.y, step.z, step.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    numbers[2 * i] = in_units_of(scale, low_half(words[i]));
    numbers[2 * i + 1] = in_units_of(scale, high_half(words[i]));
  }
  int sum = 0;
  if constexpr (kHasSum) {
    unsigned all = static_cast<unsigned>(sum_in_units(numbers));
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    sum = static_cast<int>(all);
  }
  return {scale, static_cast<float>(sum) * scale};
}

/// The same, and makes digits of them.
template <bool kHasSum>
__device__ DigitGroup make_digits(uint4& step) {
  std::uint32_t numbers[8];
  const DigitGroup group = number_step<kHasSum>(step, numbers);
  const FourDigits first = digits_of(pair_of(numbers[0], numbers[1]), pair_of(numbers[2], numbers[3]));
  const FourDigits others = digits_of(pair_of(numbers[4], numbers[5]), pair_of(numbers[6], numbers[7]));
  step = {first.upper, others.upper, first.lower, others.lower};
  return group;
}

/// The same in float16, in the places of bf16. (In units of the scale, unlike make_halves_of_units().)
template <bool kHasSum>
__device__ DigitGroup make_halves(uint4& step) {
  std::uint32_t numbers[8];
  const DigitGroup group = number_step<kHasSum>(step, numbers);
  const auto pair = [&](int i) { return pack_f16(whole_number(numbers[i]), whole_number(numbers[i + 1])); };
  step = {pair(0), pair(2), pair(4), pair(6)};
  return group;
}

/// One row of a product's input, in shared or in global memory.
struct DigitRow {
  std::byte* digits;   ///< [columns / 32, 4 lanes] of LaneDigits
  DigitGroup* groups;  ///< [columns / 32]

  /// @param unit  of four columns, as for exchange_digits()
  __device__ void put(int unit, const FourDigits& four, const DigitGroup& group) const {
    const DigitPlace place(unit);
    auto* const to = reinterpret_cast<std::uint32_t*>(digits + place.step * kDigitStepBytes + place.lane * 16);
    to[place.half] = four.upper;
    to[place.half + 2] = four.lower;
    if (DigitPlace::is_first(unit)) groups[place.step] = group;
  }
  /// Of what lane t of four has of a step, the upper digits (0) or the lower ones (1).
  __device__ uint2 read(int step, int t, int digit) const {
    return *reinterpret_cast<const uint2*>(digits + step * kDigitStepBytes + t * 16 + digit * 8);
  }
};

/// What the tensor cores add products of digits to: sums then are float32 with the sum in their last 22 bits.
__device__ inline void clear_digit_sums(int (&sums)[4]) {
  for (int& sum : sums) sum = __float_as_int(kMiddle);
}
/// What the digits of a sum give together: exactly, since it has no more than 24 bits.
__device__ inline float join_digits(int upper, int lower) {
  // 256 * (kMiddle + upper) - 257 * kMiddle, exactly.
  return fmaf(__int_as_float(upper), 256.0f, -257.0f * kMiddle) + __int_as_float(lower);
}

/// The sums of one step for up to 8 rows: of what lanes hold, whose own row is lane / 4.
/// @return  for outputs 2t and 2t + 1, with t = lane % 4
__device__ inline float2 multiply_digits(const LaneDigits& own, const std::uint32_t (&b)[2]) {
  int sums[4];
  clear_digit_sums(sums);
  multiply_accumulate(sums, own.x, own.z, own.y, own.w, b[0], b[1]);
  return {join_digits(sums[0], sums[2]), join_digits(sums[1], sums[3])};
}

/// Adds a group's part to an output's sum.
/// @param codes  what the group's codes and whole numbers give
template <WeightType kType>
__device__ float add_group(float sum, const OutputScales<kType>& weights, float codes, const DigitGroup& inputs) {
  sum = fmaf(weights.scale * inputs.scale, codes, sum);  // the inputs' is a power of two
  if constexpr (kNeedsSums<kType>) sum = fmaf(-weights.minimum, inputs.sum, sum);
  return sum;
}

/// The same for two outputs.
template <WeightType kType>
__device__ float2 add_group(float2 sums, const GroupScales<kType>& weights, float2 codes, const DigitGroup& inputs) {
  return {add_group(sums.x, OutputScales<kType>{weights.scale.x, weights.minimum.x}, codes.x, inputs),
          add_group(sums.y, OutputScales<kType>{weights.scale.y, weights.minimum.y}, codes.y, inputs)};
}

}  // namespace gemma
