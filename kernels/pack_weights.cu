// Quantised weights on their way into the GPU: from the planar tensors of a model file to the units of
// packed_weights.cuh. A block makes one unit; a thread makes the 16 bytes of codes that a lane reads at once.
//
// Bytes: the matrix once, read and written. It arrives over PCIe, which is slower than this by an order of magnitude,
// so codes are fetched one by one, wherever they lie.

#include "launch.cuh"
#include "pack_weights.cuh"
#include "packed_weights.cuh"

namespace gemma {
namespace {

template <WeightType kType>
constexpr int kBits = kType == WeightType::kQ8 ? 8 : 4;  // of a code

/// Threads of a block: one for each 16 bytes of a unit's codes.
template <WeightType kType>
constexpr int kThreads = kUnitSteps / UnitLayout<kType>::kStepsInLoad * 32;

/// A code as it is stored, in the low bits.
template <WeightType kType>
__device__ std::uint32_t code_at(const Matrix& matrix, int row, int column) {
  const std::size_t weight = static_cast<std::size_t>(row) * matrix.columns + column;
  if constexpr (kType == WeightType::kQ8) {
    return static_cast<std::uint8_t>(matrix.q8.codes[weight]);
  } else {
    constexpr int kHalf = kGroupColumns / 2;
    const int in_group = column % kGroupColumns;
    const std::uint32_t two = matrix.q4.codes[(weight - in_group) / 2 + in_group % kHalf];
    return in_group < kHalf ? two & 15 : two >> 4;
  }
}

template <WeightType kType>
__global__ void __launch_bounds__(kThreads<kType>) pack_kernel(Matrix matrix, MatrixShape shape, std::byte* units) {
  using Layout = UnitLayout<kType>;
  const int units_of_tile = units_in_tile(shape.columns);
  const int tile = static_cast<int>(blockIdx.x) / units_of_tile;
  const int first_column = static_cast<int>(blockIdx.x) % units_of_tile * kUnitColumns;
  std::byte* unit = units + static_cast<std::size_t>(blockIdx.x) * Layout::kBytes;
  const int thread = static_cast<int>(threadIdx.x);

  {
    const int lane = thread % 32;
    const int first_step = thread / 32 * Layout::kStepsInLoad;
    const int output = output_of(shape, tile, lane / 4);
    std::uint32_t words[4] = {};
    for (int i = 0; i < 128 / kBits<kType>; ++i) {
      const int column = first_column + (first_step + i / 8) * kGroupColumns + column_in_step<kType>(lane % 4, i % 8);
      if (output < shape.outputs && column < shape.columns)
        words[i * kBits<kType> / 32] |= code_at<kType>(matrix, output, column) << (i * kBits<kType> % 32);
    }
    reinterpret_cast<uint4*>(unit + Layout::kCodes)[thread] = {words[0], words[1], words[2], words[3]};
  }

  const int row = thread % kPieceRows;
  const int step = thread / kPieceRows;
  const int output = output_of(shape, tile, row);
  const int column = first_column + step * kGroupColumns;
  const bool is_there = output < shape.outputs && column < shape.columns;
  const std::size_t group = static_cast<std::size_t>(output) * (shape.columns / kGroupColumns) + column / kGroupColumns;
  if (step >= kUnitSteps) return;
  if constexpr (kType == WeightType::kQ8) {
    *reinterpret_cast<std::uint16_t*>(unit + q8_scale_byte(row, step)) = is_there ? matrix.q8.scales[group].bits : 0;
  } else {
    unit[q4_scale_byte(row, step, false)] = std::byte{is_there ? matrix.q4.scales[group] : std::uint8_t{0}};
    unit[q4_scale_byte(row, step, true)] = std::byte{is_there ? matrix.q4.minimums[group] : std::uint8_t{0}};
    if (step > 0) return;
    const std::size_t block = static_cast<std::size_t>(output) * units_of_tile + first_column / kBlockColumns;
    *reinterpret_cast<std::uint16_t*>(unit + q4_factor_byte(row, false)) = is_there ? matrix.q4.d[block].bits : 0;
    *reinterpret_cast<std::uint16_t*>(unit + q4_factor_byte(row, true)) = is_there ? matrix.q4.m[block].bits : 0;
  }
}

template <WeightType kType>
void launch(const Matrix& matrix, bool is_gate_up, std::byte* units, cudaStream_t stream) {
  const MatrixShape shape{matrix.rows, matrix.columns, is_gate_up};
  const int count = shape.tiles() * units_in_tile(shape.columns);
  launch_kernel(pack_kernel<kType>, static_cast<unsigned>(count), kThreads<kType>, stream, matrix, shape, units);
}

}  // namespace

void launch_pack_weights(const Matrix& matrix, bool is_gate_up, std::byte* units, cudaStream_t stream) {
  if (matrix.rows == 0) return;
  const auto launch_of_type = matrix.type == WeightType::kQ8 ? launch<WeightType::kQ8> : launch<WeightType::kQ4>;
  launch_of_type(matrix, is_gate_up, units, stream);
}

}  // namespace gemma
