#pragma once

#include <cstddef>
#include <span>

#include "device/cpu/int8_inputs.h"
#include "device/cpu/memory.h"
#include "model/model.h"

namespace gemma {

/// Outputs of a q8 or q4 matrix that are multiplied in one go, at most.
inline constexpr int kInt8OutputBlock = 64;

/// Where kernels unpack weights. One for each thread.
class Int8Scratch {
 public:
  Int8Scratch() = default;
  /// @param columns  of the widest matrix.
  explicit Int8Scratch(int columns);
  std::byte* data() const { return memory_.data(); }

 private:
  Memory memory_;
};

/// Products of int8 inputs with q8 and q4 weights on one instruction set.
///
/// out[m][n] = dot(weights.row(first + n), x[m]). With integers for the sums over a group, which are exact, and one
/// order for everything else, all instruction sets give the same bits for every number of rows and outputs: with
///   q8: term(g) = fma(dot(codes, x codes), scale * x scale, .)
///   q4: term(g) = fma(-(m * minimum), x sum, fma(dot(codes, x codes), (d * scale) * x scale, .))
/// lane l of eight adds up the terms of the groups l, l + 8, l + 16, ..., and the lanes are added from first to last.
struct Int8Kernels {
  const char* name;  ///< of the instruction set: "AVX-512 VNNI"

  /// @param weights  of type kQ8 or kQ4.
  /// @param count    outputs; at most kInt8OutputBlock.
  /// @param x        quantised for the weights' type, of padded_to_blocks(weights.columns) columns.
  /// @param out      [rows, out_stride]
  void (*multiply)(const Matrix& weights, int first, int count, const Int8Rows& x, int rows, float* out,
                   std::size_t out_stride, const Int8Scratch& scratch);
};

/// Those that this machine can run, the best first; never empty.
std::span<const Int8Kernels> usable_int8_kernels();

}  // namespace gemma
