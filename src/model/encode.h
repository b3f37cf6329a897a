#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model/safetensors.h"

namespace gemma {

/// Thrown by `encode` for a number that a weight cannot be.
struct NotFinite {
  std::size_t index;  ///< of the first such element
  const char* what;   ///< "a NaN", "an infinity" or "a number too large for bf16"
};

/// Changes the type of numbers: BF16, F16 or F32 to BF16 (rounding to nearest, ties to even) or to F32 (exact).
/// @throws NotFinite if an element or what becomes of it is infinite or not a number.
std::vector<std::byte> encode(std::span<const std::byte> source, DType from, DType to);

}  // namespace gemma
