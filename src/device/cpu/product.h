#pragma once

#include <cstddef>

#include "device/cpu/int8_kernels.h"
#include "device/cpu/matmul.h"
#include "device/cpu/memory.h"
#include "model/model.h"

namespace gemma {

/// Rows of inputs of matrix products. A row is written as floats, then prepared for the weights that it will meet:
/// rearranged for bf16 ones, quantised for q8 and q4.
class ProductInputs {
 public:
  ProductInputs() = default;
  ProductInputs(int rows, int columns, const char* what);

  /// Where the floats of a row are written; the old ones are no longer there once it has been prepared.
  float* row(int index) const { return floats_.row(index); }
  void prepare(int row, WeightType type);

  int columns() const { return columns_; }
  const FloatRows& floats() const { return floats_; }
  Int8Rows int8_rows() const { return int8_.rows(columns_); }

  /// Bytes for each row.
  static double row_bytes(int columns);

 private:
  int columns_ = 0;
  FloatRows floats_;
  Int8Memory int8_;
};

/// Where products keep what is unfinished. One for each thread.
struct ProductScratch {
  MatmulScratch sums;
  Int8Scratch unpacked;
};

/// Outputs that one call of multiply_block makes at most.
constexpr int output_block(WeightType type) { return type == WeightType::kBf16 ? kOutputBlock : kInt8OutputBlock; }
inline constexpr int kWidestOutputBlock = kInt8OutputBlock;

/// out[m][n] = dot(weights.row(first + n), x[row + m]) for n in [0, count) and m in [0, rows), with weights of any type
/// read where they lie. The same bits for any number of rows and outputs.
/// @param count    at most output_block(weights.type).
/// @param x        weights.columns columns, prepared for weights.type.
/// @param kernels  for quantised weights.
/// @param out      [rows, out_stride]
void multiply_block(const Matrix& weights, int first, int count, const ProductInputs& x, int row, int rows,
                    const Int8Kernels& kernels, float* out, std::size_t out_stride, const ProductScratch& scratch);

}  // namespace gemma
