#pragma once

// What the parts of the decode kernels share: the thread block's shared memory, who is who in it, and the grid barrier.

#include "decode.cuh"
#include "ptx.cuh"
#include "stream.cuh"

namespace gemma {

inline constexpr int kScratchBytes = 32 * 1024;  // partial sums of products, or of attention

__device__ inline int warp_index() { return static_cast<int>(threadIdx.x / 32); }
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x % 32); }

/// What a thread block has in shared memory.
struct Shared {
  Stream stream;
  __nv_bfloat16* operand;  // [rows, operand_pitch(hidden)]: the normalised residual
  float* scratch;          // kScratchBytes
  float* sums;             // [kConsumerWarps]
  int* is_last;
  int* token;  // [kDecodeRows], and so are the next two: read from the model once
  int* position;
  int* ring;
};

/// Where the blocks of the grid wait for each other.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(unsigned* arrivals) : arrivals_(arrivals) {}

  __device__ void wait() {
    expected_ += gridDim.x;
    consumer_barrier();
    if (threadIdx.x == 0) {
      __threadfence();
      add_release(arrivals_, 1);
      while (load_acquire(arrivals_) < expected_) {
      }
    }
    consumer_barrier();
  }

 private:
  unsigned* arrivals_;
  unsigned expected_ = 0;
};

}  // namespace gemma
