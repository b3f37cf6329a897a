#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "decode.cuh"

namespace gemma::cuda {

/// Some tiles of a matrix, themselves a matrix: those that are unpacked at once for the products of prompt rows.
struct WeightSlab {
  MatrixShape shape;
  int first_tile = 0;

  int first_output() const { return first_tile * shape.rows_in_tile(); }                ///< of gate_up: of either half
  int outputs() const { return shape.is_gate_up ? shape.outputs / 2 : shape.outputs; }  ///< likewise
};

/// Elements that slabs must have room for: two tiles of the matrix.
inline std::size_t least_slab(int columns) { return 2 * kPieceRows * static_cast<std::size_t>(columns); }

/// Cuts a matrix into slabs of about the same size, of whole tiles of the matrix product where they are that large.
/// @param elements  that each may have, counting rows that fill up its last tile: at least least_slab()
inline std::vector<WeightSlab> cut_into_slabs(const MatrixShape& matrix, std::size_t elements) {
  const int tiles = matrix.tiles();
  const int most = static_cast<int>(std::min<std::size_t>(
      elements / (kPieceRows * static_cast<std::size_t>(matrix.columns)), static_cast<std::size_t>(tiles)));
  int at_once = tiles;
  if (most < tiles) {
    constexpr int kProductTile = 256 / kPieceRows;
    const int count = (tiles + most - 1) / most;
    const int step = most >= kProductTile ? kProductTile : 2;  // products take multiples of 8 gates
    at_once = std::min((tiles + count - 1) / count + step - 1, most) / step * step;
  }
  const int parts = matrix.is_gate_up ? 2 : 1;
  std::vector<WeightSlab> slabs;
  for (int tile = 0; tile < tiles; tile += at_once) {
    const int outputs =
        std::min(at_once * matrix.rows_in_tile(), matrix.outputs / parts - tile * matrix.rows_in_tile());
    slabs.push_back({{parts * outputs, matrix.columns, matrix.is_gate_up}, tile});
  }
  return slabs;
}

}  // namespace gemma::cuda
