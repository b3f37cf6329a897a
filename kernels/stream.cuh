#pragma once

// Memory as a stream. One warp of each block, the producer, copies pieces of weights and of the cache into a ring of
// stages in shared memory, in an order that is known in advance; the other warps consume them. The copies never wait
// for arithmetic, so memory stays busy while the grid waits at a barrier.

#include <cstdint>

#include "decode.cuh"
#include "ptx.cuh"

namespace gemma {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = 32 * kConsumerWarps;
inline constexpr int kDecodeThreads = kConsumers + 128;  // the producer's warpgroup; one warp of it works

inline constexpr int kStageBytes = kPieceRows * kPieceColumns * 2;

/// Copies that may be under way at once, where there are stages for them. More make every other access to memory wait
/// behind them (measured).
inline constexpr int kPiecesInFlight = 4;

/// Where 16 bytes of a piece of weights lie in its stage: in runs of 64 columns, of which each row has 128 bytes; in
/// them the 16 bytes change places with the row, so that the 8 rows of a tensor core operand lie in different banks.
__device__ inline int swizzled(int row, int column) {
  return column / 64 * (kPieceRows * 64) + row * 64 + (((column / 8) % 8) ^ row) * 8;
}

/// A place in the ring that moves on piece by piece.
struct RingPlace {
  int stage = 0;
  unsigned parity = 0;

  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Pieces are numbered from 0 in the order of the stream; piece i lies in stage i % stages. It is consumed by warp
/// i % kConsumerWarps, or by all warps together.
struct Stream {
  char* stage_memory;    // [stages, kStageBytes]
  std::uint64_t* full;   // [stages]: a piece has arrived
  std::uint64_t* empty;  // [stages]: a piece has been consumed
  int stages;
  unsigned stages_inverse;  // of 2^32, rounded up

  __device__ __nv_bfloat16* memory(int stage) const {
    return reinterpret_cast<__nv_bfloat16*>(stage_memory + stage * kStageBytes);
  }
  __device__ __nv_bfloat16* stage(int piece) const { return memory(stage_index(piece)); }
  __device__ RingPlace place(int piece) const { return {stage_index(piece), static_cast<unsigned>(turn(piece)) & 1}; }
  __device__ void wait_until_full(int piece) const { barrier_wait(&full[stage_index(piece)], turn(piece) & 1); }
  /// By all lanes of the consuming warp, when they have read the stage for the last time.
  __device__ void release(int piece) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[stage_index(piece)]);
  }

 private:
  /// piece / stages, exact for up to 2^27 pieces of a step in up to 32 stages.
  __device__ int turn(int piece) const {
    return static_cast<int>(__umulhi(static_cast<unsigned>(piece), stages_inverse));
  }
  __device__ int stage_index(int piece) const { return piece - turn(piece) * stages; }
};

/// The producer's end of a stream. With a copy engine (Hopper and newer) one thread does all of it, else the 32 lanes
/// of a warp together.
class Producer {
 public:
  __device__ explicit Producer(const Stream& stream)
      : stream_(stream), in_flight_(min(kPiecesInFlight, stream.stages - 1)) {
#if __CUDA_ARCH__ >= 900
    policy_ = streaming_policy();
#endif
  }

  /// Says that a matrix will be copied from soon.
  __device__ void expect(const MatrixSource& source) {
#if __CUDA_ARCH__ >= 900
    prefetch_tensor_map(source.tensor_map);
#else
    (void)source;
#endif
  }

  /// Copies rows [row, row + kPieceRows) and columns [column, column + kPieceColumns) of a matrix, as far as it has
  /// them.
  __device__ void copy_weights(const MatrixShape& shape, const MatrixSource& source, int tile, int column) {
    begin(kStageBytes);
#if __CUDA_ARCH__ >= 900
    tensor_copy(stage(), source.tensor_map, 0, tile * shape.rows_in_tile(), 0, column / 64, full(), policy_);
#else
    const int lane = threadIdx.x % 32;
    for (int row = 0; row < kPieceRows; ++row) {
      const int output = shape.is_gate_up ? row / 4 * shape.outputs / 2 + tile * 4 + row % 4 : tile * kPieceRows + row;
      if (output >= shape.outputs) continue;
      const __nv_bfloat16* from = source.weights + static_cast<std::size_t>(output) * shape.columns + column;
      for (int i = 8 * lane; i < min(kPieceColumns, shape.columns - column); i += 8 * 32)
        copy_async_16(stage() + swizzled(row, i), from + i);
    }
#endif
    end();
  }

  /// Copies two runs of the same number of bytes, a multiple of 16, one behind the other.
  __device__ void copy_pair(const __nv_bfloat16* first, const __nv_bfloat16* second, int elements) {
    begin(4 * elements);
#if __CUDA_ARCH__ >= 900
    bulk_copy(stage(), first, 2 * elements, full(), policy_);
    bulk_copy(stage() + elements, second, 2 * elements, full(), policy_);
#else
    for (int i = 8 * static_cast<int>(threadIdx.x % 32); i < elements; i += 8 * 32) {
      copy_async_16(stage() + i, first + i);
      copy_async_16(stage() + elements + i, second + i);
    }
#endif
    end();
  }

 private:
  __device__ __nv_bfloat16* stage() const { return stream_.memory(next_.stage); }
  __device__ std::uint64_t* full() const { return &stream_.full[next_.stage]; }

  __device__ void begin(unsigned bytes) {
    barrier_wait(&stream_.empty[next_.stage], next_.parity ^ 1);
    if (begun_ == in_flight_) {
      barrier_wait(&stream_.full[oldest_.stage], oldest_.parity);
      oldest_.advance(stream_.stages);
    } else {
      ++begun_;
    }
#if __CUDA_ARCH__ >= 900
    barrier_expect_bytes(full(), bytes);
#else
    (void)bytes;
#endif
  }

  __device__ void end() {
#if __CUDA_ARCH__ < 900
    copy_async_arrive(full());
#endif
    next_.advance(stream_.stages);
  }

  Stream stream_;
  int in_flight_;
  int begun_ = 0;     // pieces that have not been waited for
  RingPlace next_;    // the next piece
  RingPlace oldest_;  // the oldest piece that has not been waited for
  std::uint64_t policy_ = 0;
};

/// Threads that produce, and arrivals that complete a `full` barrier: one with a copy engine, else one of each lane.
__device__ inline unsigned producer_threads() {
#if __CUDA_ARCH__ >= 900
  return 1;
#else
  return 32;
#endif
}

/// A barrier among the consumers alone.
__device__ inline void consumer_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

/// A barrier of the consumers at which only one warp waits, for what the others have done before they arrive.
__device__ inline void early_barrier_wait() { asm volatile("bar.sync 2, %0;" ::"n"(kConsumers) : "memory"); }
__device__ inline void early_barrier_arrive() { asm volatile("bar.arrive 2, %0;" ::"n"(kConsumers) : "memory"); }

}  // namespace gemma
