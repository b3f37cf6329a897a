// Matrix products of float32 rows with bf16 weights.
//
// One row must read all weights once and is as fast as memory; many rows share the weights that are in registers and
// caches and are as fast as the multipliers. Measured on one core of a Zen 5 server (229 GFLOP/s of float32, 37 GB/s):
// [512, 2304] x [2304, 18432] at 188 GFLOP/s, one row of it at 29 GB/s; both cores together read weights at 60 GB/s,
// which is all that this machine has.
#include "device/cpu/matmul.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "device/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/matmul.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/cache_control.h>
// clang-format on

#ifndef GEMMA_MATMUL_CONSTANTS
#define GEMMA_MATMUL_CONSTANTS
namespace gemma {
namespace {

/// Columns that are worked on together at most: the inputs and weights of a register tile stay in the level 1 cache.
constexpr int kColumnBlock = 1280;

constexpr int kMaxLanes = 16;

/// How far ahead of their use weights are asked for: 1 KiB in every row.
constexpr int kPrefetchColumns = 512;

}  // namespace
}  // namespace gemma
#endif

HWY_BEFORE_NAMESPACE();
namespace gemma {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Words = hn::RebindToUnsigned<Floats>;
using Vector = hn::Vec<Floats>;
using WordVector = hn::Vec<Words>;

constexpr int kLanes = static_cast<int>(HWY_LANES(float));

// Accumulators, inputs and weights of a register tile fit into 32 registers of AVX-512 and NEON, or 16 of the others.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kTileRows = 4;
constexpr int kTileOutputs = 5;
#else
constexpr int kTileRows = 2;
constexpr int kTileOutputs = 4;
#endif
// A single row has no inputs to reuse; more outputs keep more loads of weights in flight.
constexpr int kSingleRowOutputs = 8;

/// Words of two bf16 each: elements 2i in the lower halves, 2i + 1 in the upper.
HWY_INLINE WordVector load_pairs(const bf16* weights) {
#if HWY_TARGET == HWY_SCALAR
  std::uint32_t pair;
  std::memcpy(&pair, weights, sizeof(pair));
  return hn::Set(Words(), pair);
#else
  return hn::BitCast(Words(), hn::LoadU(hn::Repartition<std::uint16_t, Words>(), &weights->bits));
#endif
}

template <int kRows, int kOutputs>
HWY_INLINE void multiply_group(const WordVector (&pairs)[kOutputs], const float* HWY_RESTRICT x, std::size_t x_stride,
                               Vector (&sums)[kRows][kOutputs]) {
  const Floats d;
  const WordVector upper = hn::Set(Words(), 0xffff0000u);
  Vector inputs[kRows];
  HWY_UNROLL(8)
  for (int m = 0; m < kRows; ++m) inputs[m] = hn::LoadU(d, x + m * x_stride);
  HWY_UNROLL(8)
  for (int n = 0; n < kOutputs; ++n) {
    const Vector even = hn::BitCast(d, hn::ShiftLeft<16>(pairs[n]));
    HWY_UNROLL(8)
    for (int m = 0; m < kRows; ++m) sums[m][n] = hn::MulAdd(even, inputs[m], sums[m][n]);
  }
  HWY_UNROLL(8)
  for (int m = 0; m < kRows; ++m) inputs[m] = hn::LoadU(d, x + kLanes + m * x_stride);
  HWY_UNROLL(8)
  for (int n = 0; n < kOutputs; ++n) {
    const Vector odd = hn::BitCast(d, hn::And(pairs[n], upper));
    HWY_UNROLL(8)
    for (int m = 0; m < kRows; ++m) sums[m][n] = hn::MulAdd(odd, inputs[m], sums[m][n]);
  }
}

/// Adds columns [begin, end) to the sums of a tile. `begin` is a multiple of a group of two vectors, `end` too unless
/// it is the last column.
/// @param weights  the first output's row; the others follow at `columns` elements.
/// @param next     the first row of the tile that comes next: read ahead if kPrefetch.
/// @param sums_in_memory  [kRows * kOutputs] vectors, read unless begin is 0, written unless end is the last column.
template <int kRows, int kOutputs, bool kPrefetch>
HWY_INLINE void multiply_tile(const bf16* HWY_RESTRICT weights, const bf16* next, int columns, int begin, int end,
                              const float* HWY_RESTRICT x, std::size_t x_stride, float* HWY_RESTRICT sums_in_memory,
                              float* HWY_RESTRICT out, std::size_t out_stride) {
  const Floats d;
  constexpr int kGroup = 2 * kLanes;
  Vector sums[kRows][kOutputs];
  HWY_UNROLL(8)
  for (int m = 0; m < kRows; ++m) {
    HWY_UNROLL(8)
    for (int n = 0; n < kOutputs; ++n) {
      sums[m][n] = begin == 0 ? hn::Zero(d) : hn::LoadU(d, sums_in_memory + (m * kOutputs + n) * kLanes);
    }
  }

  WordVector pairs[kOutputs];
  int k = begin;
  for (; k + kGroup <= end; k += kGroup) {
    if constexpr (kPrefetch) {
      // The processor's own prefetching follows a row to the end of a page only, and starts anew with every row.
      const bf16* ahead =
          k + kPrefetchColumns < end ? weights + k + kPrefetchColumns : next + begin + (k + kPrefetchColumns - end);
      HWY_UNROLL(8)
      for (int n = 0; n < kOutputs; ++n) hwy::Prefetch(ahead + static_cast<std::size_t>(n) * columns);
    }
    HWY_UNROLL(8)
    for (int n = 0; n < kOutputs; ++n) pairs[n] = load_pairs(weights + static_cast<std::size_t>(n) * columns + k);
    multiply_group<kRows, kOutputs>(pairs, x + k, x_stride, sums);
  }
  if (k < end) {
    // A matrix may end where readable memory ends, so that the last group cannot be read as a whole.
    HWY_UNROLL(8)
    for (int n = 0; n < kOutputs; ++n) {
      bf16 rest[kGroup] = {};
      std::memcpy(rest, weights + static_cast<std::size_t>(n) * columns + k,
                  static_cast<std::size_t>(end - k) * sizeof(bf16));
      pairs[n] = load_pairs(rest);
    }
    multiply_group<kRows, kOutputs>(pairs, x + k, x_stride, sums);
  }

  HWY_UNROLL(8)
  for (int m = 0; m < kRows; ++m) {
    HWY_UNROLL(8)
    for (int n = 0; n < kOutputs; ++n) {
      if (end == columns) {
        out[m * out_stride + n] = hn::GetLane(hn::SumOfLanes(d, sums[m][n]));
      } else {
        hn::StoreU(sums[m][n], d, sums_in_memory + (m * kOutputs + n) * kLanes);
      }
    }
  }
}

/// What a tile is part of.
struct Block {
  const Matrix& weights;
  int first;  // output
  int count;  // outputs
  const float* x;
  std::size_t x_stride;
  float* out;
  std::size_t out_stride;
  float* sums;  // unfinished, tile by tile
};

/// One tile: kRows rows from row m by outputs [n, n + kOutputs), counted from the block's first.
template <int kRows, int kOutputs, bool kPrefetch>
HWY_INLINE void run_tile(const Block& block, int m, int n, int begin, int end) {
  const std::size_t columns = static_cast<std::size_t>(block.weights.columns);
  const bf16* weights = block.weights.data + static_cast<std::size_t>(block.first + n) * columns;
  const bf16* next = n + kOutputs < block.count ? weights + kOutputs * columns : weights;
  // The sums of a tile lie at a place that no other tile of this block of rows uses.
  float* sums = block.sums + static_cast<std::size_t>((m % kRowBlock) * kOutputBlock + n * kRows) * kLanes;
  multiply_tile<kRows, kOutputs, kPrefetch>(weights, next, block.weights.columns, begin, end,
                                            block.x + m * block.x_stride, block.x_stride, sums,
                                            block.out + m * block.out_stride + n, block.out_stride);
}

/// Rows [m, m_end), fewer than a tile has, by outputs [n, n + kOutputs).
template <int kOutputs, bool kPrefetch>
HWY_INLINE void multiply_last_rows(const Block& block, int m, int m_end, int n, int begin, int end) {
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
  if (m_end - m == 3) run_tile<3, kOutputs, kPrefetch>(block, m, n, begin, end);
  if (m_end - m == 2) run_tile<2, kOutputs, kPrefetch>(block, m, n, begin, end);
#endif
  if (m_end - m == 1) run_tile<1, kOutputs, kPrefetch>(block, m, n, begin, end);
}

/// Rows [m, m_end) by outputs [n, n + kOutputs). The first rows of all are those for which the weights come from afar.
template <int kOutputs>
void multiply_panel(const Block& block, int m, int m_end, int n, int begin, int end) {
  if (m == 0) {
    if (m_end < kTileRows) return multiply_last_rows<kOutputs, true>(block, m, m_end, n, begin, end);
    run_tile<kTileRows, kOutputs, true>(block, m, n, begin, end);
    m += kTileRows;
  }
  for (; m + kTileRows <= m_end; m += kTileRows) run_tile<kTileRows, kOutputs, false>(block, m, n, begin, end);
  multiply_last_rows<kOutputs, false>(block, m, m_end, n, begin, end);
}

void matmul_block(const Matrix& weights, int first, int count, const float* x, std::size_t x_stride, int rows,
                  float* out, std::size_t out_stride, float* sums) {
  const Block block{weights, first, count, x, x_stride, out, out_stride, sums};
  const int columns = weights.columns;
  if (rows == 1) {
    int n = 0;
    for (; n + kSingleRowOutputs <= count; n += kSingleRowOutputs)
      run_tile<1, kSingleRowOutputs, true>(block, 0, n, 0, columns);
    for (; n < count; ++n) run_tile<1, 1, true>(block, 0, n, 0, columns);
    return;
  }
  const int column_blocks = rows <= kTileRows ? 1 : (columns + kColumnBlock - 1) / kColumnBlock;
  const int column_step = padded_columns((columns + column_blocks - 1) / column_blocks);
  for (int m = 0; m < rows; m += kRowBlock) {
    const int m_end = std::min(rows, m + kRowBlock);
    for (int begin = 0; begin < columns; begin += column_step) {
      const int end = std::min(columns, begin + column_step);
      int n = 0;
      for (; n + kTileOutputs <= count; n += kTileOutputs) multiply_panel<kTileOutputs>(block, m, m_end, n, begin, end);
      for (; n < count; ++n) multiply_panel<1>(block, m, m_end, n, begin, end);
    }
  }
}

void pair_up(float* x, int columns) {
  const Floats d;
  constexpr int kGroup = 2 * kLanes;
  std::fill(x + columns, x + padded_columns(columns), 0.0f);
  for (int k = 0; k < columns; k += kGroup) {
    Vector even;
    Vector odd;
#if HWY_TARGET == HWY_SCALAR
    even = hn::LoadU(d, x + k);
    odd = hn::LoadU(d, x + k + 1);
#else
    hn::LoadInterleaved2(d, x + k, even, odd);
#endif
    hn::StoreU(even, d, x + k);
    hn::StoreU(odd, d, x + k + kLanes);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gemma
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma {

HWY_EXPORT(matmul_block);
HWY_EXPORT(pair_up);

MatmulScratch::MatmulScratch() : memory_(kRowBlock, kOutputBlock * kMaxLanes, "sums of a matrix product") {}

void pair_up(float* x, int columns) { HWY_DYNAMIC_DISPATCH(pair_up)(x, columns); }

void matmul_block(const Matrix& weights, int first, int count, const float* x, std::size_t x_stride, int rows,
                  float* out, std::size_t out_stride, const MatmulScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(matmul_block)(weights, first, count, x, x_stride, rows, out, out_stride, scratch.data());
}

}  // namespace gemma
#endif
