#pragma once

// Quantised weights as the GPU keeps and streams them.
//
// A matrix is cut into tiles of 8 outputs (MatrixShape), and a tile into units of 256 columns, the last one filled up
// with zeros. Units lie one behind the other, tile by tile: whatever run of units is streamed is one run of bytes. A
// unit has what its weights are scaled by and then their codes, in the order in which the lanes of a warp feed them to
// the tensor cores, step by step of 32 columns: what a lane needs for several steps are 16 bytes.
//
//   q8, 2176 bytes: scales, f16 [8 steps][8 outputs]
//                   codes, int8 [4 pairs of steps][32 lanes][2 steps][8]
//   q4, 1184 bytes: d and m, f16 [4 pairs of outputs][d, d, m, m]
//                   scales and minimums, uint8 [8 steps][4 pairs of outputs][scale, scale, minimum, minimum]
//                   codes, 4 bits each [2 quads of steps][32 lanes][4 steps][8]
//
// Lane l holds output l / 4 of the tile and, of each 32 columns, those 8 that a lane t = l % 4 of operand_order() feeds
// to the tensor cores: column_in_step() says which of them is which. So the order of activations is the same for
// weights of all types. Codes are whole numbers that bf16 holds exactly; sums over a step are scaled in float32.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "decode.cuh"
#include "model/model.h"

#ifdef __CUDACC__
#include "ptx.cuh"
#endif

namespace gemma {

inline constexpr int kUnitColumns = 256;
inline constexpr int kUnitSteps = kUnitColumns / kGroupColumns;
static_assert(kUnitColumns == kBlockColumns && kUnitSteps == 8);

#ifdef __CUDACC__
#define GEMMA_HOST_DEVICE __host__ __device__
#else
#define GEMMA_HOST_DEVICE
#endif

/// Where the parts of a unit lie, in bytes from its begin.
template <WeightType kType>
struct UnitLayout;

template <>
struct UnitLayout<WeightType::kQ8> {
  static constexpr int kStepsInLoad = 2;  ///< whose codes a lane reads at once
  static constexpr int kScales = 0;
  static constexpr int kCodes = kUnitSteps * kPieceRows * 2;
  static constexpr int kBytes = kCodes + kUnitSteps * 32 * 8;
};

template <>
struct UnitLayout<WeightType::kQ4> {
  static constexpr int kStepsInLoad = 4;
  static constexpr int kFactors = 0;  ///< d and m
  static constexpr int kScales = kPieceRows / 2 * 8;
  static constexpr int kCodes = kScales + kUnitSteps * kPieceRows / 2 * 4;
  static constexpr int kBytes = kCodes + kUnitSteps * 32 * 4;
};

static_assert(UnitLayout<WeightType::kQ8>::kBytes == 2176 && UnitLayout<WeightType::kQ4>::kBytes == 1184);

/// @param type  kQ8 or kQ4
GEMMA_HOST_DEVICE constexpr int unit_bytes(WeightType type) {
  return type == WeightType::kQ8 ? UnitLayout<WeightType::kQ8>::kBytes : UnitLayout<WeightType::kQ4>::kBytes;
}

GEMMA_HOST_DEVICE inline int units_in_tile(int columns) { return (columns + kUnitColumns - 1) / kUnitColumns; }

/// Bytes of a packed matrix of rows [outputs, columns].
inline std::size_t packed_bytes(WeightType type, int outputs, int columns) {
  const auto tiles = static_cast<std::size_t>((outputs + kPieceRows - 1) / kPieceRows);
  return tiles * static_cast<std::size_t>(units_in_tile(columns)) * static_cast<std::size_t>(unit_bytes(type));
}

/// Which output of a matrix is row `row` of a tile (MatrixShape); it may lie behind the last one.
GEMMA_HOST_DEVICE inline int output_of(const MatrixShape& shape, int tile, int row) {
  if (!shape.is_gate_up) return tile * kPieceRows + row;
  constexpr int kHalf = kPieceRows / 2;
  const int output = tile * kHalf + row % kHalf;
  // A last tile that is not full has gates behind the last gate: no row of `up`.
  if (output >= shape.outputs / 2) return shape.outputs;
  return row / kHalf * (shape.outputs / 2) + output;
}

/// The column, of the 32 of a step, whose code is the `index`-th of the 8 that lane l has of it, with t = l % 4.
template <WeightType kType>
GEMMA_HOST_DEVICE constexpr int column_in_step(int t, int index) {
  // The tensor cores take four pairs of neighbouring columns: pair i is 2t + 8i and the next. In q8, a word of four
  // bytes has two pairs, each in every other byte; in q4, the even codes of a word are what q8 has in its first word,
  // the odd ones what it has in its second.
  const int pair = kType == WeightType::kQ8 ? index / 4 * 2 + index % 2 : index % 2 * 2 + index / 2 % 2;
  const int upper = kType == WeightType::kQ8 ? index / 2 % 2 : index / 4;
  return 2 * t + 8 * pair + upper;
}

/// The inverse of column_in_step. @param column  of a step; its lane has t = column % 8 / 2
template <WeightType kType>
GEMMA_HOST_DEVICE constexpr int index_in_lane(int column) {
  const int pair = column / 8;
  const int upper = column % 2;
  return kType == WeightType::kQ8 ? pair / 2 * 4 + upper * 2 + pair % 2 : upper * 4 + pair % 2 * 2 + pair / 2;
}

/// Byte of a unit that holds a code; in q4, index_in_lane() % 2 says which half of it (0: the low one).
/// @param row     of the tile
/// @param column  of the unit
template <WeightType kType>
GEMMA_HOST_DEVICE constexpr int code_byte(int row, int column) {
  using Layout = UnitLayout<kType>;
  constexpr int kLaneBytes = 16 / Layout::kStepsInLoad;  // of a step
  const int step = column / kGroupColumns;
  const int lane = row * 4 + column % 8 / 2;
  const int index = index_in_lane<kType>(column % kGroupColumns);
  return Layout::kCodes + step / Layout::kStepsInLoad * 512 + lane * 16 + step % Layout::kStepsInLoad * kLaneBytes +
         (kType == WeightType::kQ8 ? index : index / 2);
}

/// Byte of a q8 unit that holds a group's scale.
GEMMA_HOST_DEVICE constexpr int q8_scale_byte(int row, int step) {
  return UnitLayout<WeightType::kQ8>::kScales + (step * kPieceRows + row) * 2;
}

/// Bytes of a q4 unit that hold a group's scale (is_minimum: its minimum), and a row's d (is_minimum: its m).
GEMMA_HOST_DEVICE constexpr int q4_scale_byte(int row, int step, bool is_minimum) {
  return UnitLayout<WeightType::kQ4>::kScales + (step * (kPieceRows / 2) + row / 2) * 4 + (is_minimum ? 2 : 0) +
         row % 2;
}
GEMMA_HOST_DEVICE constexpr int q4_factor_byte(int row, bool is_minimum) {
  return UnitLayout<WeightType::kQ4>::kFactors + row / 2 * 8 + (is_minimum ? 4 : 0) + row % 2 * 2;
}

#undef GEMMA_HOST_DEVICE

#ifdef __CUDACC__

// --- for the tensor cores: a lane's share of a unit in shared memory ---

/// The codes that a lane has of several neighbouring steps: [UnitLayout::kStepsInLoad].
/// @param unit  aligned to 16 bytes
/// @param load  which kStepsInLoad steps of the unit
template <WeightType kType>
__device__ inline uint4 load_codes(const std::byte* unit, int load) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return *reinterpret_cast<const uint4*>(unit + UnitLayout<kType>::kCodes + load * 512 + lane * 16);
}

__device__ inline std::uint32_t subtract_bf16(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 difference =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&difference);
}

__device__ inline std::uint32_t subtract_f16(std::uint32_t a, std::uint32_t b) {
  const __half2 difference = __hsub2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&difference);
}

/// Two codes in bytes 0 and 2, the rest ignored, as bf16: 128 + their low seven bits, less 128, or 256 if negative.
__device__ inline std::uint32_t int8_to_bf16(std::uint32_t codes) {
  return subtract_bf16(and_or(codes, 0x007f007fu, 0x43004300u), and_or(codes, 0x00800080u, 0x43004300u));
}

/// Two codes of 4 bits in the low ends of both halves, the rest ignored, as bf16.
__device__ inline std::uint32_t uint4_to_bf16(std::uint32_t codes) {
  return subtract_bf16(and_or(codes, 0x000f000fu, 0x43004300u), 0x43004300u);
}

/// The tensor cores' operand of one step: b[0] and b[1] for its first 16 columns, b[2] and b[3] for the others.
/// @param loaded  what load_codes gave
/// @param step    of those that were loaded, known at compile time
template <WeightType kType>
__device__ inline void unpack_step(std::uint32_t (&b)[4], const uint4& loaded, int step) {
  const std::uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  if constexpr (kType == WeightType::kQ8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = int8_to_bf16(words[2 * step + i / 2] >> (i % 2 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = uint4_to_bf16(words[step] >> ((i % 2 * 2 + i / 2) * 4));
  }
}

/// The same as bytes: b[0] for columns 0 to 15 of the step, b[1] for the others.
template <WeightType kType>
__device__ inline void unpack_step(std::uint32_t (&b)[2], const uint4& loaded, int step) {
  const std::uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  if constexpr (kType == WeightType::kQ8) {
    b[0] = words[2 * step];
    b[1] = words[2 * step + 1];
  } else {
    b[0] = words[step] & 0x0f0f0f0fu;
    b[1] = words[step] >> 4 & 0x0f0f0f0fu;
  }
}

/// The same in float16, exactly: b[0] and b[1] for the first 16 columns, b[2] and b[3] for the others; in units of
/// 2^-kHalfExponent.
template <WeightType kType>
__device__ inline void unpack_halves(std::uint32_t (&b)[4], const uint4& loaded, int step) {
  const std::uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kType == WeightType::kQ8) {
      // 1024 + 128 + a code: 1024 has as many bits behind its first one as a number without a sign needs.
      const std::uint32_t two = and_xor(words[2 * step + i / 2] >> (i % 2 * 8), 0x00ff00ffu, 0x64806480u);
      b[i] = subtract_f16(two, 0x64806480u);
    } else {
      b[i] = words[step] >> ((i % 2 * 2 + i / 2) * 4) & 0x000f000fu;
    }
  }
}

/// What they are in units of: 2^-kHalfExponent. Codes of 4 bits are multiples of the smallest float16. (What they are
/// scaled by is 2^24 times as large, and so infinite for inputs beyond 2^115.)
template <WeightType kType>
inline constexpr int kHalfExponent = kType == WeightType::kQ8 ? 0 : 24;

/// Whether a group's inputs must be added up: its weights have a minimum.
template <WeightType kType>
inline constexpr bool kNeedsSums = kType == WeightType::kQ4;

/// What the sum over a group is scaled by: of codes c and activations x, w * x = scale * sum(c * x) - minimum * sum(x).
template <WeightType kType>
struct OutputScales {
  float scale;
  float minimum;  ///< of q8: 0, not used
};

/// The same for the outputs 2t and 2t + 1 of a tile, with t = lane % 4.
template <WeightType kType>
struct GroupScales {
  float2 scale, minimum;
};

/// A byte of a word as a number, times a power of two: with 23 bits more, which are taken off again. Products with d
/// and m have 11 and 8 bits: exact.
template <int kExponent = 0>
__device__ inline float byte_of(std::uint32_t word, unsigned index) {
  constexpr std::uint32_t kTwoTo23 = (127u + 23 + kExponent) << 23;
  static_assert((kTwoTo23 & 0x00ffffffu) == 0, "only its first byte is put in");
  return __uint_as_float(__byte_perm(word, kTwoTo23, 0x7440u + index)) - __uint_as_float(kTwoTo23);
}

/// @param unit    in shared memory, aligned to 16 bytes
/// @param output  of the tile
/// @param step    of the unit
template <WeightType kType>
__device__ inline OutputScales<kType> load_output_scales(const std::byte* unit, int output, int step) {
  const auto half_at = [&](int byte) { return __half2float(*reinterpret_cast<const __half*>(unit + byte)); };
  if constexpr (kType == WeightType::kQ8) {
    return {half_at(q8_scale_byte(output, step)), 0};
  } else {
    const int even = output & ~1;
    const std::uint32_t of_step = *reinterpret_cast<const std::uint32_t*>(unit + q4_scale_byte(even, step, false));
    const unsigned own = static_cast<unsigned>(output - even);
    return {half_at(q4_factor_byte(output, false)) * byte_of(of_step, own),
            half_at(q4_factor_byte(output, true)) * byte_of(of_step, 2 + own)};
  }
}

/// @param unit  in shared memory, aligned to 16 bytes
/// @param step  of the unit
/// @tparam kExponent  of what codes are in units of: 2^-kExponent
template <WeightType kType, int kExponent = 0>
__device__ inline GroupScales<kType> load_scales(const std::byte* unit, int step) {
  const int pair = static_cast<int>(threadIdx.x % 4);
  if constexpr (kType == WeightType::kQ8) {
    static_assert(kExponent == 0);
    return {__half22float2(*reinterpret_cast<const __half2*>(unit + q8_scale_byte(2 * pair, step))), {}};
  } else {
    const auto* factors = reinterpret_cast<const __half2*>(unit + q4_factor_byte(2 * pair, false));
    const float2 d = __half22float2(factors[0]);
    const float2 m = __half22float2(factors[1]);
    const std::uint32_t of_step = *reinterpret_cast<const std::uint32_t*>(unit + q4_scale_byte(2 * pair, step, false));
    return {{d.x * byte_of<kExponent>(of_step, 0), d.y * byte_of<kExponent>(of_step, 1)},
            {m.x * byte_of(of_step, 2), m.y * byte_of(of_step, 3)}};
  }
}

// --- one weight after the other, for the embedding of a token and for prompts ---

/// Of a group of weights, w = scale * code - minimum; the minimum of q8 is 0.
/// @param unit  in global or shared memory
/// @param row   of the tile
/// @param step  of the unit
template <WeightType kType>
__device__ inline float2 scale_and_minimum(const std::byte* unit, int row, int step) {
  const auto half_at = [&](int byte) { return __half2float(*reinterpret_cast<const __half*>(unit + byte)); };
  if constexpr (kType == WeightType::kQ8) {
    return {half_at(q8_scale_byte(row, step)), 0.0f};
  } else {
    const auto product = [&](bool is_minimum) {
      return half_at(q4_factor_byte(row, is_minimum)) *
             static_cast<float>(static_cast<unsigned char>(unit[q4_scale_byte(row, step, is_minimum)]));
    };
    return {product(false), product(true)};
  }
}

/// A weight from its code, as dequantise() of model/dequantise.h gives it.
/// @param scale  what scale_and_minimum gave
template <WeightType kType>
__device__ inline float scaled_code(float2 scale, float code) {
  if constexpr (kType == WeightType::kQ8) return scale.x * code;
  return fmaf(scale.x, code, -scale.y);
}

/// A weight of a packed matrix, as dequantise() gives it.
/// @param unit    in global or shared memory
/// @param row     of the tile
/// @param column  of the unit
template <WeightType kType>
__device__ inline float packed_weight(const std::byte* unit, int row, int column) {
  int code = static_cast<unsigned char>(unit[code_byte<kType>(row, column)]);
  if constexpr (kType == WeightType::kQ8) {
    code = static_cast<signed char>(code);
  } else {
    code = code >> (index_in_lane<kType>(column % kGroupColumns) % 2 * 4) & 15;
  }
  return scaled_code<kType>(scale_and_minimum<kType>(unit, row, column / kGroupColumns), static_cast<float>(code));
}

#endif

}  // namespace gemma
