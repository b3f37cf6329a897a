// The kernels of int8_kernels.h, for any instruction set. Included by the file of each, between its push and pop of
// target attributes, after all the headers that this one includes: nothing of theirs may be compiled for one
// instruction set.
//
// An instruction set is a type Simd with
//   Eight        operations on eight lanes, one for each group of a block of 256 columns:
//                  Ints dots_q8(codes, x, offsets), dots_q4(codes, x): the sums of the eight groups' products
//                  load, store, set, load_f16 and set_f16 (converted), load_bytes (converted), to_floats,
//                  mul, mul_add(a, b, c) = a * b + c and neg_mul_add(a, b, c) = c - a * b, both rounded once
//   Wide         operations on kLanes outputs, for tiles: the same, and
//                  Ints dot_q8(sum, codes, x), dot_q4(sum, codes, x): adds products of four bytes in each lane
//   kTileRows    rows of a tile; 0: no tiles
//   kFewestTiledRows  rows from which on unpacking the weights pays
//   kCodeFlip    bits to flip in q8 codes for dot_q8: 0x80 if it wants codes + 128
// Few rows are multiplied one at a time, along the columns, from weights where they lie. More are multiplied in tiles
// of kTileRows by 2 * kLanes outputs from unpacked weights: in a panel, groups of four columns of all the tile's
// outputs are neighbours, so that a lane is an output.
//
// Measured on one core of a Zen 5 server, which reads 27 GB/s: one row by a matrix that is in memory at 30 GB/s of q8
// and 25 to 28 of q4 weights, by one in the level 2 cache at 90 and 50; 256 rows at 250 billion products a second.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "device/cpu/int8_kernels.h"
#include "model/f16.h"

namespace gemma {
namespace int8 {

constexpr int kBlockGroups = kBlockColumns / kGroupColumns;

/// Groups of four columns in a group.
constexpr int kQuads = kGroupColumns / 4;

/// How far ahead of their use weights are asked for, in bytes. Rows follow one another without a gap.
constexpr std::uintptr_t kPrefetchBytes = 6144;

// ---- One row ----

template <typename Simd>
struct RowKernel {
  using Eight = typename Simd::Eight;
  using Floats = typename Eight::Floats;
  using Ints = typename Eight::Ints;

  /// Where a row's q8 weights are, or those of its q4 ones.
  struct Q8Row {
    const std::int8_t* codes;
    const f16* scales;
  };
  struct Q4Row {
    const std::uint8_t* codes;
    const std::uint8_t* scales;
    const std::uint8_t* minimums;
    const f16* d;
    const f16* m;
  };

  template <int kBytes>
  static HWY_INLINE void prefetch(const void* codes) {
    // As a number, because an address may lie beyond the weights' end.
    const auto ahead = reinterpret_cast<std::uintptr_t>(codes) + kPrefetchBytes;
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(reinterpret_cast<const void*>(ahead + line));
  }

  static HWY_INLINE Floats add_block(const Q8Row& w, const Int8Rows& x, std::ptrdiff_t block, Floats sums) {
    const std::ptrdiff_t group = block * kBlockGroups;
    const std::ptrdiff_t column = block * kBlockColumns;
    prefetch<kBlockColumns>(w.codes + column);
    const Ints dots = Eight::dots_q8(w.codes + column, x.codes + column, x.offsets + group);
    const Floats scales = Eight::mul(Eight::load_f16(w.scales + group), Eight::load(x.scales + group));
    return Eight::mul_add(Eight::to_floats(dots), scales, sums);
  }

  static HWY_INLINE Floats add_block(const Q4Row& w, const Int8Rows& x, std::ptrdiff_t block, Floats sums) {
    const std::ptrdiff_t group = block * kBlockGroups;
    const std::ptrdiff_t column = block * kBlockColumns;
    prefetch<kBlockColumns / 2>(w.codes + column / 2);
    const Ints dots = Eight::dots_q4(w.codes + column / 2, x.codes + column);
    const Floats scales = Eight::mul(Eight::mul(Eight::set_f16(w.d + block), Eight::load_bytes(w.scales + group)),
                                     Eight::load(x.scales + group));
    const Floats minimums = Eight::mul(Eight::set_f16(w.m + block), Eight::load_bytes(w.minimums + group));
    sums = Eight::mul_add(Eight::to_floats(dots), scales, sums);
    return Eight::neg_mul_add(minimums, Eight::load(x.sums + group), sums);
  }

  static HWY_INLINE Q8Row row_of(const Q8Codes& w, const Matrix& matrix, std::ptrdiff_t n) {
    return {w.codes + n * matrix.columns, w.scales + n * matrix.groups()};
  }
  static HWY_INLINE Q4Row row_of(const Q4Codes& w, const Matrix& matrix, std::ptrdiff_t n) {
    return {w.codes + n * (matrix.columns / 2), w.scales + n * matrix.groups(), w.minimums + n * matrix.groups(),
            w.d + n * matrix.blocks(), w.m + n * matrix.blocks()};
  }

  /// The last block of a row that has less than a whole one, padded with zeros.
  struct Q8Rest {
    std::int8_t codes[kBlockColumns] = {};
    f16 scales[kBlockGroups] = {};
    Q8Rest(const Q8Row& w, std::ptrdiff_t block, int groups) {
      std::memcpy(codes, w.codes + block * kBlockColumns, static_cast<std::size_t>(groups) * kGroupColumns);
      std::memcpy(scales, w.scales + block * kBlockGroups, static_cast<std::size_t>(groups) * sizeof(f16));
    }
    Q8Row row() const { return {codes, scales}; }
  };
  struct Q4Rest {
    std::uint8_t codes[kBlockColumns / 2] = {};
    std::uint8_t scales[kBlockGroups] = {};
    std::uint8_t minimums[kBlockGroups] = {};
    f16 d, m;
    Q4Rest(const Q4Row& w, std::ptrdiff_t block, int groups) : d(w.d[block]), m(w.m[block]) {
      std::memcpy(codes, w.codes + block * (kBlockColumns / 2), static_cast<std::size_t>(groups) * (kGroupColumns / 2));
      std::memcpy(scales, w.scales + block * kBlockGroups, static_cast<std::size_t>(groups));
      std::memcpy(minimums, w.minimums + block * kBlockGroups, static_cast<std::size_t>(groups));
    }
    Q4Row row() const { return {codes, scales, minimums, &d, &m}; }
  };
  static Q8Rest rest_of(const Q8Row& w, std::ptrdiff_t block, int groups) { return {w, block, groups}; }
  static Q4Rest rest_of(const Q4Row& w, std::ptrdiff_t block, int groups) { return {w, block, groups}; }

  template <typename Row>
  static HWY_INLINE float multiply_row(const Row& w, int groups, const Int8Rows& x) {
    const int blocks = groups / kBlockGroups;
    const int rest = groups % kBlockGroups;
    Floats sums = Eight::set(0.0f);
    for (int block = 0; block < blocks; ++block) sums = add_block(w, x, block, sums);
    if (rest > 0) {
      const auto padded = rest_of(w, blocks, rest);
      const Int8Rows last{x.codes + blocks * kBlockColumns, x.scales + blocks * kBlockGroups,
                          x.sums + blocks * kBlockGroups, x.offsets + blocks * kBlockGroups, kBlockColumns};
      sums = add_block(padded.row(), last, 0, sums);
    }
    float lanes[kBlockGroups];
    Eight::store(sums, lanes);
    float sum = lanes[0];
    for (int lane = 1; lane < kBlockGroups; ++lane) sum += lanes[lane];
    return sum;
  }

  /// One output after the other, so that weights are read from first to last in one stream: faster than several streams
  /// side by side.
  template <typename Codes>
  static void multiply(const Codes& codes, const Matrix& matrix, int first, int count, const Int8Rows& x, int rows,
                       float* out, std::size_t out_stride) {
    for (int n = 0; n < count; ++n) {
      const auto w = row_of(codes, matrix, first + n);
      for (int m = 0; m < rows; ++m) {
        out[static_cast<std::size_t>(m) * out_stride + static_cast<std::size_t>(n)] =
            multiply_row(w, matrix.groups(), x.from(m));
      }
    }
  }
};

// ---- Tiles ----

template <typename Simd>
struct TileKernel {
  using Wide = typename Simd::Wide;
  using Floats = typename Wide::Floats;
  using Ints = typename Wide::Ints;
  static constexpr int kRows = Simd::kTileRows;
  static constexpr int kVectors = 2;
  static constexpr int kOutputs = kVectors * Wide::kLanes;

  /// Unpacked weights of a tile's outputs, padded with zeros to whole blocks of columns.
  struct Panel {
    std::uint32_t* codes;  // [groups, kQuads, kOutputs]: four each
    float* scales;         // [groups, kOutputs]
    float* minimums;       // [groups, kOutputs]; q4 only
    int groups;

    Panel(std::byte* memory, int padded_columns) : groups(padded_columns / kGroupColumns) {
      codes = reinterpret_cast<std::uint32_t*>(memory);
      scales = reinterpret_cast<float*>(codes + std::ptrdiff_t{groups} * kQuads * kOutputs);
      minimums = scales + std::ptrdiff_t{groups} * kOutputs;
    }
    std::uint32_t* quads(std::ptrdiff_t group, int quad) const { return codes + (group * kQuads + quad) * kOutputs; }
  };

  static HWY_INLINE std::uint32_t load_quad(const void* codes) {
    std::uint32_t quad;
    __builtin_memcpy(&quad, codes, sizeof(quad));
    return quad;
  }

  /// Unpacks the weights of outputs [first, first + count), count at most kOutputs.
  static void unpack(const Q8Codes& w, const Matrix& matrix, int first, int count, const Panel& panel) {
    clear_padding(panel, matrix.groups(), count);
    constexpr std::uint32_t kFlip = Simd::kCodeFlip * 0x01010101u;
    // Two groups are a cache line.
    for (int begin = 0; begin < matrix.groups(); begin += 2) {
      const int end = begin + 2 < matrix.groups() ? begin + 2 : matrix.groups();
      for (std::ptrdiff_t n = 0; n < count; ++n) {
        for (std::ptrdiff_t group = begin; group < end; ++group) {
          const std::ptrdiff_t from = (first + n) * matrix.groups() + group;
          const std::int8_t* codes = w.codes + from * kGroupColumns;
          for (int quad = 0; quad < kQuads; ++quad) panel.quads(group, quad)[n] = load_quad(codes + 4 * quad) ^ kFlip;
          panel.scales[group * kOutputs + n] = to_float(w.scales[from]);
        }
      }
    }
  }

  static void unpack(const Q4Codes& w, const Matrix& matrix, int first, int count, const Panel& panel) {
    clear_padding(panel, matrix.groups(), count);
    for (int block = 0; block < matrix.blocks(); ++block) {
      const int begin = block * kBlockGroups;
      const int end = begin + kBlockGroups < matrix.groups() ? begin + kBlockGroups : matrix.groups();
      for (std::ptrdiff_t n = 0; n < count; ++n) {
        const float d = to_float(w.d[(first + n) * matrix.blocks() + block]);
        const float m = to_float(w.m[(first + n) * matrix.blocks() + block]);
        for (std::ptrdiff_t group = begin; group < end; ++group) {
          const std::ptrdiff_t from = (first + n) * matrix.groups() + group;
          const std::uint8_t* codes = w.codes + from * (kGroupColumns / 2);
          for (int quad = 0; quad < kQuads / 2; ++quad) {
            const std::uint32_t both = load_quad(codes + 4 * quad);
            panel.quads(group, quad)[n] = both & 0x0f0f0f0fu;
            panel.quads(group, quad + kQuads / 2)[n] = (both >> 4) & 0x0f0f0f0fu;
          }
          panel.scales[group * kOutputs + n] = d * static_cast<float>(w.scales[from]);
          panel.minimums[group * kOutputs + n] = m * static_cast<float>(w.minimums[from]);
        }
      }
    }
  }

  /// Zeroes the scales (and what else may not be left to chance) of the panel's missing outputs and groups.
  static void clear_padding(const Panel& panel, int groups, int count) {
    for (std::ptrdiff_t group = 0; group < panel.groups; ++group) {
      for (int n = group < groups ? count : 0; n < kOutputs; ++n) {
        for (int quad = 0; quad < kQuads; ++quad) panel.quads(group, quad)[n] = 0;
        panel.scales[group * kOutputs + n] = 0;
        panel.minimums[group * kOutputs + n] = 0;
      }
    }
  }

  /// kRows rows of x by the outputs of a panel. @param count  outputs that there are.
  template <bool kIsQ4>
  static void multiply_tile(const Panel& panel, const Int8Rows& x, float* out, std::size_t out_stride, int count) {
    // The lanes' sums of each row and output. More than the registers hold; a lane is met once in eight groups.
    alignas(64) float sums[kBlockGroups][kRows][kOutputs] = {};
    // Where the codes of a group's columns 0 to 15 are from its block on, and from there those of 16 to 31.
    constexpr int kSecondHalf = kIsQ4 ? 64 : 16;
    const std::uint32_t* codes = panel.codes;
    for (std::ptrdiff_t group = 0; group < panel.groups; ++group) {
      const std::ptrdiff_t column = kIsQ4 ? group / 4 * 128 + group % 4 * 16 : group * kGroupColumns;
      Ints dots[kRows][kVectors];
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const bool has_offset = !kIsQ4 && Simd::kCodeFlip != 0;
        const Ints offset = Wide::set_int(has_offset ? x.offsets[r * std::ptrdiff_t{x.groups()} + group] : 0);
        HWY_UNROLL(2)
        for (int v = 0; v < kVectors; ++v) dots[r][v] = offset;
      }
      HWY_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        HWY_UNROLL(4)
        for (int quad = 0; quad < kQuads / 2; ++quad, codes += kOutputs) {
          Ints weights[kVectors];
          HWY_UNROLL(2)
          for (int v = 0; v < kVectors; ++v) weights[v] = Wide::load_ints(codes + v * Wide::kLanes);
          HWY_UNROLL(8)
          for (int r = 0; r < kRows; ++r) {
            const std::int8_t* inputs = x.codes + r * std::ptrdiff_t{x.columns} + column;
            const Ints four = Wide::set_int(static_cast<int>(load_quad(inputs + half * kSecondHalf + 4 * quad)));
            HWY_UNROLL(2)
            for (int v = 0; v < kVectors; ++v) {
              dots[r][v] =
                  kIsQ4 ? Wide::dot_q4(dots[r][v], weights[v], four) : Wide::dot_q8(dots[r][v], weights[v], four);
            }
          }
        }
      }
      HWY_UNROLL(2)
      for (int v = 0; v < kVectors; ++v) {
        const Floats scales = Wide::load(panel.scales + group * kOutputs + v * Wide::kLanes);
        HWY_UNROLL(8)
        for (int r = 0; r < kRows; ++r) {
          float* at = sums[group % kBlockGroups][r] + v * Wide::kLanes;
          const std::ptrdiff_t input = r * std::ptrdiff_t{x.groups()} + group;
          const Floats scale = Wide::mul(scales, Wide::set(x.scales[input]));
          Floats sum = Wide::mul_add(Wide::to_floats(dots[r][v]), scale, Wide::load(at));
          if constexpr (kIsQ4) {
            const Floats minimums = Wide::load(panel.minimums + group * kOutputs + v * Wide::kLanes);
            sum = Wide::neg_mul_add(minimums, Wide::set(x.sums[input]), sum);
          }
          Wide::store(sum, at);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      alignas(64) float total[kOutputs];
      for (int v = 0; v < kVectors; ++v) {
        Floats sum = Wide::load(sums[0][r] + v * Wide::kLanes);
        for (int lane = 1; lane < kBlockGroups; ++lane) {
          sum = Wide::add(sum, Wide::load(sums[lane][r] + v * Wide::kLanes));
        }
        Wide::store(sum, total + v * Wide::kLanes);
      }
      __builtin_memcpy(out + static_cast<std::size_t>(r) * out_stride, total,
                       static_cast<std::size_t>(count) * sizeof(float));
    }
  }

  template <bool kIsQ4, typename Codes>
  static void multiply(const Codes& codes, const Matrix& matrix, int first, int count, const Int8Rows& x, int rows,
                       float* out, std::size_t out_stride, std::byte* memory) {
    const Panel panel(memory, x.columns);
    for (int n = 0; n < count; n += kOutputs) {
      const int outputs = n + kOutputs < count ? kOutputs : count - n;
      unpack(codes, matrix, first + n, outputs, panel);
      for (int m = 0; m < rows; m += kRows) {
        // The last rows go with some that are done already.
        const int row = m + kRows <= rows ? m : rows - kRows;
        multiply_tile<kIsQ4>(panel, x.from(row), out + static_cast<std::size_t>(row) * out_stride + n, out_stride,
                             outputs);
      }
    }
  }
};

template <typename Simd>
void multiply(const Matrix& matrix, int first, int count, const Int8Rows& x, int rows, float* out,
              std::size_t out_stride, const Int8Scratch& scratch) {
  if constexpr (Simd::kTileRows > 0) {
    static_assert(Simd::kFewestTiledRows >= Simd::kTileRows);
    if (rows >= Simd::kFewestTiledRows) {
      if (matrix.type == WeightType::kQ8) {
        return TileKernel<Simd>::template multiply<false>(matrix.q8, matrix, first, count, x, rows, out, out_stride,
                                                          scratch.data());
      }
      return TileKernel<Simd>::template multiply<true>(matrix.q4, matrix, first, count, x, rows, out, out_stride,
                                                       scratch.data());
    }
  }
  if (matrix.type == WeightType::kQ8) {
    RowKernel<Simd>::multiply(matrix.q8, matrix, first, count, x, rows, out, out_stride);
  } else {
    RowKernel<Simd>::multiply(matrix.q4, matrix, first, count, x, rows, out, out_stride);
  }
}

}  // namespace int8
}  // namespace gemma
