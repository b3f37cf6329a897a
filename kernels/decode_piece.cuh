#pragma once

// The product of one piece of weights and the activations of up to 8 rows, by one warp on the tensor cores. Weights are
// the 8-column operand of the tensor cores, rows of activations the upper rows of the 16-row one.
//
// A piece has up to 16 steps of 32 columns. Steps c and c + 8 make class c, and the classes' sums are added up as a
// butterfly over lanes does it (sum_classes). Of weights in bf16, a class is one chain of accumulation for the even and
// one for the odd 16 columns of both steps, added up. Of quantised weights, a step is a group: inputs are whole
// numbers, too (decode_digits.cuh), so that the sum of its products is exact in any order; it is scaled (GroupScales),
// and a class is the sum of both steps.
//
// With one row, the rows of the tensor cores' operand are the classes: each lane holds the activations of its own
// class's steps alone, and takes what it has multiplied by the weights of these steps. With more rows, each row's lanes
// add up all classes. All give the same bits.

#include "decode_block.cuh"
#include "decode_digits.cuh"
#include "decode_message.cuh"
#include "packed_weights.cuh"

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

/// The input of packed weights: in digits, or in bf16, of which warps make digits. Both lie in the same places.
struct PackedOperand : Operand {
  const DigitGroup* groups;  ///< [rows, columns / 32] of what is in digits; else null
  int group_pitch;

  __device__ bool are_digits() const { return groups != nullptr; }
};
struct PackedRowOperand : PlainRowOperand {
  const DigitGroup* groups;  ///< [columns / 32], or null

  __device__ bool are_digits() const { return groups != nullptr; }
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

__device__ inline void load_weights(std::uint32_t (&b)[4], const __nv_bfloat16* weights, int step) {
  const int lane = lane_index();
  load_matrices(b, weights + swizzled(lane % 8, 32 * step + 8 * (lane / 8)));
}

/// What one lane feeds to the tensor cores of the only row in a piece: the steps of class lane / 4.
/// @tparam kSteps  how many
template <int kSteps>
class OwnSteps {
 public:
  uint4 steps[kSteps];
  int column, columns;  // of the piece: the first, and how many

  /// Asks for a piece.
  template <class Input>
  __device__ void ask(const Input& operand, int first_column, int columns_in_piece) {
    column = first_column;
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
    const int first = column + 32 * step(i) + lane_index() % 4 * 8;
    if (has_step(i) && !operand.are_messages()) steps[i] = *reinterpret_cast<const uint4*>(operand.row + first);
    if constexpr (Input::kMayBeMessages) {
      load_relaxed_four_if(has_step(i) && operand.are_messages(), operand.words + first, steps[i]);
      load_relaxed_four_if(has_step(i) && operand.are_messages(), operand.words + first + 4, more_[i]);
    }
  }

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

/// A piece's weights in bf16: all steps at once, without a branch between them, so that no load waits for another.
struct PieceWeights {
  std::uint32_t steps[kPieceSteps][4];

  /// @param columns  that the piece has
  __device__ PieceWeights(const __nv_bfloat16* weights, int columns) {
    const int lane = lane_index();
    const __nv_bfloat16* const rows[2] = {weights + swizzled(lane % 8, 8 * (lane / 8)),
                                          weights + swizzled(lane % 8, 32 + 8 * (lane / 8))};
#pragma unroll
    for (int step = 0; step < kPieceSteps; ++step)
      load_matrices(steps[step], rows[step % 2] + step / 2 * swizzled(0, 64));
    // The copy engine has filled up the stage with zeros, but for half a run of columns.
    if (kArchitecture < 900 || columns % 64 != 0) {
#pragma unroll
      for (int step = 0; step < kPieceSteps; ++step) {
#pragma unroll
        for (std::uint32_t& two : steps[step]) two = 32 * step < columns ? two : 0;
      }
    }
  }
};

/// The product of a piece in bf16 and the only row.
/// @return its sums, in all lanes
template <class Format>
__device__ float2 multiply_piece_by_row(const Stream<Format>& stream, int piece,
                                        const OwnSteps<kPieceSteps / kClasses>& own) {
  static_assert(kPieceSteps == 2 * kClasses);
  const RowFragment first(own.steps[0]), second(own.steps[1]);
  stream.wait_until_full(piece);
  const PieceWeights weights(stream.stage(piece), own.columns);
  stream.release(piece);
  float2 sums = {0, 0};
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    StepSums of_class;
    of_class.add(first, weights.steps[c]);
    of_class.add(second, weights.steps[c + kClasses]);
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
  stream.release(piece);
  float2 of_class[kClasses];
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    StepSums sums;
    sums.add(RowFragment(own[c]), weights.steps[c]);
    sums.add(RowFragment(own[c + kClasses]), weights.steps[c + kClasses]);
    of_class[c] = {sums.sum(0), sums.sum(1)};
  }
  return sum_classes(of_class);
}

// --- the same of quantised weights: a piece of kUnits units ---
//
// What a stage has behind the units of its piece is no weights; sums of it are made, and left out.

/// Whether a group's inputs must be added up: its weights have a minimum.
template <WeightType kType>
inline constexpr bool kNeedsSums = kType == WeightType::kQ4;

/// A piece's weights as a lane needs them for the only row: all codes, and what those of its own class are scaled by.
template <WeightType kType, int kUnits>
struct OnlyRowWeights {
  static constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;

  uint4 codes[kUnits][kUnitSteps / kStepsInLoad];
  GroupScales<kType> scales[kUnits];

  __device__ explicit OnlyRowWeights(const std::byte* units) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const std::byte* const unit = units + u * unit_bytes(kType);
#pragma unroll
      for (int load = 0; load < kUnitSteps / kStepsInLoad; ++load) codes[u][load] = load_codes<kType>(unit, load);
      scales[u] = load_scales<kType>(unit, lane_index() / 4);
    }
  }
  __device__ void unpack(std::uint32_t (&b)[2], int unit, int step) const {
    unpack_step<kType>(b, codes[unit][step / kStepsInLoad], step % kStepsInLoad);
  }
};

/// The product of a piece of packed weights and the only row.
/// @param own  what has been asked for of the operand
template <WeightType kType, int kUnits, class Format>
__device__ float2 multiply_packed_by_row(const Stream<Format>& stream, int piece, const PackedRowOperand& operand,
                                         OwnSteps<kUnits>& own) {
  const int group = lane_index() / 4;
  DigitGroup inputs[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (!operand.are_digits()) {
      inputs[u] = make_digits<kNeedsSums<kType>>(own.steps[u]);
      continue;
    }
    const int step = u * kUnitSteps + group;
    inputs[u] =
        kDigitColumns * step < own.columns ? operand.groups[own.column / kDigitColumns + step] : DigitGroup{0, 0};
  }

  stream.wait_until_full(piece);
  const OnlyRowWeights<kType, kUnits> weights(stream.bytes(piece));
  stream.release(piece);

  float2 of_unit[kUnits] = {};
#pragma unroll
  for (int step = 0; step < kUnitSteps; ++step) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      std::uint32_t b[2];
      weights.unpack(b, u, step);
      const float2 sums = multiply_digits(own.steps[u], b);
      // Only one row has the inputs that this step's codes belong to.
      if (step == 0 || group == step) of_unit[u] = sums;
    }
  }
  float2 sums = {0, 0};
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
    sums = add_group(sums, weights.scales[u], of_unit[u], inputs[u], u == 0 || own.columns > u * kUnitColumns);
  return butterfly(sums);
}

/// The same for several rows.
template <WeightType kType, int kUnits, class Format>
__device__ float2 multiply_packed_by_rows(const Stream<Format>& stream, int piece, const PackedOperand& operand,
                                          int rows, int column, int columns) {
  constexpr int kSteps = kUnits * kUnitSteps;
  constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;
  const int group = lane_index() / 4;
  const auto has = [&](int step) { return group < rows && kDigitColumns * step < columns; };
  uint4 own[kSteps];
  DigitGroup inputs[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    own[step] = has(step) ? operand.read(group, column + kDigitColumns * step) : make_uint4(0, 0, 0, 0);
  if (operand.are_digits()) {
    const DigitGroup* const groups = operand.groups + group * operand.group_pitch + column / kDigitColumns;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) inputs[step] = has(step) ? groups[step] : DigitGroup{0, 0};
  } else {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) inputs[step] = make_digits<kNeedsSums<kType>>(own[step]);
  }

  stream.wait_until_full(piece);
  const std::byte* const units = stream.bytes(piece);
  float2 of_class[kClasses] = {};
#pragma unroll
  for (int load = 0; load < kUnitSteps / kStepsInLoad; ++load) {
    uint4 codes[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) codes[u] = load_codes<kType>(units + u * unit_bytes(kType), load);
#pragma unroll
    for (int i = 0; i < kStepsInLoad; ++i) {
      const int c = load * kStepsInLoad + i;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        std::uint32_t b[2];
        unpack_step<kType>(b, codes[u], i);
        const int step = u * kUnitSteps + c;
        of_class[c] = add_group(of_class[c], load_scales<kType>(units + u * unit_bytes(kType), c),
                                multiply_digits(own[step], b), inputs[step], u == 0 || columns > u * kUnitColumns);
      }
    }
  }
  stream.release(piece);
  return sum_classes(of_class);
}

}  // namespace gemma
