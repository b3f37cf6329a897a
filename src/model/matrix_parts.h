#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "model/safetensors.h"

namespace gemma {

/// One of the tensors that make up a matrix in a .gemma file.
struct MatrixPart {
  std::string_view suffix;  ///< of its name: ".codes", ".scales", ...; "" where the matrix is a single tensor
  DType type = DType::kU8;
  std::array<std::int64_t, 2> shape{};  ///< [rows, elements of a row]

  std::uint64_t row_bytes() const { return bytes_of(type) * static_cast<std::uint64_t>(shape[1]); }
  std::uint64_t bytes() const { return row_bytes() * static_cast<std::uint64_t>(shape[0]); }
};

/// The tensors of a matrix, in the order of a file.
std::vector<MatrixPart> parts_of(WeightType type, int rows, int columns);

/// The view of a matrix.
/// @param parts  where each of its tensors lies, as parts_of orders them.
Matrix make_matrix(WeightType type, int rows, int columns, std::span<const std::byte* const> parts);

/// The tensors behind a view, as parts_of orders them.
std::vector<std::span<const std::byte>> bytes_of_parts(const Matrix& matrix);

/// @throws Error if rows of so many columns cannot be stored in this type.
/// @param name  of the matrix, for the message.
void check_columns(WeightType type, int columns, std::string_view name);

}  // namespace gemma
