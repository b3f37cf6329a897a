#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cpu/memory.h"
#include "model/model.h"

namespace gemma {

/// Rows of inputs as products with quantised weights want them: int8 codes with a scale for each group of
/// kGroupColumns, x = scale * code, |code| <= 127. Rows are padded with zeros to whole blocks of kBlockColumns.
struct Int8Rows {
  /// [rows, columns]. For q8 in the order of the columns. For q4, whose bytes hold two codes 16 columns apart, the 128
  /// columns of four groups are in two halves: first columns 0 to 15 of each group, then 16 to 31 of each.
  const std::int8_t* codes = nullptr;
  const float* scales = nullptr;          ///< [rows, columns / kGroupColumns]
  const float* sums = nullptr;            ///< [rows, columns / kGroupColumns]: scale * the sum of the group's codes
  const std::int32_t* offsets = nullptr;  ///< [rows, columns / kGroupColumns]: -128 * the sum of the group's codes
  int columns = 0;                        ///< a multiple of kBlockColumns

  int groups() const { return columns / kGroupColumns; }
  Int8Rows from(int row) const {
    const auto group = static_cast<std::size_t>(row) * static_cast<std::size_t>(groups());
    return {codes + group * kGroupColumns, scales + group, sums + group, offsets + group, columns};
  }
};

/// Columns of Int8Rows for as many of a matrix.
constexpr int padded_to_blocks(int columns) { return (columns + kBlockColumns - 1) / kBlockColumns * kBlockColumns; }

/// Memory for Int8Rows.
class Int8Memory {
 public:
  Int8Memory() = default;
  Int8Memory(int rows, int columns, const char* what);

  /// Quantises one row: scale = max|x| / 127 in each group, codes rounded to nearest, ties to even. The same bits on
  /// every instruction set. A group with an infinity or a NaN has a scale of NaN, so that its products are NaN, too.
  /// @param x     [columns]
  /// @param type  of the weights that the row will meet: kQ8 or kQ4.
  void quantise(int row, const float* x, int columns, WeightType type);

  /// All rows. @param columns  as given to `quantise`.
  Int8Rows rows(int columns) const;

  /// Bytes for each row.
  static double row_bytes(int columns);

 private:
  Memory codes_;
  Memory scales_;
  Memory sums_;
  Memory offsets_;
};

}  // namespace gemma
