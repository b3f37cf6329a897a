#include "model/dequantise.h"

#include <cassert>

namespace gemma {
namespace {

std::size_t start(int row, int row_elements) {
  return static_cast<std::size_t>(row) * static_cast<std::size_t>(row_elements);
}

void dequantise_q8(const Matrix& matrix, int row, std::span<float> out) {
  const std::int8_t* const codes = matrix.q8.codes + start(row, matrix.columns);
  const f16* const scales = matrix.q8.scales + start(row, matrix.groups());
  for (int i = 0; i < matrix.columns; ++i) {
    out[static_cast<std::size_t>(i)] = to_float(scales[i / kGroupColumns]) * static_cast<float>(codes[i]);
  }
}

void dequantise_q4(const Matrix& matrix, int row, std::span<float> out) {
  static constexpr int kHalf = kGroupColumns / 2;
  const std::uint8_t* codes = matrix.q4.codes + start(row, matrix.columns / 2);
  const std::uint8_t* const scales = matrix.q4.scales + start(row, matrix.groups());
  const std::uint8_t* const minimums = matrix.q4.minimums + start(row, matrix.groups());
  const f16* const d = matrix.q4.d + start(row, matrix.blocks());
  const f16* const m = matrix.q4.m + start(row, matrix.blocks());
  float* weight = out.data();
  for (int group = 0; group < matrix.groups(); ++group) {
    const int block = group * kGroupColumns / kBlockColumns;
    const float scale = to_float(d[block]) * static_cast<float>(scales[group]);
    const float minimum = to_float(m[block]) * static_cast<float>(minimums[group]);
    for (int i = 0; i < kHalf; ++i) {
      weight[i] = scale * static_cast<float>(codes[i] & 15) - minimum;
      weight[i + kHalf] = scale * static_cast<float>(codes[i] >> 4) - minimum;
    }
    codes += kHalf;
    weight += kGroupColumns;
  }
}

}  // namespace

void dequantise(const Matrix& matrix, int row, std::span<float> out) {
  assert(row >= 0 && row < matrix.rows && out.size() == static_cast<std::size_t>(matrix.columns));
  switch (matrix.type) {
    case WeightType::kBf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = to_float(matrix.row(row)[i]);
      break;
    case WeightType::kQ8:
      dequantise_q8(matrix, row, out);
      break;
    case WeightType::kQ4:
      dequantise_q4(matrix, row, out);
      break;
  }
}

}  // namespace gemma
