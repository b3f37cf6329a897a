#pragma once

// The few instructions that CUDA C++ has no words for. Everything here is one PTX instruction, or the shortest loop
// around one.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace gemma {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// The shared memory that a block was launched with, aligned to 1024 bytes.
__device__ inline char* dynamic_shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

// --- barriers of some of a block's threads ---

/// Waits until kThreads threads have called this or named_barrier_arrive().
/// @tparam kName  1 to 15
template <int kName, int kThreads>
__device__ inline void named_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kName), "n"(kThreads) : "memory");
}

/// The same with a name that is known only when the program runs.
template <int kThreads>
__device__ inline void named_barrier(int name) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "n"(kThreads) : "memory");
}

/// Is counted, but does not wait.
template <int kName, int kThreads>
__device__ inline void named_barrier_arrive() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kName), "n"(kThreads) : "memory");
}

// --- mbarrier: a barrier in shared memory that copies can arrive at ---

__device__ inline void barrier_init(std::uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// Makes initialised barriers known to the copy engine; then the block must synchronise.
__device__ inline void fence_barrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/// Between a thread's own writes to shared memory and copies by the copy engine to the same place.
__device__ inline void fence_for_async_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}

__device__ inline bool barrier_test(std::uint64_t* barrier, unsigned parity) {
  unsigned is_done;
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#else
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#endif
  return is_done != 0;
}

/// The same, at once.
__device__ inline bool barrier_is_open(std::uint64_t* barrier, unsigned parity) {
  unsigned is_done;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return is_done != 0;
}

/// Waits until the phase of this parity (0, 1, 0, ...) is complete.
__device__ inline void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  while (!barrier_test(barrier, parity)) {
  }
}

/// The same, where the wait may be long and nobody depends on its end at once: leaves the scheduler to others
/// meanwhile.
__device__ inline void barrier_wait_patiently(std::uint64_t* barrier, unsigned parity) {
  while (!barrier_test(barrier, parity)) __nanosleep(64);
}

// --- asynchronous copies from global to shared memory ---

#if __CUDA_ARCH__ >= 900
__device__ inline void barrier_expect_bytes(std::uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Copies `bytes` (a multiple of 16, both ends aligned to 16) through the copy engine; the barrier hears of them.
__device__ inline void bulk_copy(void* to, const void* from, unsigned bytes, std::uint64_t* barrier,
                                 std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// Copies a box of a tensor, at these coordinates of its four dimensions, innermost first; the barrier hears of the
/// bytes of the whole box, those outside the tensor included, which become zeros.
__device__ inline void tensor_copy(void* to, const void* tensor_map, int x, int y, int z, int w, std::uint64_t* barrier,
                                   std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3, %4, %5}], "
      "[%6], %7;" ::"r"(shared_address(to)),
      "l"(tensor_map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// Makes a tensor map known to the copy engine ahead of its first copy.
__device__ inline void prefetch_tensor_map(const void* tensor_map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(tensor_map) : "memory");
}

/// For data that is read once a step: the first to leave the L2 cache.
__device__ inline std::uint64_t streaming_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#endif

__device__ inline void copy_async_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/// The same, but zeros instead of what lies at `from` where `is_valid` is false.
__device__ inline void copy_async_16_or_zero(void* to, const void* from, bool is_valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(is_valid ? 16 : 0)
               : "memory");
}

/// The barrier hears of one arrival when all earlier copy_async_16 of this thread are done.
__device__ inline void copy_async_arrive(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- tensor cores ---

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void load_matrices_transposed(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

/// c[16, 8] += a[16, 16] b[16, 8]. With g = lane / 4 and t = lane % 4, c holds (g, 2t), (g, 2t + 1), (g + 8, 2t),
/// (g + 8, 2t + 1); a0 holds (g, 2t) and (g, 2t + 1), a1 those of row g + 8, a2 and a3 the same of columns 2t + 8; b0
/// holds rows 2t and 2t + 1 of column g, b1 rows 2t + 8 and 2t + 9.
__device__ inline void multiply_accumulate(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The same in float16.
__device__ inline void multiply_accumulate_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                               std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// c[16, 8] += a[16, 32] b[32, 8], signed bytes. c as above; a0 holds (g, 4t) to (g, 4t + 3), a1 those of row g + 8, a2
/// and a3 the same of columns 4t + 16 and on; b0 holds rows 4t to 4t + 3 of column g, b1 rows 4t + 16 and on.
__device__ inline void multiply_accumulate(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                           std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// --- talking to other blocks of the grid ---

__device__ inline void add_release(unsigned* counter, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

__device__ inline unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

/// Returns what the counter was before.
__device__ inline unsigned fetch_add_acquire_release(unsigned* counter, unsigned value) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(counter), "r"(value) : "memory");
  return old;
}

/// Loads and stores that neither see nor leave anything in the L1 cache, and order nothing else.
__device__ inline unsigned long long load_relaxed(const unsigned long long* from) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline void store_relaxed(unsigned long long* to, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

/// Loads only where is_wanted, without a branch: several are under way together.
__device__ inline void load_relaxed_if(bool is_wanted, const unsigned long long* from, unsigned long long& value) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.relaxed.gpu.global.u64 %0, [%1]; }"
               : "+l"(value)
               : "l"(from), "r"(static_cast<unsigned>(is_wanted))
               : "memory");
}

/// The same of two neighbouring words, aligned to 16 bytes; each of them is whole, both together need not be.
__device__ inline void load_relaxed_pair_if(bool is_wanted, const unsigned long long* from, ulonglong2& pair) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2]; }"
               : "+l"(pair.x), "+l"(pair.y)
               : "l"(from), "r"(static_cast<unsigned>(is_wanted))
               : "memory");
}

__device__ inline void store_relaxed_pair(unsigned long long* to, unsigned long long first, unsigned long long second) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
}

/// The same of four words of 32 bits.
__device__ inline void load_relaxed_four_if(bool is_wanted, const unsigned* from, uint4& four) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
               : "+r"(four.x), "+r"(four.y), "+r"(four.z), "+r"(four.w)
               : "l"(from), "r"(static_cast<unsigned>(is_wanted))
               : "memory");
}

__device__ inline void store_relaxed(unsigned* to, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// What add_release() and load_acquire() do, but ordering nothing.
__device__ inline void add_relaxed(unsigned* counter, unsigned value) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

__device__ inline unsigned load_relaxed(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// --- programmatic dependent launch ---

/// Waits until the kernels that this one was launched behind have finished and their writes can be seen.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernel behind this one start its blocks where there is room.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- registers ---

/// Gives the four warps of a warpgroup, which must all call this, more or fewer registers than the kernel was started
/// with.
template <int kRegisters>
__device__ inline void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
__device__ inline void give_up_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// --- clocks ---

/// Cycles of this multiprocessor.
__device__ inline long long clock_cycles() {
  long long now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now));
  return now;
}

__device__ inline unsigned long long clock_nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// --- small arithmetic ---

/// 2^x, to 2 units in the last place; 0 below 2^-126.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / x, to 1 unit; 0 above 2^126.
__device__ inline float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float low_half(std::uint32_t two) { return __uint_as_float(two << 16); }
__device__ inline float high_half(std::uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

/// (bits & mask) | set, in one instruction: left to itself, the compiler makes two of it if both are constants.
__device__ inline std::uint32_t and_or(std::uint32_t bits, std::uint32_t mask, std::uint32_t set) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(bits), "r"(mask), "r"(set));
  return result;
}

/// (bits & mask) ^ flip, likewise.
__device__ inline std::uint32_t and_xor(std::uint32_t bits, std::uint32_t mask, std::uint32_t flip) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(bits), "r"(mask), "r"(flip));
  return result;
}

__device__ inline std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

__device__ inline std::uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

/// Transposes 4 x 4 words among 4 neighbouring lanes: lane t gets word t of each of them, in their order.
__device__ inline uint4 transpose_words(const std::uint32_t (&word)[4]) {
  const bool is_odd = threadIdx.x & 1, is_upper = threadIdx.x & 2;
  std::uint32_t a = word[0], b = word[1], c = word[2], d = word[3];
  const std::uint32_t low = __shfl_xor_sync(~0u, is_odd ? a : b, 1), high = __shfl_xor_sync(~0u, is_odd ? c : d, 1);
  (is_odd ? a : b) = low;
  (is_odd ? c : d) = high;
  const std::uint32_t left = __shfl_xor_sync(~0u, is_upper ? a : c, 2),
                      right = __shfl_xor_sync(~0u, is_upper ? b : d, 2);
  (is_upper ? a : c) = left;
  (is_upper ? b : d) = right;
  return {a, b, c, d};
}

}  // namespace gemma
