#pragma once

// Memory as a stream. One warp of each block, the producer, copies pieces of weights and of the cache into a ring of stages
// in shared memory, in an order that is known in advance; the other warps consume them. The copies never wait for
// arithmetic, so memory stays busy while the grid waits at a barrier.

#include <cstdint>

#include "ptx.cuh"

namespace gemma {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = 32 * kConsumerWarps;
inline constexpr int kDecodeThreads = kConsumers + 32;

/// A piece of a weight matrix: 8 rows by up to 512 columns. Stages hold its rows 16 bytes further apart than they are long,
/// so that the 8 rows of a tensor core operand lie in different banks.
inline constexpr int kPieceRows = 8;
inline constexpr int kPieceColumns = 512;
inline constexpr int kPiecePitch = kPieceColumns + 8;  // elements
inline constexpr int kStageBytes = kPieceRows * kPiecePitch * 2;

/// Copies that may be under way at once, where there are stages for them. More make every other access to memory wait behind
/// them (measured).
inline constexpr int kPiecesInFlight = 6;

/// Pieces are numbered from 0 in the order of the stream; piece i lies in stage i % stages and is consumed by warp
/// i % kConsumerWarps.
struct Stream {
  char* stage_memory;     // [stages, kStageBytes]
  std::uint64_t* full;    // [stages]: a piece has arrived
  std::uint64_t* empty;   // [stages]: a piece has been consumed
  int stages;

  __device__ __nv_bfloat16* stage(int piece) const {
    return reinterpret_cast<__nv_bfloat16*>(stage_memory + (piece % stages) * kStageBytes);
  }
  __device__ void wait_until_full(int piece) const { barrier_wait(&full[piece % stages], (piece / stages) & 1); }
  __device__ void wait_until_empty(int piece) const { barrier_wait(&empty[piece % stages], ((piece / stages) & 1) ^ 1); }
  /// By all lanes of the consuming warp, when they have read the stage for the last time.
  __device__ void release(int piece) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[piece % stages]);
  }
};

/// The producer's end of a stream. All 32 lanes of the producer warp call everything together.
class Producer {
 public:
  __device__ explicit Producer(const Stream& stream) : stream_(stream), in_flight_(min(kPiecesInFlight, stream.stages - 1)) {
#if __CUDA_ARCH__ >= 900
    policy_ = streaming_policy();
#endif
  }

  /// Makes room for the next piece of `bytes` in all.
  __device__ void begin(unsigned bytes) {
    stream_.wait_until_empty(piece_);
    if (piece_ >= in_flight_) stream_.wait_until_full(piece_ - in_flight_);
#if __CUDA_ARCH__ >= 900
    if (lane() == 0) barrier_expect_bytes(&stream_.full[piece_ % stream_.stages], bytes);
    __syncwarp();
#else
    (void)bytes;
#endif
  }

  /// Copies a run of bytes, a multiple of 16, to `offset` elements into the piece's stage.
  __device__ void copy(int run, int offset, const __nv_bfloat16* from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    if (lane() == run % 32) bulk_copy(stream_.stage(piece_) + offset, from, bytes, &stream_.full[piece_ % stream_.stages], policy_);
#else
    (void)run;
    for (unsigned byte = 16 * lane(); byte < bytes; byte += 16 * 32) {
      copy_async_16(reinterpret_cast<char*>(stream_.stage(piece_) + offset) + byte, reinterpret_cast<const char*>(from) + byte);
    }
#endif
  }

  __device__ void end() {
#if __CUDA_ARCH__ < 900
    copy_async_arrive(&stream_.full[piece_ % stream_.stages]);
#endif
    ++piece_;
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  Stream stream_;
  int in_flight_;
  int piece_ = 0;
  std::uint64_t policy_ = 0;
};

/// Arrivals that complete a `full` barrier: the copy engine's one, or one of each lane that copies.
__device__ inline unsigned full_arrivals() {
#if __CUDA_ARCH__ >= 900
  return 1;
#else
  return 32;
#endif
}

/// A barrier among the consumers alone.
__device__ inline void consumer_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

}  // namespace gemma
