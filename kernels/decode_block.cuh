#pragma once

// What the parts of the decode kernels share: the thread block's shared memory, who is who in it, how the work is dealt
// out to blocks, and how they wait for each other.

#include "decode.cuh"
#include "ptx.cuh"
#include "stream.cuh"

namespace gemma {

/// For partial sums of products, or of attention; with many rows, for panels' activations instead of the former.
/// @param rows  that the kernel is for: one row leaves few sums, and the stages need the memory more
__host__ __device__ constexpr int least_scratch_bytes(int architecture, int rows) {
  return is_short_of_memory(architecture) || rows == 1 ? 21 * 1024 : 32 * 1024;
}

/// The thread, as if it were another one at each call: what is worked out from it is then worked out again and not kept
/// in registers (or rather spilled from them) from one end of the kernel to the other.
__device__ inline int thread_index() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x / 32); }
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x % 32); }

/// What a thread block has in shared memory.
template <class Format>
struct Shared {
  Stream<Format> stream;
  float* scratch;  // [scratch_bytes]
  float* carried;  // [2, rows, kPieceRows]: sums of a tile that go on from one round of a product to the next
  float* sums;     // [2, kConsumerWarps]
  int* is_last;
  int* token;  // [rows], and so are the next two: read from the model once
  int* position;
  int* ring;
  char* rest;  // behind all of these, aligned to 16 bytes
};

/// How much of it a kernel has.
template <class Format>
struct BlockSizes {
  int scratch_bytes;
  int carried_rows;
  int rows;

  __host__ __device__ constexpr int carried_bytes() const { return 2 * carried_rows * kPieceRows * 4; }
  /// Carried sums; sums, the flag, and the rows' tokens, positions and rings; then the stages' barriers.
  __host__ __device__ constexpr int small_bytes() const {
    return carried_bytes() + (4 * (2 * kConsumerWarps + 1 + 3 * rows) + 15) / 16 * 16 + 16 * Format::kMaxStages;
  }
  /// All but the stages, up to Shared::rest.
  __host__ __device__ constexpr int fixed_bytes() const { return scratch_bytes + small_bytes(); }
};

/// By all threads of a block: deals out its shared memory, makes the stream's barriers ready, and reads what the rows
/// are.
/// @param memory    aligned to 1024 bytes, as pieces of weights in bf16 must be
/// @param releases  of a stage before it is filled again
template <class Format>
__device__ __forceinline__ Shared<Format> set_up_block(const DecodeModel& model, char* memory, int stages,
                                                       const BlockSizes<Format>& sizes, int rows, int releases = 1) {
  Shared<Format> shared;
  shared.stream.releases = releases;
  shared.stream.stage_memory = memory;
  shared.stream.stages = stages;
  shared.stream.stages_inverse = 0xffffffffu / static_cast<unsigned>(stages) + 1;
  char* next = memory + static_cast<std::size_t>(stages) * Format::kStageBytes;
  shared.scratch = reinterpret_cast<float*>(next);
  next += sizes.scratch_bytes;
  shared.carried = reinterpret_cast<float*>(next);
  shared.sums = reinterpret_cast<float*>(next + sizes.carried_bytes());
  shared.is_last = reinterpret_cast<int*>(shared.sums + 2 * kConsumerWarps);
  shared.token = shared.is_last + 1;
  shared.position = shared.token + sizes.rows;
  shared.ring = shared.position + sizes.rows;
  shared.rest = next + sizes.small_bytes();
  shared.stream.full = reinterpret_cast<std::uint64_t*>(shared.rest - 16 * Format::kMaxStages);
  shared.stream.empty = shared.stream.full + Format::kMaxStages;

  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&shared.stream.full[i], producer_threads());
      barrier_init(&shared.stream.empty[i], static_cast<unsigned>(releases));
    }
    fence_barrier_init();
  }
  if (threadIdx.x < static_cast<unsigned>(rows)) {
    shared.token[threadIdx.x] = model.token[threadIdx.x];
    shared.position[threadIdx.x] = model.position[threadIdx.x];
    shared.ring[threadIdx.x] = model.ring[threadIdx.x];
  }
  __syncthreads();
  return shared;
}

/// Neighbouring items of all those that are dealt out.
struct Share {
  int first, last;  // [first, last)
};

/// Deals work out to the blocks of the grid: each gets a run of neighbouring items, the same number of bytes as nearly
/// as can be, within each step of a layer and over the layer. All blocks must wait for the one that has most.
class Dealer {
 public:
  __device__ void begin_layer() { dealt_ = below_ = through_ = uneven_ = 0; }

  /// Pieces of a product, numbered tile by tile. Tiles are divided between blocks where each gets more than one, and
  /// where a block has pieces enough to work on while another one finishes its part of a tile.
  __device__ Share deal_pieces(const MatrixShape& matrix, int piece_columns = kPieceColumns) {
    const int in_tile = matrix.pieces_in_tile(piece_columns);
    const int pieces = matrix.tiles() * in_tile;
    if (matrix.tiles() < grid() || 2 * pieces <= 3 * kConsumerWarps * grid()) {
      const Share tiles = even(matrix.tiles());
      return take({tiles.first * in_tile, tiles.last * in_tile}, pieces, uneven_ + in_tile);
    }
    if (pieces / grid() <= uneven_ + 1) return take(even(pieces), pieces, uneven_ + 1);
    // Long enough to make up for what was dealt out unevenly before.
    const Share all = even(dealt_ + pieces);
    return take({all.first - below_, all.last - through_}, pieces, 1);
  }

  /// Items of a step whose parts cannot be parted.
  /// @param pieces  that an item is worth
  __device__ Share deal_items(int items, int pieces) {
    const Share share = even(items);
    take({share.first * pieces, share.last * pieces}, items * pieces, uneven_ + pieces);
    return share;
  }

 private:
  __device__ static int grid() { return static_cast<int>(gridDim.x); }
  __device__ static int part(int items, int place) {
    return static_cast<int>(static_cast<unsigned>(items) * static_cast<unsigned>(place) / gridDim.x);
  }
  __device__ static Share even(int items) {
    const int place = static_cast<int>(blockIdx.x);
    return {part(items, place), part(items, place + 1)};
  }

  __device__ Share take(const Share& share, int pieces, int uneven) {
    dealt_ += pieces;
    below_ += share.first;
    through_ += share.last;
    uneven_ = uneven;
    return share;
  }

  int dealt_ = 0;    // pieces of this layer that all blocks have got so far
  int below_ = 0;    // of them, what the blocks before this one have got
  int through_ = 0;  // and what this block has got, too
  int uneven_ = 0;   // by how many pieces at most a block has got more or less than the others
};

/// Where the blocks of the grid wait for each other. What does not depend on the others fits between arrive() and
/// wait().
///
/// @tparam kIsFenced  whether what the consumers have written before arrive() can be read by all blocks after wait().
/// Otherwise it has only been sent by then, which is enough for messages (decode_message.cuh).
template <bool kIsFenced>
class GridBarrier {
 public:
  /// @param arrivals  so far: a multiple of the blocks, which may have wrapped around
  __device__ explicit GridBarrier(unsigned* counter, unsigned arrivals) : arrivals_(counter), expected_(arrivals) {}

  /// By all consumers, as wait() is.
  __device__ void arrive() {
    expected_ += gridDim.x;
    consumer_barrier();
    if (threadIdx.x != 0) return;
    if constexpr (kIsFenced) {
      add_release(arrivals_, 1);
    } else {
      add_relaxed(arrivals_, 1);
    }
  }
  __device__ void wait() {
    if (threadIdx.x == 0) {
      while (static_cast<int>(look() - expected_) < 0) {
      }
    }
    consumer_barrier();
  }

 private:
  __device__ unsigned look() const { return kIsFenced ? load_acquire(arrivals_) : load_relaxed(arrivals_); }

  unsigned* arrivals_;
  unsigned expected_;
};

/// Where in DecodeModel::exchange the carries begin (decode_product.cuh), on a line of their own.
inline constexpr int kFirstCarry = 16;

}  // namespace gemma
