#pragma once

// The product of one piece of weights and the activations of up to 8 rows, by one warp on the tensor cores. Weights are
// the 8-column operand of the tensor cores, rows of activations the upper rows of the 16-row one.
//
// A piece has up to 16 steps of 32 columns. Steps c and c + 8 make class c, and the classes' sums are added up as a
// butterfly over lanes does it (sum_classes). Of weights in bf16, a class is one chain of accumulation for the even and
// one for the odd 16 columns of both steps, added up. (Of packed weights: decode_packed_piece.cuh.)
//
// With one row, the rows of the tensor cores' operand are the classes: each lane holds the activations of its own
// class's steps alone, and takes what it has multiplied by the weights of these steps. With more rows, each row's lanes
// add up all classes. All give the same bits.

#include "decode_block.cuh"
#include "decode_message.cuh"
#include "ptx.cuh"

namespace gemma {

/// Where an element of a product's input lies so that a lane finds what it feeds to the tensor cores for 32 columns in
/// one run of 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16, ... of the 32 for lane t of 4.
__device__ inline int operand_order(int column) {
  return (column & ~31) | (((column >> 1) & 3) << 3) | (((column >> 3) & 3) << 1) | (column & 1);
}

/// Distance of rows of a product's input in shared memory, such that two rows fall into different halves of the banks.
__host__ __device__ inline int operand_pitch(int columns) { return columns + ((columns * 2) % 128 == 0 ? 32 : 0); }

/// A product's input: rows of bf16 in operand order, in shared or in global memory.
struct Operand {
  __nv_bfloat16* rows;
  int pitch;

  /// Where an element is; columns 2i and 2i + 1 are neighbours.
  __device__ __nv_bfloat16* at(int row, int column) const {
    return rows + static_cast<std::size_t>(row) * pitch + operand_order(column);
  }
  /// What a lane feeds to the tensor cores for 32 columns.
  __device__ uint4 read(int row, int column) const {
    return *reinterpret_cast<const uint4*>(rows + row * pitch + column + lane_index() % 4 * 8);
  }
};

/// The input of a product with one row: in shared memory, or the messages of other blocks, in the same order.
struct RowOperand {
  static constexpr bool kMayBeMessages = true;

  const __nv_bfloat16* row;
  const unsigned* words;  ///< not null: messages
  unsigned tag;

  __device__ bool are_messages() const { return words != nullptr; }
};

/// The same where there are no messages: in shared or in global memory.
struct PlainRowOperand {
  static constexpr bool kMayBeMessages = false;

  const __nv_bfloat16* row;

  __device__ static constexpr bool are_messages() { return false; }
};

// What a lane gets of a piece's product are two neighbouring outputs of row lane / 4: 2 * (lane % 4) and 2 * (lane % 4)
// + 1 of the tile.

inline constexpr int kPieceSteps = kPieceColumns / 32;
inline constexpr int kClasses = 8;

/// Adds up what the eight step classes of a piece gave, in the order of a butterfly over lanes.
__device__ inline float sum_classes(const float (&sums)[kClasses]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/// The same of sums that the classes' lanes have.
__device__ inline float2 butterfly(float2 sums) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    sums.x += __shfl_xor_sync(~0u, sums.x, offset);
    sums.y += __shfl_xor_sync(~0u, sums.y, offset);
  }
  return sums;
}

__device__ inline float2 sum_classes(const float2 (&sums)[kClasses]) {
  float x[kClasses], y[kClasses];
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    x[c] = sums[c].x;
    y[c] = sums[c].y;
  }
  return {sum_classes(x), sum_classes(y)};
}

/// What one lane feeds to the tensor cores of the only row in a piece: the two steps of class lane / 4.
class OwnSteps {
 public:
  static constexpr int kSteps = kPieceSteps / kClasses;

  uint4 steps[kSteps];
  int columns;  // of the piece

  /// Asks for a piece.
  template <class Input>
  __device__ void ask(const Input& operand, int column, int columns_in_piece) {
    column_ = column;
    columns = columns_in_piece;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      steps[i] = more_[i] = make_uint4(0, 0, 0, 0);
      ask(operand, i);
    }
  }

  /// Waits for what was asked for.
  template <class Input>
  __device__ void wait(const Input& operand) {
    if constexpr (Input::kMayBeMessages) {
      if (!operand.are_messages()) return;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        while (has_step(i) && !messages(i).have_come(operand.tag)) ask(operand, i);
        steps[i] = messages(i).values();
      }
      __syncwarp();
    }
  }

 private:
  __device__ static int step(int i) { return lane_index() / 4 + kClasses * i; }
  __device__ bool has_step(int i) const { return step(i) < columns / 32; }
  __device__ ShortMessages messages(int i) const { return {steps[i], more_[i]}; }
  template <class Input>
  __device__ void ask(const Input& operand, int i) {
    const int first = column_ + 32 * step(i) + lane_index() % 4 * 8;
    if (has_step(i) && !operand.are_messages()) steps[i] = *reinterpret_cast<const uint4*>(operand.row + first);
    if constexpr (Input::kMayBeMessages) {
      load_relaxed_four_if(has_step(i) && operand.are_messages(), operand.words + first, steps[i]);
      load_relaxed_four_if(has_step(i) && operand.are_messages(), operand.words + first + 4, more_[i]);
    }
  }

  int column_;
  uint4 more_[kSteps];
};

/// What a lane feeds to the tensor cores for 32 columns: its own row of the operand, and the same again as a lower row,
/// whose results are not used.
struct RowFragment {
  std::uint32_t even[4], odd[4];  // of the first 16 columns and of the others

  /// The lower row is another value for the compiler: it would otherwise put each operand together anew for each use.
  __device__ explicit RowFragment(const uint4& own)
      : even{own.x, own.x | zero(), own.y, own.y | zero()}, odd{own.z, own.z | zero(), own.w, own.w | zero()} {}

 private:
  __device__ static unsigned zero() { return gridDim.z - 1; }
};

/// Half of the tensor cores' work of a step: two chains, of the first 16 columns and of the others.
struct StepSums {
  float even[4] = {}, odd[4] = {};

  __device__ void add(const RowFragment& a, const std::uint32_t (&b)[4]) {
    multiply_accumulate(even, a.even[0], a.even[1], a.even[2], a.even[3], b[0], b[1]);
    multiply_accumulate(odd, a.odd[0], a.odd[1], a.odd[2], a.odd[3], b[2], b[3]);
  }
  __device__ float sum(int i) const { return even[i] + odd[i]; }
};

/// A piece's weights in bf16, in its stage.
class PieceWeights {
 public:
  /// @param columns  that the piece has
  __device__ PieceWeights(const __nv_bfloat16* weights, int columns) : columns_(columns) {
    const int lane = lane_index();
    rows_[0] = weights + swizzled(lane % 8, 8 * (lane / 8));
    rows_[1] = weights + swizzled(lane % 8, 32 + 8 * (lane / 8));
  }

  /// Loads one step, known at compile time.
  __device__ void load(std::uint32_t (&b)[4], int step) const {
    load_matrices(b, rows_[step % 2] + step / 2 * swizzled(0, 64));
    // The copy engine has filled up the stage with zeros, but for half a run of columns.
    if (kArchitecture < 900 || columns_ % 64 != 0) {
#pragma unroll
      for (std::uint32_t& two : b) two = 32 * step < columns_ ? two : 0;
    }
  }

 private:
  const __nv_bfloat16* rows_[2];
  int columns_;
};

/// The product of a piece in bf16 and the only row.
/// @return its sums, in all lanes
template <class Format>
__device__ float2 multiply_piece_by_row(const Stream<Format>& stream, int piece, const OwnSteps& own) {
  static_assert(kPieceSteps == 2 * kClasses);
  const RowFragment first(own.steps[0]), second(own.steps[1]);
  stream.wait_until_full(piece);
  const PieceWeights weights(stream.stage(piece), own.columns);
  // All steps at once, without a branch between them, so that no load waits for another.
  std::uint32_t steps[kPieceSteps][4];
#pragma unroll
  for (int step = 0; step < kPieceSteps; ++step) weights.load(steps[step], step);
  stream.release(piece);
  float2 sums = {0, 0};
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    StepSums of_class;
    of_class.add(first, steps[c]);
    of_class.add(second, steps[c + kClasses]);
    // The other lanes have multiplied by activations of other steps.
    if (lane_index() / 4 == c) sums = {of_class.sum(0), of_class.sum(1)};
  }
  return butterfly(sums);
}

/// The same for several rows.
template <class Format>
__device__ float2 multiply_piece_by_rows(const Stream<Format>& stream, int piece, const Operand& operand, int rows,
                                         int column, int columns) {
  const int group = lane_index() / 4;
  const int steps = columns / 32;
  const auto read = [&](int step) {
    return group < rows && step < steps ? operand.read(group, column + 32 * step) : make_uint4(0, 0, 0, 0);
  };
  // What other blocks have written is asked for before the wait for the weights, all at once.
  uint4 own[kPieceSteps];
#pragma unroll
  for (int step = 0; step < kPieceSteps; ++step) own[step] = read(step);
  stream.wait_until_full(piece);
  const PieceWeights weights(stream.stage(piece), columns);
  float2 of_class[kClasses];
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    StepSums sums;
#pragma unroll
    for (int step = c; step < kPieceSteps; step += kClasses) {
      // All of them at once do not fit into registers beside the rows.
      std::uint32_t b[4];
      weights.load(b, step);
      sums.add(RowFragment(own[step]), b);
    }
    of_class[c] = {sums.sum(0), sums.sum(1)};
  }
  stream.release(piece);
  return sum_classes(of_class);
}

}  // namespace gemma
