#pragma once

#include <cstddef>
#include <memory>

#include "device/cpu/memory.h"
#include "model/model.h"

namespace gemma {

/// Outputs that one call of matmul_block makes at most: a block of weights and of accumulators stays in the level 2
/// cache.
inline constexpr int kOutputBlock = 40;

/// Rows that matmul_block works on together, for the same reason. It takes any number of rows.
inline constexpr int kRowBlock = 64;

/// Floats from one row of inputs to the next: columns rounded up to whole vectors of every instruction set.
constexpr int padded_columns(int columns) { return (columns + 31) / 32 * 32; }

/// Puts one row of inputs into the order that matmul_block wants, in place: in each group of two vectors, the even
/// elements before the odd ones, so that they meet the lower and the upper halves of words that hold two bf16 weights
/// each.
/// @param x  [padded_columns(columns)]; what lies beyond `columns` becomes zero.
void pair_up(float* x, int columns);

/// Where matmul_block keeps unfinished sums. One for each thread.
class MatmulScratch {
 public:
  MatmulScratch();
  float* data() const { return memory_.data(); }

 private:
  FloatRows memory_;
};

/// out[m][n] = dot(weights.row(first + n), x[m]) for n in [0, count), in float32 from bf16 weights read where they lie.
///
/// The sum runs along the columns in one vector accumulator with fused multiply-add, whatever the number of rows and
/// outputs: a row's results are the same bits alone and among others.
/// @param count       at most kOutputBlock.
/// @param x           [rows, x_stride], each row prepared by pair_up; x_stride is at least
/// padded_columns(weights.columns).
/// @param out         [rows, out_stride]
void matmul_block(const Matrix& weights, int first, int count, const float* x, std::size_t x_stride, int rows,
                  float* out, std::size_t out_stride, const MatmulScratch& scratch);

}  // namespace gemma
