#pragma once

// The machine instructions of kernels/ptx.cuh in C++: see tests/simt/simt.h.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda.h"
#include "simt.h"

namespace gemma {

inline std::uint32_t shared_address(const void* pointer) { return simt::shared_address(pointer); }
inline char* dynamic_shared_memory() { return simt::shared_memory(); }

// --- barriers of some of a block's threads ---

template <int kName, int kThreads>
void named_barrier() {
  simt::wait_at_barrier(kName, kThreads);
}
template <int kThreads>
void named_barrier(int name) {
  simt::wait_at_barrier(name, kThreads);
}
template <int kName, int kThreads>
void named_barrier_arrive() {
  simt::arrive_at_barrier(kName, kThreads);
}

// --- mbarrier ---

struct MemoryBarrier {
  std::uint16_t expected, pending;  // arrivals of a phase
  std::int32_t bytes : 31;          // that copies still owe
  std::uint32_t phase : 1;          // parity of the phase that is under way

  void open_if_complete() {
    if (pending > 0 || bytes != 0) return;
    phase ^= 1;
    pending = expected;
  }
  void arrive() {
    simt::check(pending > 0, "more arrive at a barrier than it expects");
    --pending;
    open_if_complete();
  }
  void complete(std::int32_t copied) {
    bytes -= copied;
    open_if_complete();
  }
};
static_assert(sizeof(MemoryBarrier) == 8);

inline MemoryBarrier& memory_barrier(std::uint64_t* barrier) { return *reinterpret_cast<MemoryBarrier*>(barrier); }

inline void barrier_init(std::uint64_t* barrier, unsigned arrivals) {
  const auto count = static_cast<std::uint16_t>(arrivals);
  memory_barrier(barrier) = {count, count, 0, 0};
}
inline void fence_barrier_init() {}
inline void fence_for_async_copies() {}
inline void barrier_arrive(std::uint64_t* barrier) { memory_barrier(barrier).arrive(); }
inline bool barrier_test(std::uint64_t* barrier, unsigned parity) {
  if (memory_barrier(barrier).phase != parity) return true;
  simt::poll();
  return false;
}
inline void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  while (!barrier_test(barrier, parity)) {
  }
}

inline void barrier_wait_patiently(std::uint64_t* barrier, unsigned parity) { barrier_wait(barrier, parity); }

// --- asynchronous copies ---

inline void check_aligned(const void* to, const void* from) {
  simt::check(reinterpret_cast<std::uintptr_t>(to) % 16 == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0,
              "a copy is not aligned to 16 bytes");
}

#if __CUDA_ARCH__ >= 900
inline void barrier_expect_bytes(std::uint64_t* barrier, unsigned bytes) {
  memory_barrier(barrier).bytes += static_cast<std::int32_t>(bytes);
  barrier_arrive(barrier);
}
inline void bulk_copy(void* to, const void* from, unsigned bytes, std::uint64_t* barrier, std::uint64_t) {
  check_aligned(to, from);
  simt::check(bytes % 16 == 0 && bytes > 0, "a bulk copy is of no multiple of 16 bytes");
  shared_address(static_cast<char*>(to) + bytes);
  simt::defer([=] {
    std::memcpy(to, from, bytes);
    memory_barrier(barrier).complete(static_cast<std::int32_t>(bytes));
  });
}
inline void copy_box(void* to, const void* tensor_map, std::array<int, 4> at, std::uint64_t* barrier) {
  simt::defer([=] {
    const auto bytes = simt::copy_box(to, *static_cast<const CUtensorMap*>(tensor_map), at.data());
    memory_barrier(barrier).complete(static_cast<std::int32_t>(bytes));
  });
}
inline void tensor_copy(void* to, const void* tensor_map, int x, int y, int z, int w, std::uint64_t* barrier,
                        std::uint64_t) {
  copy_box(to, tensor_map, {x, y, z, w}, barrier);
}
inline void prefetch_tensor_map(const void*) {}
inline std::uint64_t streaming_policy() { return 0; }
#endif

inline void copy_async_16_or_zero(void* to, const void* from, bool is_valid) {
  check_aligned(to, from);
  shared_address(static_cast<char*>(to) + 16);
  simt::defer_in_thread([=] {
    if (is_valid) {
      std::memcpy(to, from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  });
}
inline void copy_async_16(void* to, const void* from) { copy_async_16_or_zero(to, from, true); }
inline void copy_async_arrive(std::uint64_t* barrier) {
  simt::defer_rest_of_thread([=] { memory_barrier(barrier).arrive(); });
}
inline void copy_async_commit() { simt::close_group(); }
template <int kPending>
void copy_async_wait() {
  simt::finish_groups(kPending);
}

// --- tensor cores ---

template <bool kIsTransposed>
void load_four_matrices(std::uint32_t (&out)[4], const void* row) {
  check_aligned(row, row);
  struct Lane {
    const void* row;
    std::uint32_t* out;
  } own{row, out};
  simt::together<32>(own, [](Lane* const* lanes) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      std::uint16_t value[8][8];
      for (unsigned i = 0; i < 8; ++i) std::memcpy(value[i], lanes[8 * matrix + i]->row, 16);
      for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned i = lane / 4, j = lane % 4 * 2;
        const std::uint32_t low = kIsTransposed ? value[j][i] : value[i][j];
        const std::uint32_t high = kIsTransposed ? value[j + 1][i] : value[i][j + 1];
        lanes[lane]->out[matrix] = high << 16 | low;
      }
    }
  });
}
inline void load_matrices(std::uint32_t (&out)[4], const void* row) { load_four_matrices<false>(out, row); }
inline void load_matrices_transposed(std::uint32_t (&out)[4], const void* row) { load_four_matrices<true>(out, row); }

inline float low_half(std::uint32_t two) { return __uint_as_float(two << 16); }
inline float high_half(std::uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

template <float (*kLow)(std::uint32_t), float (*kHigh)(std::uint32_t)>
void multiply_halves(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                     std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    std::uint32_t a[4], b[2];
    float* c;
  } own{{a0, a1, a2, a3}, {b0, b1}, c};
  simt::together<32>(own, [](Lane* const* lanes) {
    float a[16][16], b[16][8], c[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Lane& of = *lanes[lane];
      const unsigned g = lane / 4, t = lane % 4;
      for (unsigned i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][2 * t + i / 2 * 8] = kLow(of.a[i]);
        a[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = kHigh(of.a[i]);
        c[g + i / 2 * 8][2 * t + i % 2] = of.c[i];
      }
      for (unsigned i = 0; i < 2; ++i) {
        b[2 * t + 8 * i][g] = kLow(of.b[i]);
        b[2 * t + 8 * i + 1][g] = kHigh(of.b[i]);
      }
    }
    for (unsigned row = 0; row < 16; ++row) {
      float sum[8] = {};
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
      }
      for (unsigned column = 0; column < 8; ++column) c[row][column] += sum[column];
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < 4; ++i) lanes[lane]->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  });
}

inline void multiply_accumulate(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                std::uint32_t b0, std::uint32_t b1) {
  multiply_halves<low_half, high_half>(c, a0, a1, a2, a3, b0, b1);
}

inline float low_f16(std::uint32_t two) { return __half2float({static_cast<std::uint16_t>(two)}); }
inline float high_f16(std::uint32_t two) { return __half2float({static_cast<std::uint16_t>(two >> 16)}); }
inline void multiply_accumulate_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  multiply_halves<low_f16, high_f16>(c, a0, a1, a2, a3, b0, b1);
}

inline void multiply_accumulate(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    std::uint32_t a[4], b[2];
    int* c;
  } own{{a0, a1, a2, a3}, {b0, b1}, c};
  simt::together<32>(own, [](Lane* const* lanes) {
    const auto byte = [](std::uint32_t word, unsigned i) { return static_cast<std::int8_t>(word >> 8 * i); };
    std::int8_t a[16][32], b[32][8];
    int c[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Lane& of = *lanes[lane];
      const unsigned g = lane / 4, t = lane % 4;
      for (unsigned i = 0; i < 4; ++i) {
        for (unsigned j = 0; j < 4; ++j) a[g + i % 2 * 8][4 * t + i / 2 * 16 + j] = byte(of.a[i], j);
        c[g + i / 2 * 8][2 * t + i % 2] = of.c[i];
      }
      for (unsigned i = 0; i < 2; ++i) {
        for (unsigned j = 0; j < 4; ++j) b[4 * t + 16 * i + j][g] = byte(of.b[i], j);
      }
    }
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned k = 0; k < 32; ++k) {
        for (unsigned column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < 4; ++i) lanes[lane]->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  });
}

// --- talking to other blocks of the grid ---

inline void add_release(unsigned* counter, unsigned value) { *counter += value; }
inline unsigned load_acquire(const unsigned* counter) {
  simt::poll();
  return *counter;
}
inline unsigned fetch_add_acquire_release(unsigned* counter, unsigned value) { return atomicAdd(counter, value); }
inline unsigned long long load_relaxed(const unsigned long long* from) {
  simt::poll();
  return *from;
}
inline void store_relaxed(unsigned long long* to, unsigned long long value) { *to = value; }

inline void load_relaxed_if(bool is_wanted, const unsigned long long* from, unsigned long long& value) {
  if (is_wanted) value = load_relaxed(from);
}
inline void load_relaxed_pair_if(bool is_wanted, const unsigned long long* from, ulonglong2& pair) {
  if (!is_wanted) return;
  check_aligned(from, from);
  simt::poll();
  pair = {from[0], from[1]};
}
inline void store_relaxed_pair(unsigned long long* to, unsigned long long first, unsigned long long second) {
  check_aligned(to, to);
  to[0] = first;
  to[1] = second;
}
inline void load_relaxed_four_if(bool is_wanted, const unsigned* from, uint4& four) {
  if (!is_wanted) return;
  check_aligned(from, from);
  simt::poll();
  four = {from[0], from[1], from[2], from[3]};
}
inline void store_relaxed(unsigned* to, unsigned value) { *to = value; }
inline void add_relaxed(unsigned* counter, unsigned value) { *counter += value; }
inline unsigned load_relaxed(const unsigned* counter) { return load_acquire(counter); }

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_up_registers() {}

inline bool barrier_is_open(std::uint64_t* barrier, unsigned parity) { return memory_barrier(barrier).phase != parity; }

inline long long clock_cycles() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
inline unsigned long long clock_nanoseconds() { return static_cast<unsigned long long>(clock_cycles()); }

// --- small arithmetic ---

inline float exp2_approx(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline float reciprocal_approx(float x) { return std::fabs(x) > 0x1p126f ? 0.0f : 1.0f / x; }
inline std::uint32_t and_or(std::uint32_t bits, std::uint32_t mask, std::uint32_t set) { return (bits & mask) | set; }

inline std::uint32_t and_xor(std::uint32_t bits, std::uint32_t mask, std::uint32_t flip) {
  return (bits & mask) ^ flip;
}

inline std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return static_cast<std::uint32_t>(pair.y.bits) << 16 | pair.x.bits;
}

inline std::uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return static_cast<std::uint32_t>(pair.y.bits) << 16 | pair.x.bits;
}

inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value = std::fmax(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

inline uint4 transpose_words(const std::uint32_t (&word)[4]) {
  struct Lane {
    std::uint32_t word[4], result[4];
  } own{{word[0], word[1], word[2], word[3]}, {}};
  simt::together<32>(own, [](Lane* const* lanes) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < 4; ++i) lanes[lane]->result[i] = lanes[lane / 4 * 4 + i]->word[lane % 4];
    }
  });
  return {own.result[0], own.result[1], own.result[2], own.result[3]};
}

}  // namespace gemma
