#include "model/matrix_parts.h"

#include <cassert>
#include <string>

#include "gemma/error.h"

namespace gemma {

std::vector<MatrixPart> parts_of(WeightType type, int rows, int columns) {
  const Matrix shape{.type = type, .rows = rows, .columns = columns};
  switch (type) {
    case WeightType::kBf16:
      return {{"", DType::kBf16, {rows, columns}}};
    case WeightType::kQ8:
      return {{".codes", DType::kI8, {rows, columns}}, {".scales", DType::kF16, {rows, shape.groups()}}};
    case WeightType::kQ4:
      return {{".codes", DType::kU8, {rows, columns / 2}},
              {".scales", DType::kU8, {rows, shape.groups()}},
              {".minimums", DType::kU8, {rows, shape.groups()}},
              {".d", DType::kF16, {rows, shape.blocks()}},
              {".m", DType::kF16, {rows, shape.blocks()}}};
  }
  return {};
}

Matrix make_matrix(WeightType type, int rows, int columns, std::span<const std::byte* const> parts) {
  assert(parts.size() == parts_of(type, rows, columns).size());
  const auto bytes = [parts](std::size_t part) { return reinterpret_cast<const std::uint8_t*>(parts[part]); };
  const auto halves = [parts](std::size_t part) { return reinterpret_cast<const f16*>(parts[part]); };
  Matrix matrix{.type = type, .rows = rows, .columns = columns};
  switch (type) {
    case WeightType::kBf16:
      matrix.data = reinterpret_cast<const bf16*>(parts[0]);
      break;
    case WeightType::kQ8:
      matrix.q8 = {.codes = reinterpret_cast<const std::int8_t*>(parts[0]), .scales = halves(1)};
      break;
    case WeightType::kQ4:
      matrix.q4 = {.codes = bytes(0), .scales = bytes(1), .minimums = bytes(2), .d = halves(3), .m = halves(4)};
      break;
  }
  return matrix;
}

std::vector<std::span<const std::byte>> bytes_of_parts(const Matrix& matrix) {
  std::vector<const void*> starts;
  switch (matrix.type) {
    case WeightType::kBf16:
      starts = {matrix.data};
      break;
    case WeightType::kQ8:
      starts = {matrix.q8.codes, matrix.q8.scales};
      break;
    case WeightType::kQ4:
      starts = {matrix.q4.codes, matrix.q4.scales, matrix.q4.minimums, matrix.q4.d, matrix.q4.m};
      break;
  }
  std::vector<std::span<const std::byte>> bytes;
  for (const MatrixPart& part : parts_of(matrix.type, matrix.rows, matrix.columns)) {
    bytes.emplace_back(static_cast<const std::byte*>(starts[bytes.size()]), static_cast<std::size_t>(part.bytes()));
  }
  return bytes;
}

void check_columns(WeightType type, int columns, std::string_view name) {
  if (type == WeightType::kBf16 || columns % kGroupColumns == 0) return;
  throw Error(std::string(name) + " has rows of " + std::to_string(columns) + ", which " + std::string(name_of(type)) +
              " cannot store: it needs a multiple of " + std::to_string(kGroupColumns) + ". Use bf16 for this model");
}

}  // namespace gemma
