#include "device/cpu/product.h"

#include <cassert>

namespace gemma {

ProductInputs::ProductInputs(int rows, int columns, const char* what)
    : columns_(columns), floats_(rows, padded_columns(columns), what), int8_(rows, columns, what) {}

double ProductInputs::row_bytes(int columns) {
  return static_cast<double>(sizeof(float)) * padded_columns(columns) + Int8Memory::row_bytes(columns);
}

void ProductInputs::prepare(int row, WeightType type) {
  if (type == WeightType::kBf16) {
    pair_up(floats_.row(row), columns_);
  } else {
    int8_.quantise(row, floats_.row(row), columns_, type);
  }
}

void multiply_block(const Matrix& weights, int first, int count, const ProductInputs& x, int row, int rows,
                    const Int8Kernels& kernels, float* out, std::size_t out_stride, const ProductScratch& scratch) {
  assert(weights.columns == x.columns());
  if (weights.type == WeightType::kBf16) {
    matmul_block(weights, first, count, x.row(row), static_cast<std::size_t>(x.floats().columns()), rows, out,
                 out_stride, scratch.sums);
  } else {
    kernels.multiply(weights, first, count, x.int8_rows().from(row), rows, out, out_stride, scratch.unpacked);
  }
}

}  // namespace gemma
