#pragma once

// Matrix products of up to 16 rows with streamed weights, on the tensor cores.
//
// A product sums, for each row and output, over pieces of 512 columns in ascending order; within a piece over the eight
// classes of its steps of 32 columns (multiply_piece). That order is the same for any number of rows, and in every
// kernel that decodes. Weights are the 8-column operand of the tensor cores, tokens the rows of the 16-row one.

#include "decode_block.cuh"

namespace gemma {

/// Where an element of a product's input lies so that a lane finds what it feeds to the tensor cores for 32 columns in
/// one run of 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16, ... of the 32 for lane t of 4.
__device__ inline int operand_order(int column) {
  return (column & ~31) | (((column >> 1) & 3) << 3) | (((column >> 3) & 3) << 1) | (column & 1);
}

/// Writes two neighbouring elements of a product's input.
__device__ inline void store_pair(__nv_bfloat16* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(first, second);
}

/// Distance of rows of a product's input in shared memory, such that two rows fall into different halves of the banks.
__host__ __device__ int operand_pitch(int columns) { return columns + ((columns * 2) % 128 == 0 ? 32 : 0); }

/// Tiles of 8 outputs are dealt out to the blocks of the grid in turn, going on from one product to the next, so that
/// over a layer all blocks stream nearly the same number of bytes.
class Dealer {
 public:
  /// This block's first tile of the next product, which has `tiles` tiles; the others follow in steps of the grid.
  __device__ int deal(int tiles) {
    const int grid = static_cast<int>(gridDim.x);
    const int first = (static_cast<int>(blockIdx.x) - dealt_ + grid) % grid;
    dealt_ = (dealt_ + tiles) % grid;
    return first;
  }

 private:
  int dealt_ = 0;
};

__device__ inline int pieces_in_tile(int columns) { return (columns + kPieceColumns - 1) / kPieceColumns; }

/// A product's input: rows of bf16 in operand order, in shared or in global memory.
struct Operand {
  const __nv_bfloat16* rows;
  int pitch;
};

/// Adds up what the eight step classes of a piece gave, in the order of a butterfly over lanes.
__device__ inline float sum_classes(const float (&sums)[8]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/// What a lane gets of a piece's product, two neighbouring outputs of two rows.
struct PieceSums {
  float2 upper, lower;  // of rows lane / 4 and lane / 4 + 8; outputs 2 * (lane % 4) and 2 * (lane % 4) + 1 of the tile
};

/// One warp: the product of a piece of weights and the operand's columns from `column` on. A piece has up to 16 steps
/// of 32 columns; steps c and c + 8 make class c: one chain of accumulation for the even and one for the odd 16 columns
/// of both, added up. The classes' sums are added up as a butterfly over lanes does it.
///
/// With one row, the rows of the tensor cores' operand are the classes: each lane holds the activations of its own
/// class's steps alone, and gives zeros in the others. With more rows, each class has accumulators of its own. Both
/// give the same bits.
/// @return of one row: its sums in `upper` of all lanes
template <int kRows, bool kIsGlobal>
__device__ PieceSums multiply_piece(const Stream& stream, int piece, const Operand& operand, int rows, int column,
                                    int columns) {
  constexpr int kSteps = kPieceColumns / 32;
  constexpr int kClasses = 8;
  const int lane = lane_index();
  const int group = lane / 4;
  const int steps = columns / 32;
  const auto read = [&](const __nv_bfloat16* row, int step) {
    const uint4* eight = reinterpret_cast<const uint4*>(row + column + 32 * step + lane % 4 * 8);
    return kIsGlobal ? __ldcg(eight) : *eight;
  };
  const auto load_weights = [&](const __nv_bfloat16* weights, int step, std::uint32_t(&b)[4]) {
    load_matrices(b, weights + swizzled(lane % 8, 32 * step + 8 * (lane / 8)));
  };
  constexpr uint4 kNothing = {0, 0, 0, 0};

  if constexpr (kRows == 1) {
    // What other blocks have written is asked for before the wait for the weights.
    uint4 own[kSteps / kClasses];
#pragma unroll
    for (int i = 0; i < kSteps / kClasses; ++i) {
      const int step = group + kClasses * i;
      own[i] = step < steps ? read(operand.rows, step) : kNothing;
    }
    stream.wait_until_full(piece);
    const __nv_bfloat16* weights = stream.stage(piece);
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step >= steps) continue;
      std::uint32_t b[4];
      load_weights(weights, step, b);
      const uint4 a = group == step % kClasses ? own[step / kClasses] : kNothing;
      multiply_accumulate(even, a.x, 0, a.y, 0, b[0], b[1]);
      multiply_accumulate(odd, a.z, 0, a.w, 0, b[2], b[3]);
    }
    stream.release(piece);
    float2 sums = {even[0] + odd[0], even[1] + odd[1]};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      sums.x += __shfl_xor_sync(~0u, sums.x, offset);
      sums.y += __shfl_xor_sync(~0u, sums.y, offset);
    }
    return {sums, {}};
  } else {
    const bool has_upper = group < rows;
    const bool has_lower = group + 8 < rows;
    const __nv_bfloat16* upper_row = operand.rows + group * operand.pitch;
    const __nv_bfloat16* lower_row = upper_row + 8 * operand.pitch;
    stream.wait_until_full(piece);
    const __nv_bfloat16* weights = stream.stage(piece);
    float of_class[4][kClasses];
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
      for (int step = c; step < kSteps; step += kClasses) {
        if (step >= steps) continue;
        std::uint32_t b[4];
        load_weights(weights, step, b);
        const uint4 upper = has_upper ? read(upper_row, step) : kNothing;
        const uint4 lower = has_lower ? read(lower_row, step) : kNothing;
        multiply_accumulate(even, upper.x, lower.x, upper.y, lower.y, b[0], b[1]);
        multiply_accumulate(odd, upper.z, lower.z, upper.w, lower.w, b[2], b[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) of_class[i][c] = even[i] + odd[i];
    }
    stream.release(piece);
    return {{sum_classes(of_class[0]), sum_classes(of_class[1])}, {sum_classes(of_class[2]), sum_classes(of_class[3])}};
  }
}

/// One product: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls epilogue(row, output, pair
/// of values): outputs 2i and 2i + 1, or of gate_up row i of both.
template <int kRows, bool kIsGlobal, class Epilogue>
__device__ void multiply(const Shared& shared, const StreamedMatrix& matrix, const Operand& operand, int rows,
                         int& next_piece, Dealer& dealer, const Epilogue& epilogue) {
  const int grid = static_cast<int>(gridDim.x);
  const int lane = lane_index();
  constexpr int kPairsInRow = kPieceRows / 2;
  constexpr int kPairs = kRows * kPairsInRow;
  constexpr int kValuesInPiece = kRows * kPieceRows;
  constexpr int kPiecesInScratch = kScratchBytes / (4 * kValuesInPiece);
  static_assert(kPairs <= kConsumers);
  const int pieces_in_row = pieces_in_tile(matrix.columns);
  const int pieces_at_once = min(pieces_in_row, kPiecesInScratch);
  const int tiles_at_once = kPiecesInScratch / pieces_at_once;

  for (int tile = dealer.deal(matrix.tiles()); tile < matrix.tiles(); tile += tiles_at_once * grid) {
    const int tiles = min(tiles_at_once, (matrix.tiles() - tile + grid - 1) / grid);
    float2 carried = {0, 0};  // of a tile that has more pieces than fit into the scratch memory at once
    for (int first_piece = 0; first_piece < pieces_in_row; first_piece += pieces_at_once) {
      const int pieces = min(pieces_at_once, pieces_in_row - first_piece);
      const int slots = tiles * pieces;
      // This warp's pieces: those whose number is its own modulo the number of warps.
      for (int slot = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps; slot < slots;
           slot += kConsumerWarps) {
        const int column = (first_piece + slot % pieces) * kPieceColumns;
        const PieceSums sums = multiply_piece<kRows, kIsGlobal>(shared.stream, next_piece + slot, operand, rows, column,
                                                                min(kPieceColumns, matrix.columns - column));
        float* to = shared.scratch + slot * kValuesInPiece + (lane / 4) * kPieceRows + 2 * (lane % 4);
        if (lane / 4 < kRows) *reinterpret_cast<float2*>(to) = sums.upper;
        if (kRows > 8) *reinterpret_cast<float2*>(to + 8 * kPieceRows) = sums.lower;
      }
      next_piece += slots;
      consumer_barrier();
      const bool is_last = first_piece + pieces == pieces_in_row;
      for (int i = static_cast<int>(threadIdx.x); i < tiles * kPairs; i += kConsumers) {
        const int row = i % kPairs / kPairsInRow;
        const int pair = i % kPairsInRow;
        const int first = matrix.is_gate_up ? pair : 2 * pair;
        const int second = matrix.is_gate_up ? pair + kPairsInRow : 2 * pair + 1;
        const float* partial = shared.scratch + i / kPairs * pieces * kValuesInPiece + row * kPieceRows;
        float2 sum = first_piece == 0 ? make_float2(0, 0) : carried;
#pragma unroll 4
        for (int piece = 0; piece < pieces; ++piece) {
          sum.x += partial[piece * kValuesInPiece + first];
          sum.y += partial[piece * kValuesInPiece + second];
        }
        carried = sum;
        const int output = (tile + i / kPairs * grid) * matrix.rows_in_tile() + first;
        if (is_last && row < rows && output < matrix.outputs) epilogue(row, output, sum);
      }
      consumer_barrier();
    }
  }
}

}  // namespace gemma
