#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model/model.h"

namespace gemma {

/// Quantises whole rows so that the sum over all weights of importance * error^2 is small. The result of a row depends
/// on nothing but the row and the importance.
///
/// @param type        kQ8 or kQ4.
/// @param weights     [rows, columns], finite; columns is a multiple of kGroupColumns.
/// @param importance  [columns] what the square of an error counts in each column, not negative; empty: 1 everywhere.
/// @return the bytes of each tensor of these rows, as parts_of orders them.
/// @throws NotFinite for a weight whose scale would be too large for float16.
/// Source: the search over scales with a least squares fit for each set of codes is that of ggml's k-quants (Kawrakow,
/// 2023); here the codes are fitted to the scales as they are stored, too.
std::vector<std::vector<std::byte>> quantise(WeightType type, std::span<const float> weights, int columns,
                                             std::span<const float> importance = {});

}  // namespace gemma
