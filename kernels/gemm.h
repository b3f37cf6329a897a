#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <memory>
#include <tuple>
#include <type_traits>

#include "rope.cuh"
#include "wgmma_gemm.cuh"

namespace gemma {

/// Matrix products of prompt rows: bf16 inputs, float32 accumulation. On Hopper by kernels of our own (wgmma_gemm.cuh),
/// which end with what follows the product; elsewhere by cuBLASLt.
///
/// A row's result does not depend on the other rows. cuBLASLt's algorithm is chosen once for each shape of weights and
/// then used for any number of rows, and it never splits the sum over columns. It is chosen by cuBLASLt's heuristics
/// and not by timing, so that every run gives the same bits.
///
/// Not for several threads at once. Products can be captured in a graph.
class Gemm {
 public:
  /// @param typical_rows  the number of rows that cuBLASLt's algorithms are chosen for
  /// @param uses_wgmma    kernels of our own; only where has_wgmma()
  /// @throws Error if cuBLASLt cannot be started.
  explicit Gemm(int typical_rows, bool uses_wgmma = has_wgmma());

  bool uses_wgmma() const { return uses_wgmma_; }

  /// out = in x weights^T. All pointers, here and below, are aligned to 16 bytes.
  /// @param out      [rows, outputs], rows `pitch` elements apart: a part of the columns of a wider matrix, if wanted
  /// @param in       [rows, columns]; columns is a multiple of 8
  /// @param weights  [outputs, columns]
  /// @param pitch    a multiple of 4; 0: outputs
  /// @throws Error if cuBLASLt has no algorithm for the shape, or refuses it, or a launch fails.
  void multiply(float* out, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows, int outputs, int columns,
                cudaStream_t stream, int pitch = 0);

  /// Queries, keys and values, turned by their positions.
  /// @param weights  [output.width(), columns]
  /// @param scratch  [qkv_scratch(rows, output)]
  void multiply_qkv(const RopeOutput& output, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows,
                    int columns, float* scratch, cudaStream_t stream);
  std::size_t qkv_scratch(int rows, int head_dim, int width) const;

  /// out = gelu(in x gate^T) * (in x up^T).
  /// @param out      [rows, intermediate], rows `pitch` elements apart
  /// @param gate_up  [2 * intermediate, columns]: all of gate, then all of up; intermediate is a multiple of 8
  /// @param scratch  [geglu_scratch(rows, intermediate)]
  /// @param pitch    a multiple of 8; 0: intermediate
  void multiply_geglu(__nv_bfloat16* out, const __nv_bfloat16* in, const __nv_bfloat16* gate_up, int rows,
                      int intermediate, int columns, float* scratch, cudaStream_t stream, int pitch = 0);
  std::size_t geglu_scratch(int rows, int intermediate) const;

 private:
  struct Plan {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatmulAlgo_t algorithm;
  };
  using Shape = std::tuple<int, int, int>;  // outputs, columns, pitch

  void start();
  const Plan& plan(int outputs, int columns, int pitch);

  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, Destroy> handle_;  // started when first needed
  int typical_rows_;
  bool uses_wgmma_;
  std::map<Shape, Plan> plans_;
};

}  // namespace gemma
