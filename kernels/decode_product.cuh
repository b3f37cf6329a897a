#pragma once

// Matrix products of up to 8 rows with streamed weights.
//
// A product sums, for each row and output, over pieces of 512 columns in ascending order; within a piece over classes
// of its steps of 32 columns (decode_piece.cuh, and decode_packed_piece.cuh for packed weights). That order is the same
// for any number of rows, for any number of blocks and in every kernel that decodes.
//
// Each block has a run of neighbouring pieces. A tile at its end may go on in the next block: that block takes over the
// sum of this one's pieces, the carry, and adds its own. A block works on its last tile first and on its first tile
// last, so that a carry is there long before it is taken over.

#include <type_traits>

#include "decode_block.cuh"
#include "decode_packed_piece.cuh"
#include "decode_piece.cuh"

namespace gemma {

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
  /// Pieces in a tile.
  __device__ int in_tile() const { return in_tile_; }
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

/// Which piece of its tile a slot is, for every kStep-th slot; neither divides nor branches to move on.
template <int kStep>
class PieceCursor {
 public:
  __device__ PieceCursor(const Slots& slots, int slot)
      : slot_(slot),
        in_tile_(slots.in_tile()),
        in_top_(slots.end(0)),
        first_in_top_(slots.first_piece(0)),
        last_begin_(slots.begin(slots.last_part())),
        first_in_last_(slots.first_piece(slots.last_part())),
        step_(kStep),
        in_whole_(slot - in_top_) {
    while (step_ >= in_tile_) step_ -= in_tile_;
    while (in_whole_ < 0) in_whole_ += in_tile_;
    while (in_whole_ >= in_tile_) in_whole_ -= in_tile_;
  }

  __device__ void advance() {
    slot_ += kStep;
    in_whole_ += step_;
    in_whole_ -= in_whole_ >= in_tile_ ? in_tile_ : 0;
  }

  __device__ int slot() const { return slot_; }
  __device__ int piece() const {
    return slot_ < in_top_ ? first_in_top_ + slot_ : in_whole_ + (slot_ >= last_begin_ ? first_in_last_ : 0);
  }

 private:
  int slot_;
  int in_tile_, in_top_, first_in_top_, last_begin_, first_in_last_;
  int step_;
  int in_whole_;  // the piece, if its tile's first piece is the part's, too
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
  __device__ int part() const { return part_; }
  __device__ int piece() const { return piece_; }

 private:
  int slot_ = 0, part_ = 0;
  int piece_;  // of the tile
};

/// Sums that blocks hand on to the next block: each beside the number of the product it is of, so that a reader sees
/// whether it is there.
class Carries {
 public:
  /// @param words  [blocks, sums]
  /// @param sums   that a block hands on
  /// @param first  the number of the step's first product: not zero, nor one that words of an earlier step may have
  __device__ Carries(unsigned long long* words, int sums, unsigned first)
      : own_(words + static_cast<int>(blockIdx.x) * sums), before_(own_ - sums), product_(first - 1) {}

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
  unsigned product_;
};

/// One product: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls epilogue(row, output, pair
/// of values): outputs 2i and 2i + 1, or of gate_up row i of both. The grid must meet before the scratch memory is used
/// again.
/// @param operand  of one row a RowOperand or PlainRowOperand, else an Operand; of packed weights a PackedRowOperand or
/// a PackedOperand
template <int kRows, WeightType kType, class Format, class Input, class Epilogue>
__device__ void multiply(const Shared<Format>& shared, const MatrixShape& matrix, const Slots& slots,
                         const Input& operand, int rows, int& next_piece, Carries& carries, const Epilogue& epilogue) {
  constexpr int kPairsInRow = kPieceRows / 2;
  constexpr int kPairs = kRows * kPairsInRow;
  constexpr int kValuesInPiece = kRows * kPieceRows;
  constexpr int kScratchBytes = least_scratch_bytes(kArchitecture, kRows);
  constexpr int kPiecesInRound = kScratchBytes / 2 / (4 * kValuesInPiece);
  constexpr int kColumns = columns_in_piece<Format, kType>();  // of a piece
  const int thread = thread_index();
  const int lane = thread % 32;
  const int count = slots.count();
  const int handed_on = count > 0 && slots.goes_on(0) ? slots.end(0) : 0;
  carries.begin_product();

  const auto columns_from = [&](int column) { return min(kColumns, matrix.columns - column); };

  // This warp's pieces: those whose number is its own modulo the number of warps.
  int slot = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps;
  PieceCursor<kConsumerWarps> ahead(slots, slot);
  // Of the only row, what is multiplied by is asked for ahead: of the warp's next piece, and of bf16, the next but one,
  // too.
  constexpr bool kIsPacked = kType != WeightType::kBf16;
  using Own = std::conditional_t<kIsPacked, RowDigits<kColumns / kUnitColumns>, OwnSteps>;
  Own own = {};
  [[maybe_unused]] Own next = {};
  const auto read_ahead = [&](Own& steps) {
    if constexpr (kRows == 1) {
      const bool is_there = ahead.slot() < count;
      const int column = ahead.piece() * kColumns;
      if constexpr (kIsPacked) {
        steps.ask(operand, column, columns_from(column), is_there);
      } else {
        if (is_there) steps.ask(operand, column, columns_from(column));
      }
    }
    ahead.advance();
  };
  if (kRows == 1) {
    read_ahead(own);
    if (!kIsPacked) read_ahead(next);
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
      float* const to = scratch + (slot - begin) * kValuesInPiece;
      if constexpr (kRows == 1 && kIsPacked) {
        own.template take<kNeedsSums<kType>>(operand);
        const Own current = own;
        read_ahead(own);
        const float sum = multiply_packed_by_row<kType>(shared.stream, next_piece + slot, current);
        if (lane % 4 == 0) to[lane / 4] = sum;
      } else {
        float2 sums;
        if constexpr (kRows == 1) {
          Own current = own;
          own = next;
          read_ahead(next);
          current.wait(operand);
          sums = multiply_piece_by_row(shared.stream, next_piece + slot, current);
        } else {
          const int column = ahead.piece() * kColumns;
          const int columns = columns_from(column);
          if constexpr (kIsPacked) {
            sums = multiply_packed_by_rows<kType, kColumns / kUnitColumns>(shared.stream, next_piece + slot, operand,
                                                                           rows, column, columns);
          } else {
            sums = multiply_piece_by_rows(shared.stream, next_piece + slot, operand, rows, column, columns);
          }
          ahead.advance();
        }
        if (lane / 4 < kRows) *reinterpret_cast<float2*>(to + lane / 4 * kPieceRows + 2 * (lane % 4)) = sums;
      }
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
