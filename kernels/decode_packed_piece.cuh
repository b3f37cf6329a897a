#pragma once

// The product of one piece of packed weights and the activations of up to 8 rows, by one warp on the tensor cores: as
// decode_piece.cuh, with inputs in digits (decode_digits.cuh).
//
// A step is a group: its codes' products with the inputs are added up exactly, in whatever order, and scaled
// (add_group()). The even steps of a piece's half make a class, in ascending order, and so do the odd ones; both are
// added up, and then both halves. A piece has kUnits units. What a stage has behind them is no weights; sums of it are
// made, and left out.

#include "decode_digits.cuh"
#include "decode_piece.cuh"
#include "packed_weights.cuh"

namespace gemma {

// --- one row ---

/// Columns of the only row in digits: whole pieces. Behind the row's own there are zeros, or another row's digits:
/// their weights are zeros.
__host__ __device__ inline int padded_columns(int columns) {
  return (columns + kPieceColumns - 1) / kPieceColumns * kPieceColumns;
}

/// The only row: in digits, or in bf16, of which warps make digits.
struct PackedRowOperand {
  DigitRow digits;           ///< of padded_columns()
  const __nv_bfloat16* row;  ///< in operand order; null: it is in digits

  __device__ bool are_digits() const { return row == nullptr; }
};

/// Which steps of a piece lanes see to with the only row.
///
/// Each use of the tensor cores takes two steps, i of the piece's first half and i of its second one: rows 0 to 7 of
/// one operand are the outputs' codes in the first of them, rows 8 to 15 those in the second. The columns of the other
/// operand are the inputs' digits: column 4 * (i % 2) + 2 * half has the upper ones of the step in that half, the next
/// column the lower ones. The columns of other steps are zeros. So two uses, for i = 2p and 2p + 1, add up to a pair's
/// sums of four steps, side by side: lane (g, t) finds both digits' sums of output g in step i = 2p + t / 2 of half t
/// % 2.
template <int kUnits>
struct PairedSteps {
  static constexpr int kInHalf = kUnits * kUnitSteps / 2;
  static constexpr int kPairs = kInHalf / 2;

  /// The step whose digits the lane feeds to the tensor cores, and which of its digits.
  __device__ static int fed(int pair) {
    const int column = lane_index() / 4;
    return column / 2 % 2 * kInHalf + 2 * pair + column / 4;
  }
  __device__ static int fed_digit() { return lane_index() / 4 % 2; }
  /// Which of the pair's two uses it feeds them to.
  __device__ static int fed_use() { return lane_index() / 16; }
  /// The step whose sums the lane finds, and in which half of the piece it is.
  __device__ static int found(int pair) { return found_half() * kInHalf + 2 * pair + lane_index() % 4 / 2; }
  __device__ static int found_half() { return lane_index() % 2; }
};

/// The only row's input of a piece, as a lane needs it.
template <int kUnits>
class RowDigits {
 public:
  using Steps = PairedSteps<kUnits>;

  uint2 fed[Steps::kPairs];         // digits of the steps that the lane feeds: first four columns, and the others
  DigitGroup found[Steps::kPairs];  // of the steps whose sums it finds
  int columns;                      // of the piece

  /// Asks for the row's numbers in bf16, if they are.
  /// @param column            the piece's first
  /// @param columns_in_piece  that the matrix has of it
  /// @param is_there          whether there is a piece
  __device__ void ask(const PackedRowOperand& operand, int column, int columns_in_piece, bool is_there) {
    column_ = column;
    columns = columns_in_piece;
    if constexpr (kUnits == 2) {
      if (operand.are_digits()) return;
#pragma unroll
      for (int i = 0; i < kMade; ++i) {
        const int step = Steps::fed(first_made() + i);
        const auto* const from = operand.row + column + kDigitColumns * step + lane_index() % 4 * 8;
        asked_[i] = make_uint4(0, 0, 0, 0);
        if (is_there && kDigitColumns * step < columns) asked_[i] = *reinterpret_cast<const uint4*>(from);
      }
    }
  }

  /// Gets the digits. For columns that the row does not have they count for nothing (padded_columns()).
  /// @tparam kHasSums  of make_digits()
  template <bool kHasSums>
  __device__ void take(const PackedRowOperand& operand) {
    if (operand.are_digits()) {
      const int first = column_ / kDigitColumns;
#pragma unroll
      for (int p = 0; p < Steps::kPairs; ++p) {
        fed[p] = operand.digits.read(first + Steps::fed(p), lane_index() % 4, Steps::fed_digit());
        found[p] = operand.digits.groups[first + Steps::found(p)];
      }
    } else if constexpr (kUnits == 2) {
      make<kHasSums>();
    }
  }

 private:
  // A lane and the one 4 lanes across feed different digits of the same steps: each makes both of half of them.
  static constexpr int kMade = Steps::kPairs / 2;

  __device__ static int first_made() { return kMade * Steps::fed_digit(); }

  template <bool kHasSums>
  __device__ void make() {
    const bool is_lower = Steps::fed_digit() == 1;
    DigitGroup made[kMade];
#pragma unroll
    for (int i = 0; i < kMade; ++i) {
      LaneDigits digits = asked_[i];
      made[i] = make_digits<kHasSums>(digits);
      const uint2 upper = {digits.x, digits.y}, lower = {digits.z, digits.w};
      const uint2 kept = is_lower ? lower : upper, given = is_lower ? upper : lower;
      const uint2 got = {__shfl_xor_sync(~0u, given.x, 4), __shfl_xor_sync(~0u, given.y, 4)};
      fed[i] = is_lower ? got : kept;
      fed[kMade + i] = is_lower ? kept : got;
    }
#pragma unroll
    for (int p = 0; p < Steps::kPairs; ++p) {
      const int t = lane_index() % 4;
      const int maker = 16 * (t / 2) + 8 * (t % 2) + 4 * (p / kMade);  // a lane that has made the pair's step
      found[p].scale = __shfl_sync(~0u, made[p % kMade].scale, maker);
      found[p].sum = kHasSums ? __shfl_sync(~0u, made[p % kMade].sum, maker) : 0;
    }
  }

  int column_;
  uint4 asked_[kMade];
};

/// A piece's weights as a lane needs them for the only row: codes of output lane / 4 in all steps, and what those of
/// the steps whose sums it finds are scaled by.
template <WeightType kType, int kUnits>
struct OnlyRowWeights {
  using Steps = PairedSteps<kUnits>;
  static constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;

  uint4 codes[kUnits][kUnitSteps / kStepsInLoad];
  OutputScales<kType> scales[Steps::kPairs];

  __device__ explicit OnlyRowWeights(const std::byte* units) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int load = 0; load < kUnitSteps / kStepsInLoad; ++load)
        codes[u][load] = load_codes<kType>(units + u * unit_bytes(kType), load);
    }
    const std::byte* const found_unit = units + Steps::found(0) / kUnitSteps * unit_bytes(kType);
#pragma unroll
    for (int p = 0; p < Steps::kPairs; ++p)
      scales[p] = load_output_scales<kType>(found_unit, lane_index() / 4, Steps::found(p) % kUnitSteps);
  }
  __device__ void unpack(std::uint32_t (&words)[2], int step) const {
    const int in_unit = step % kUnitSteps;
    unpack_step<kType>(words, codes[step / kUnitSteps][in_unit / kStepsInLoad], in_unit % kStepsInLoad);
  }
};

/// The product of a piece of packed weights and the only row.
/// @return the sum of output lane / 4
template <WeightType kType, int kUnits, class Format>
__device__ float multiply_packed_by_row(const Stream<Format>& stream, int piece, const RowDigits<kUnits>& row) {
  using Steps = PairedSteps<kUnits>;
  stream.wait_until_full(piece);
  const OnlyRowWeights<kType, kUnits> weights(stream.bytes(piece));
  stream.release(piece);

  const bool is_second = Steps::found_half() == 1;
  float sum = 0;
#pragma unroll
  for (int p = 0; p < Steps::kPairs; ++p) {
    int of_digits[4];
    clear_digit_sums(of_digits);
#pragma unroll
    for (int use = 0; use < 2; ++use) {
      std::uint32_t first[2], second[2];
      weights.unpack(first, 2 * p + use);
      weights.unpack(second, 2 * p + use + Steps::kInHalf);
      const uint2 digits = Steps::fed_use() == use ? row.fed[p] : uint2{0, 0};
      multiply_accumulate(of_digits, first[0], second[0], first[1], second[1], digits.x, digits.y);
    }
    const float codes = join_digits(is_second ? of_digits[2] : of_digits[0], is_second ? of_digits[3] : of_digits[1]);
    sum = add_group(sum, weights.scales[p], codes, row.found[p]);
  }
  if (kUnits == 2 && is_second && row.columns <= kUnitColumns) sum = 0;
  // The half's other class, and the other half.
  sum += __shfl_xor_sync(~0u, sum, 2);
  return sum + __shfl_xor_sync(~0u, sum, 1);
}

// --- several rows ---

/// Rows in digits, or in bf16, of which warps make digits. Both lie in the same places.
struct PackedOperand : Operand {
  const DigitGroup* groups;  ///< [rows, columns / 32] of what is in digits; else null
  int group_pitch;           ///< groups from a row to the next one

  __device__ bool are_digits() const { return groups != nullptr; }
};

/// The product of a piece of packed weights and several rows.
/// @return of row lane / 4, two neighbouring outputs: 2 * (lane % 4) and 2 * (lane % 4) + 1 of the tile
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
  float2 of_class[2][2] = {};  // of both halves, even and odd steps
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
        float2& sums = of_class[step / PairedSteps<kUnits>::kInHalf][step % 2];
        sums = add_group(sums, load_scales<kType>(units + u * unit_bytes(kType), c), multiply_digits(own[step], b),
                         inputs[step]);
      }
    }
  }
  stream.release(piece);
  if (kUnits == 2 && columns <= kUnitColumns) of_class[1][0] = of_class[1][1] = {0, 0};
  const auto add_up = [&](float float2::*sum) {
    return (of_class[0][0].*sum + of_class[0][1].*sum) + (of_class[1][0].*sum + of_class[1][1].*sum);
  };
  return {add_up(&float2::x), add_up(&float2::y)};
}

}  // namespace gemma
