#pragma once

#include <span>

#include "model/model.h"

namespace gemma {

/// The weights of one row, of any type: what every kernel has to agree with.
/// @param out  [columns]; rounded to float32 once, for q4 only.
void dequantise(const Matrix& matrix, int row, std::span<float> out);

}  // namespace gemma
