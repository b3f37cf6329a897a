#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <tuple>
#include <type_traits>

namespace gemma {

/// Matrix products of prompt rows, through cuBLASLt: bf16 inputs, float32 accumulation.
///
/// The algorithm is chosen once for each shape of weights and then used for any number of rows, and it never splits the
/// sum over columns, so a row's result does not depend on the other rows. It is chosen by cuBLASLt's heuristics and not
/// by timing, so that every run gives the same bits.
///
/// Not for several threads at once. Products can be captured in a graph.
class Gemm {
 public:
  /// @param typical_rows  the number of rows that algorithms are chosen for: that of a full chunk
  /// @throws Error if cuBLASLt cannot be started.
  explicit Gemm(int typical_rows);

  /// out = in x weights^T. All pointers are aligned to 16 bytes.
  /// @param out      [rows, outputs]
  /// @param in       [rows, columns]; columns is a multiple of 8
  /// @param weights  [outputs, columns]
  /// @throws Error if cuBLASLt has no algorithm for the shape, or refuses it.
  void multiply(float* out, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows, int outputs, int columns,
                cudaStream_t stream);
  void multiply(__nv_bfloat16* out, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows, int outputs,
                int columns, cudaStream_t stream);

 private:
  struct Plan {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatmulAlgo_t algorithm;
  };
  using Shape = std::tuple<int, int, cudaDataType_t>;  // outputs, columns, type of the output

  const Plan& plan(int outputs, int columns, cudaDataType_t out_type);
  void multiply(void* out, cudaDataType_t out_type, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows,
                int outputs, int columns, cudaStream_t stream);

  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, Destroy> handle_;
  int typical_rows_;
  std::map<Shape, Plan> plans_;
};

}  // namespace gemma
