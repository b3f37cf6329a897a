#pragma once

// The machine instructions of kernels/wgmma.cuh in C++: see tests/simt/simt.h. Products are done when they are begun.

#include <cuda_bf16.h>

#include <cstdint>
#include <memory>

#include "ptx.cuh"

namespace gemma {

inline constexpr int kPanelColumns = 64;

inline int in_panels(int rows, int row, int unit) {
  return (unit / 8 * rows + row) * kPanelColumns + ((unit ^ row) & 7) * 8;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

inline std::uint64_t rows_operand(const void* at) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 / 16} << 32 | 1 << 16 | (shared_address(at) & 0x3ffff) >> 4;
}
inline std::uint64_t columns_operand(const void* at, std::uint64_t panel_bytes) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 / 16} << 32 | (panel_bytes >> 4) << 16 |
         (shared_address(at) & 0x3ffff) >> 4;
}
constexpr std::uint64_t operand_step(int bytes) { return static_cast<std::uint64_t>(bytes) >> 4; }

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kPending>
void wgmma_wait() {}
template <int kCount>
void sums_are_ready(float (&)[kCount]) {}

/// An operand that a descriptor says where to find.
struct SharedOperand {
  std::uint32_t begin, leading, group;  // bytes

  explicit SharedOperand(std::uint64_t descriptor)
      : begin(static_cast<std::uint32_t>(descriptor & 0x3fff) << 4),
        leading(static_cast<std::uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        group(static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4) {}

  /// Of an element that would lie `offset` bytes further if nothing were swizzled.
  float at(std::uint32_t offset) const {
    const std::uint32_t address = begin + offset;
    return *reinterpret_cast<const __nv_bfloat16*>(simt::shared_place(address ^ (address >> 7 & 7) << 4));
  }
  /// Element `k` of those that are summed over, of row `row`, where these lie behind each other.
  float of_row(unsigned row, unsigned k) const { return at(row / 8 * group + row % 8 * 128 + 2 * k); }
  /// The same where rows of the operand are columns of what lies in memory.
  float of_column(unsigned column, unsigned k) const {
    return at(column / 64 * leading + k / 8 * group + k % 8 * 128 + 2 * (column % 64));
  }
};

struct WgmmaThread {
  float* sum;
  std::uint64_t a, b;
  const std::uint32_t* a_registers;
  bool accumulates;
};

template <int kSums>
void multiply_all(WgmmaThread& own) {
  simt::together<128>(own, [](WgmmaThread* const* threads) {
    constexpr unsigned kColumns = 2 * kSums;
    const WgmmaThread& first = *threads[0];
    const bool has_registers = first.a_registers != nullptr;
    static float a[64][16], b[16][kColumns], sum[64][kColumns];
    if (has_registers) {
      for (unsigned thread = 0; thread < 128; ++thread) {
        const unsigned row = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
        for (unsigned i = 0; i < 4; ++i) {
          const std::uint32_t two = threads[thread]->a_registers[i];
          a[row + i % 2 * 8][2 * t + i / 2 * 8] = low_half(two);
          a[row + i % 2 * 8][2 * t + i / 2 * 8 + 1] = high_half(two);
        }
      }
    } else {
      const SharedOperand operand(first.a);
      for (unsigned row = 0; row < 64; ++row) {
        for (unsigned k = 0; k < 16; ++k) a[row][k] = operand.of_row(row, k);
      }
    }
    const SharedOperand operand(first.b);
    for (unsigned column = 0; column < kColumns; ++column) {
      for (unsigned k = 0; k < 16; ++k)
        b[k][column] = has_registers ? operand.of_column(column, k) : operand.of_row(column, k);
    }
    for (unsigned row = 0; row < 64; ++row) {
      for (float& one : sum[row]) one = 0;
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned column = 0; column < kColumns; ++column) sum[row][column] += a[row][k] * b[k][column];
      }
    }
    for (unsigned thread = 0; thread < 128; ++thread) {
      const WgmmaThread& of = *threads[thread];
      simt::check(of.a == first.a && of.b == first.b && of.accumulates == first.accumulates,
                  "threads of a warpgroup multiply different operands");
      const unsigned row = thread / 32 * 16 + thread % 32 / 4;
      for (unsigned i = 0; i < kSums; ++i) {
        const float product = sum[row + i / 2 % 2 * 8][i / 4 * 8 + 2 * (thread % 4) + i % 2];
        of.sum[i] = (of.accumulates ? of.sum[i] : 0.0f) + product;
      }
    }
  });
}

template <int kSums>
void multiply(float (&sum)[kSums], std::uint64_t a, std::uint64_t b, bool accumulates) {
  WgmmaThread own{sum, a, b, nullptr, accumulates};
  multiply_all<kSums>(own);
}
template <int kSums>
void multiply(float (&sum)[kSums], const std::uint32_t (&a)[4], std::uint64_t b, bool accumulates) {
  WgmmaThread own{sum, 0, b, a, accumulates};
  multiply_all<kSums>(own);
}

inline void fence_for_async_reads() {}
inline void matrix_copy(void* to, const void* tensor_map, int column, int row, std::uint64_t* barrier) {
  copy_box(to, tensor_map, {column, row, 0, 0}, barrier);
}
inline void warpgroup_barrier(int name) { simt::wait_at_barrier(name, 128); }

#endif

}  // namespace gemma
