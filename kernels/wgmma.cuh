#pragma once

// Hopper's tensor cores: products of tiles in shared memory by a warpgroup (wgmma), and what belongs to them. Only for
// code that is compiled for sm_90a.
//
// A tile in shared memory is made of panels: 64 columns (128 bytes) of all its rows, one row after the other. In a row
// the 16-byte units change places with the row, unit ^ (row % 8), as the copy engine writes them when told to swizzle
// 128 bytes. Panels begin at multiples of 1024 bytes.

#include <cuda_bf16.h>

#include <cstdint>

#include "ptx.cuh"

namespace gemma {

inline constexpr int kPanelColumns = 64;

/// Where a 16-byte unit (8 columns) of a row lies in a tile of `rows` rows, in elements.
__device__ inline int in_panels(int rows, int row, int unit) {
  return (unit / 8 * rows + row) * kPanelColumns + ((unit ^ row) & 7) * 8;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A descriptor of an operand whose rows are summed over along the columns (K-major): 16 of its columns, the first of
/// them a multiple of 16 in a panel. From group to group of 8 rows are 1024 bytes.
__device__ inline std::uint64_t rows_operand(const void* at) {
  constexpr std::uint64_t kSwizzle128 = 1, kGroup = 1024 / 16;
  return kSwizzle128 << 62 | kGroup << 32 | 1 << 16 | (shared_address(at) & 0x3ffff) >> 4;
}

/// A descriptor of an operand that is summed over along its rows (MN-major): 16 rows, the first a multiple of 8, of
/// panels that are `panel_bytes` apart.
__device__ inline std::uint64_t columns_operand(const void* at, std::uint64_t panel_bytes) {
  constexpr std::uint64_t kSwizzle128 = 1, kGroup = 1024 / 16;
  return kSwizzle128 << 62 | kGroup << 32 | (panel_bytes >> 4) << 16 | (shared_address(at) & 0x3ffff) >> 4;
}

/// What is added to a descriptor to go `bytes` further.
__device__ constexpr std::uint64_t operand_step(int bytes) { return static_cast<std::uint64_t>(bytes) >> 4; }

/// Before the first product of a batch: its registers are ready.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most kPending batches are under way.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from reading sums before a wait that stands before this.
template <int kCount>
__device__ inline void sums_are_ready(float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

// multiply(sum, a, b, accumulates): sum[64, columns] (+)= a[64, 16] b[16, columns], begun but not finished. sum[j][i]
// of thread t is in row t / 32 * 16 + t % 32 / 4 + i / 2 * 8 and column 8 j + 2 (t % 4) + i % 2, where sum[j][i] is
// written sum[4 j + i]. The number of columns is twice that of the sums. a is in shared memory, or in registers as
// multiply_accumulate (ptx.cuh) takes it; b in shared memory, as rows of `columns` where a is, else as columns.
// PTX wants every register spelled out: hence the macros.

#define GEMMA_SUMS_4(i) "+f"(sum[i]), "+f"(sum[(i) + 1]), "+f"(sum[(i) + 2]), "+f"(sum[(i) + 3])
#define GEMMA_SUMS_8(i) GEMMA_SUMS_4(i), GEMMA_SUMS_4((i) + 4)
#define GEMMA_SUMS_16(i) GEMMA_SUMS_8(i), GEMMA_SUMS_8((i) + 8)
#define GEMMA_SUMS_32(i) GEMMA_SUMS_16(i), GEMMA_SUMS_16((i) + 16)
#define GEMMA_SUMS_64(i) GEMMA_SUMS_32(i), GEMMA_SUMS_32((i) + 32)

#define GEMMA_NAMES_32                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GEMMA_NAMES_40 GEMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GEMMA_NAMES_48 GEMMA_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GEMMA_NAMES_56 GEMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define GEMMA_NAMES_64 GEMMA_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GEMMA_NAMES_72 GEMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define GEMMA_NAMES_96                                                                 \
  GEMMA_NAMES_72                                                                       \
  ", %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, " \
  "%88, %89, %90, %91, %92, %93, %94, %95"
#define GEMMA_NAMES_112 \
  GEMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define GEMMA_NAMES_128 \
  GEMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define GEMMA_MULTIPLY_SHARED(columns, names, a_name, b_name, flag, ...)                                            \
  __device__ inline void multiply(float(&sum)[(columns) / 2], std::uint64_t a, std::uint64_t b, bool accumulates) { \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " flag ", 0; wgmma.mma_async.sync.aligned.m64n" #columns           \
                 "k16.f32.bf16.bf16 {" names "}, " a_name ", " b_name ", p, 1, 1, 0, 0; }"                          \
                 : __VA_ARGS__                                                                                      \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)));                                             \
  }

GEMMA_MULTIPLY_SHARED(256, GEMMA_NAMES_128, "%128", "%129", "%130", GEMMA_SUMS_64(0), GEMMA_SUMS_64(64))
GEMMA_MULTIPLY_SHARED(224, GEMMA_NAMES_112, "%112", "%113", "%114", GEMMA_SUMS_64(0), GEMMA_SUMS_32(64),
                      GEMMA_SUMS_16(96))
GEMMA_MULTIPLY_SHARED(192, GEMMA_NAMES_96, "%96", "%97", "%98", GEMMA_SUMS_64(0), GEMMA_SUMS_32(64))
GEMMA_MULTIPLY_SHARED(144, GEMMA_NAMES_72, "%72", "%73", "%74", GEMMA_SUMS_64(0), GEMMA_SUMS_8(64))
GEMMA_MULTIPLY_SHARED(128, GEMMA_NAMES_64, "%64", "%65", "%66", GEMMA_SUMS_64(0))
GEMMA_MULTIPLY_SHARED(112, GEMMA_NAMES_56, "%56", "%57", "%58", GEMMA_SUMS_32(0), GEMMA_SUMS_16(32), GEMMA_SUMS_8(48))
GEMMA_MULTIPLY_SHARED(96, GEMMA_NAMES_48, "%48", "%49", "%50", GEMMA_SUMS_32(0), GEMMA_SUMS_16(32))
GEMMA_MULTIPLY_SHARED(80, GEMMA_NAMES_40, "%40", "%41", "%42", GEMMA_SUMS_32(0), GEMMA_SUMS_8(32))
GEMMA_MULTIPLY_SHARED(64, GEMMA_NAMES_32, "%32", "%33", "%34", GEMMA_SUMS_32(0))

#define GEMMA_MULTIPLY_REGISTERS(columns, names, a_names, b_name, flag, ...)                                \
  __device__ inline void multiply(float(&sum)[(columns) / 2], const std::uint32_t(&a)[4], std::uint64_t b,  \
                                  bool accumulates) {                                                       \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " flag ", 0; wgmma.mma_async.sync.aligned.m64n" #columns   \
                 "k16.f32.bf16.bf16 {" names "}, {" a_names "}, " b_name ", p, 1, 1, 1; }"                  \
                 : __VA_ARGS__                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulates))); \
  }

GEMMA_MULTIPLY_REGISTERS(256, GEMMA_NAMES_128, "%128, %129, %130, %131", "%132", "%133", GEMMA_SUMS_64(0),
                         GEMMA_SUMS_64(64))
GEMMA_MULTIPLY_REGISTERS(128, GEMMA_NAMES_64, "%64, %65, %66, %67", "%68", "%69", GEMMA_SUMS_64(0))
GEMMA_MULTIPLY_REGISTERS(64, GEMMA_NAMES_32, "%32, %33, %34, %35", "%36", "%37", GEMMA_SUMS_32(0))

#undef GEMMA_NAMES_32
#undef GEMMA_NAMES_40
#undef GEMMA_NAMES_48
#undef GEMMA_NAMES_56
#undef GEMMA_NAMES_64
#undef GEMMA_NAMES_72
#undef GEMMA_NAMES_96
#undef GEMMA_NAMES_112
#undef GEMMA_NAMES_128
#undef GEMMA_SUMS_4
#undef GEMMA_SUMS_8
#undef GEMMA_SUMS_16
#undef GEMMA_SUMS_32
#undef GEMMA_SUMS_64
#undef GEMMA_MULTIPLY_SHARED
#undef GEMMA_MULTIPLY_REGISTERS

/// Ordinary writes of this thread to shared memory become visible to tensor cores and copy engine (after the barrier
/// that follows).
__device__ inline void fence_for_async_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Copies a box of a matrix, at these coordinates (column, row), to shared memory; the barrier hears of the bytes of
/// the whole box, those outside the matrix included, which become zeros.
__device__ inline void matrix_copy(void* to, const void* tensor_map, int column, int row, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(to)),
      "l"(tensor_map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

/// Among the threads of a warpgroup. @param name  1 to 15, not another barrier's
__device__ inline void warpgroup_barrier(int name) { asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory"); }

#endif

}  // namespace gemma
