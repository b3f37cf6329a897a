#pragma once

// Matrix products of up to 16 rows with streamed weights, on the tensor cores.
//
// A product sums, for each row and output, over pieces of 512 columns in ascending order; within a piece over the eight
// classes of its steps of 32 columns (multiply_piece). That order is the same for any number of rows, for any number of
// blocks and in every kernel that decodes. Weights are the 8-column operand of the tensor cores, tokens the rows of the
// 16-row one.
//
// Each block has a run of neighbouring pieces. A tile at its end may go on in the next block: that block takes over the
// sum of this one's pieces, the carry, and adds its own. A block works on its last tile first and on its first tile
// last, so that a carry is there long before it is taken over.

#include "decode_block.cuh"

namespace gemma {

/// Where an element of a product's input lies so that a lane finds what it feeds to the tensor cores for 32 columns in
/// one run of 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16, ... of the 32 for lane t of 4.
__device__ inline int operand_order(int column) {
  return (column & ~31) | (((column >> 1) & 3) << 3) | (((column >> 3) & 3) << 1) | (column & 1);
}

/// Distance of rows of a product's input in shared memory, such that two rows fall into different halves of the banks.
__host__ __device__ inline int operand_pitch(int columns) { return columns + ((columns * 2) % 128 == 0 ? 32 : 0); }

/// A product's output: rows of float32 in global memory, written by all blocks of the grid.
struct ProductRow {
  const float* outputs;

  /// Reads several numbers, or (as float4) units of four, asking for all of them together.
  /// @param at  -1: none, gives 0
  template <class Value, int kCount>
  __device__ void read(const int (&at)[kCount], Value (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = Value{};
      if (at[i] >= 0) values[i] = __ldcg(reinterpret_cast<const Value*>(outputs) + at[i]);
    }
  }
};

struct Product {
  float* rows;
  int width;

  __device__ ProductRow row(int i) const { return {rows + static_cast<std::size_t>(i) * width}; }
};

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

/// The order in which a block works on its pieces of a product. It numbers them from 0 (slots); the slots of a tile are
/// neighbours, in ascending order of columns.
class Slots {
 public:
  Slots() = default;
  __device__ Slots(const Share& share, int pieces_in_tile)
      : first_(share.first),
        count_(share.last - share.first),
        in_tile_(pieces_in_tile),
        top_((share.last - 1) / pieces_in_tile),
        in_top_(share.last - max(share.first, top_ * pieces_in_tile)),
        last_part_(top_ - share.first / pieces_in_tile),
        goes_on_(count_ > 0 && share.last % pieces_in_tile != 0) {}

  __device__ int count() const { return count_; }
  /// The block's pieces come in parts, one for each tile. @return the last one's number, if there are pieces
  __device__ int last_part() const { return last_part_; }
  __device__ int part_of(int slot) const { return slot < in_top_ ? 0 : 1 + (slot - in_top_) / in_tile_; }
  __device__ int tile(int part) const { return top_ - part; }
  __device__ int begin(int part) const { return part == 0 ? 0 : in_top_ + (part - 1) * in_tile_; }
  __device__ int end(int part) const { return min(in_top_ + part * in_tile_, count_); }
  /// The first of the tile's pieces in the part; if it is not 0, a carry is taken over.
  __device__ int first_piece(int part) const { return max(first_ - tile(part) * in_tile_, 0); }
  /// Whether another block has further pieces of the part's tile.
  __device__ bool goes_on(int part) const { return part == 0 && goes_on_; }

 private:
  int first_, count_, in_tile_, top_, in_top_, last_part_;
  bool goes_on_;
};

/// A slot, and which piece of which part it is; moves on without dividing.
class SlotCursor {
 public:
  __device__ SlotCursor(const Slots& slots, int slot) : piece_(slots.first_piece(0)) { advance(slots, slot); }

  __device__ void advance(const Slots& slots, int by) {
    slot_ += by;
    piece_ += by;
    while (slot_ < slots.count() && slot_ >= slots.end(part_)) {
      piece_ = slot_ - slots.end(part_);
      piece_ += slots.first_piece(++part_);
    }
  }

  __device__ int slot() const { return slot_; }
  __device__ int column() const { return piece_ * kPieceColumns; }

 private:
  int slot_ = 0, part_ = 0;
  int piece_;  // of the tile
};

/// Sums that blocks hand on to the next block: each beside the number of the product it is of, so that a reader sees
/// whether it is there.
class Carries {
 public:
  /// @param sums  that a block hands on
  __device__ Carries(unsigned long long* exchange, int sums)
      : own_(exchange + kFirstCarry + static_cast<int>(blockIdx.x) * sums), before_(own_ - sums) {}

  __device__ void begin_product() { ++product_; }
  __device__ void hand_on(int index, float value) {
    const unsigned long long word = static_cast<unsigned long long>(product_) << 32 | __float_as_uint(value);
    store_relaxed(own_ + index, word);
  }
  /// What the block before has handed on, or nothing yet.
  __device__ unsigned long long look(int index) const { return load_relaxed(before_ + index); }
  __device__ bool is_there(unsigned long long word) const { return word >> 32 == product_; }
  /// @param word  what look() has found
  __device__ float take_over(int index, unsigned long long word) const {
    while (!is_there(word)) word = look(index);
    return __uint_as_float(static_cast<unsigned>(word));
  }

 private:
  unsigned long long* own_;
  const unsigned long long* before_;
  unsigned product_ = 0;
};

/// What a lane gets of a piece's product, two neighbouring outputs of two rows.
struct PieceSums {
  float2 upper, lower;  // of rows lane / 4 and lane / 4 + 8; outputs 2 * (lane % 4) and 2 * (lane % 4) + 1 of the tile
};

inline constexpr int kPieceSteps = kPieceColumns / 32;
inline constexpr int kClasses = 8;

/// Adds up what the eight step classes of a piece gave, in the order of a butterfly over lanes.
__device__ inline float sum_classes(const float (&sums)[kClasses]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

__device__ inline void load_weights(std::uint32_t (&b)[4], const __nv_bfloat16* weights, int step) {
  const int lane = lane_index();
  load_matrices(b, weights + swizzled(lane % 8, 32 * step + 8 * (lane / 8)));
}

/// What one lane feeds to the tensor cores of the only row in a piece: the steps of class lane / 4.
struct OwnSteps {
  uint4 steps[kPieceSteps / kClasses];
  int columns;  // of the piece

  __device__ void read(const Operand& operand, int column, int columns_in_piece) {
    columns = columns_in_piece;
#pragma unroll
    for (int i = 0; i < kPieceSteps / kClasses; ++i) {
      const int step = lane_index() / 4 + kClasses * i;
      steps[i] = step < columns / 32 ? operand.read(0, column + 32 * step) : make_uint4(0, 0, 0, 0);
    }
  }
};

/// One warp: the product of a piece of weights and some columns of the operand. A piece has up to 16 steps of 32
/// columns; steps c and c + 8 make class c: one chain of accumulation for the even and one for the odd 16 columns of
/// both, added up. The classes' sums are added up as a butterfly over lanes does it.
///
/// With one row, the rows of the tensor cores' operand are the classes: each lane holds the activations of its own
/// class's steps alone, and gives zeros in the others. With more rows, each class has accumulators of its own. Both
/// give the same bits.
/// @return its sums in `upper` of all lanes
template <class Format>
__device__ PieceSums multiply_piece_by_row(const Stream<Format>& stream, int piece, const OwnSteps& own) {
  constexpr int kChains = 4;  // of classes that are accumulated side by side, only so as not to wait for each other
  const int group = lane_index() / 4;
  stream.wait_until_full(piece);
  const __nv_bfloat16* weights = stream.stage(piece);
  float even[kChains][4] = {}, odd[kChains][4] = {};
#pragma unroll
  for (int step = 0; step < kPieceSteps; ++step) {
    if (step >= own.columns / 32) continue;
    std::uint32_t b[4];
    load_weights(b, weights, step);
    const uint4 a = group == step % kClasses ? own.steps[step / kClasses] : make_uint4(0, 0, 0, 0);
    multiply_accumulate(even[step % kChains], a.x, 0, a.y, 0, b[0], b[1]);
    multiply_accumulate(odd[step % kChains], a.z, 0, a.w, 0, b[2], b[3]);
  }
  stream.release(piece);
  // All but the chain of the lane's own class have given zeros.
  const auto add_chains = [](const float(&chains)[kChains][4], int i) {
    return (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
  };
  float2 sums = {add_chains(even, 0) + add_chains(odd, 0), add_chains(even, 1) + add_chains(odd, 1)};
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    sums.x += __shfl_xor_sync(~0u, sums.x, offset);
    sums.y += __shfl_xor_sync(~0u, sums.y, offset);
  }
  return {sums, {}};
}

/// The same for up to 16 rows.
template <class Format>
__device__ PieceSums multiply_piece_by_rows(const Stream<Format>& stream, int piece, const Operand& operand, int rows,
                                            int column, int columns) {
  const int group = lane_index() / 4;
  const int steps = columns / 32;
  const auto read = [&](int row, int step) {
    return row < rows && step < steps ? operand.read(row, column + 32 * step) : make_uint4(0, 0, 0, 0);
  };
  // What other blocks have written is asked for before the wait for the weights, all at once.
  uint4 upper[kPieceSteps], lower[kPieceSteps];
#pragma unroll
  for (int step = 0; step < kPieceSteps; ++step) {
    upper[step] = read(group, step);
    lower[step] = read(group + 8, step);
  }
  stream.wait_until_full(piece);
  const __nv_bfloat16* weights = stream.stage(piece);
  float of_class[4][kClasses];
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int step = c; step < kPieceSteps; step += kClasses) {
      if (step >= steps) continue;
      std::uint32_t b[4];
      load_weights(b, weights, step);
      multiply_accumulate(even, upper[step].x, lower[step].x, upper[step].y, lower[step].y, b[0], b[1]);
      multiply_accumulate(odd, upper[step].z, lower[step].z, upper[step].w, lower[step].w, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) of_class[i][c] = even[i] + odd[i];
  }
  stream.release(piece);
  return {{sum_classes(of_class[0]), sum_classes(of_class[1])}, {sum_classes(of_class[2]), sum_classes(of_class[3])}};
}

/// One product: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls epilogue(row, output, pair
/// of values): outputs 2i and 2i + 1, or of gate_up row i of both. The grid must meet before the scratch memory is used
/// again.
template <int kRows, class Format, class Epilogue>
__device__ void multiply(const Shared<Format>& shared, const MatrixShape& matrix, const Slots& slots, const Operand& operand,
                         int rows, int& next_piece, Carries& carries, const Epilogue& epilogue) {
  constexpr int kPairsInRow = kPieceRows / 2;
  constexpr int kPairs = kRows * kPairsInRow;
  constexpr int kValuesInPiece = kRows * kPieceRows;
  constexpr int kPiecesInRound = kScratchBytes / 2 / (4 * kValuesInPiece);
  const int thread = thread_index();
  const int lane = thread % 32;
  const int count = slots.count();
  const int handed_on = count > 0 && slots.goes_on(0) ? slots.end(0) : 0;
  carries.begin_product();

  const auto columns_from = [&](int column) { return min(kPieceColumns, matrix.columns - column); };

  // This warp's pieces: those whose number is its own modulo the number of warps.
  int slot = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps;
  SlotCursor ahead(slots, slot);
  OwnSteps own = {}, next = {};  // of the only row: of the warp's next two pieces
  const auto read_ahead = [&](OwnSteps& steps) {
    if (ahead.slot() < count) steps.read(operand, ahead.column(), columns_from(ahead.column()));
    ahead.advance(slots, kConsumerWarps);
  };
  if (kRows == 1) {
    read_ahead(own);
    read_ahead(next);
  }

  // Sums are made in rounds, in either half of the scratch memory in turn. What is handed on makes a round of its own
  // if it fits; warp 0 sees to it while the others go on.
  int end, end_part;
  for (int begin = 0, first_part = 0, half = 0; begin < count; begin = end, first_part = end_part, half ^= 1) {
    end = min(begin + kPiecesInRound, begin < handed_on ? handed_on : count);
    float* scratch = shared.scratch + half * (kScratchBytes / 8);
    const int last_part = end == count ? slots.last_part() : end == handed_on ? 0 : slots.part_of(end - 1);
    end_part = end == slots.end(last_part) ? last_part + 1 : last_part;
    const bool takes_over = slots.first_piece(last_part) > 0 && slots.begin(last_part) >= begin;
    unsigned long long taken[2] = {0, 0};

    for (; slot < end; slot += kConsumerWarps) {
      if (takes_over && thread < kPairs) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (!carries.is_there(taken[i])) taken[i] = carries.look(2 * thread + i);
        }
      }
      PieceSums sums;
      if constexpr (kRows == 1) {
        const OwnSteps current = own;
        own = next;
        read_ahead(next);
        sums = multiply_piece_by_row(shared.stream, next_piece + slot, current);
      } else {
        const int column = ahead.column();
        sums = multiply_piece_by_rows(shared.stream, next_piece + slot, operand, rows, column, columns_from(column));
        ahead.advance(slots, kConsumerWarps);
      }
      float* to = scratch + (slot - begin) * kValuesInPiece + (lane / 4) * kPieceRows + 2 * (lane % 4);
      if (lane / 4 < kRows) *reinterpret_cast<float2*>(to) = sums.upper;
      if (kRows > 8) *reinterpret_cast<float2*>(to + 8 * kPieceRows) = sums.lower;
    }

    const bool is_early = begin == 0 && end == handed_on;
    if (!is_early) {
      consumer_barrier();
    } else if (warp_index() == 0) {
      early_barrier_wait();
    } else {
      early_barrier_arrive();
      continue;
    }
    const int items = (last_part - first_part + 1) * kPairs;
    for (int i = thread; i < items; i += is_early ? 32 : kConsumers) {
      const int part = last_part - i / kPairs;
      const int item = i % kPairs;
      const int row = item / kPairsInRow;
      const int pair = item % kPairsInRow;
      const int first = matrix.is_gate_up ? pair : 2 * pair;
      const int second = matrix.is_gate_up ? pair + kPairsInRow : 2 * pair + 1;
      const int from = max(begin, slots.begin(part));
      const int to = min(end, slots.end(part));
      float2* carried = reinterpret_cast<float2*>(shared.carried) + item;
      float2 sum = {0, 0};
      if (from > slots.begin(part)) {
        sum = carried[(half ^ 1) * kPairs];
      } else if (slots.first_piece(part) > 0) {
        sum.x = carries.take_over(2 * item, i == thread ? taken[0] : 0);
        sum.y = carries.take_over(2 * item + 1, i == thread ? taken[1] : 0);
      }
      const float* partial = scratch + (from - begin) * kValuesInPiece + row * kPieceRows;
#pragma unroll 4
      for (int piece = 0; piece < to - from; ++piece) {
        sum.x += partial[piece * kValuesInPiece + first];
        sum.y += partial[piece * kValuesInPiece + second];
      }
      const int output = slots.tile(part) * matrix.rows_in_tile() + first;
      if (to < slots.end(part)) {
        carried[half * kPairs] = sum;
      } else if (slots.goes_on(part)) {
        carries.hand_on(2 * item, sum.x);
        carries.hand_on(2 * item + 1, sum.y);
      } else if (row < rows && output < matrix.outputs) {
        epilogue(row, output, sum);
      }
    }
  }
  next_piece += count;
}

}  // namespace gemma
