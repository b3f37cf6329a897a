// Matrix products in the place of cuBLASLt's: every sum in ascending order of columns.

#include "cublasLt.h"

#include <cstdlib>
#include <vector>

#include "cuda_bf16.h"

struct cublasLtContext {};

const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_NOT_SUPPORTED";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType_t type, std::uint64_t rows,
                                        std::uint64_t columns, std::int64_t pitch) {
  *layout = {type, rows, columns, pitch};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t product, cublasComputeType_t, cudaDataType_t) {
  product->transposes_first = CUBLAS_OP_N;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t,
                                              const void* value, std::size_t) {
  product->transposes_first = *static_cast<const cublasOperation_t*>(value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  results[0] = {{}, 0, CUBLAS_STATUS_SUCCESS};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t*,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    std::size_t bytes, std::size_t* written) {
  *static_cast<std::uint32_t*>(value) =
      attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? 1 : CUBLASLT_REDUCTION_SCHEME_NONE;
  *written = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void*, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void*, const void*, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t*, void*, std::size_t,
                              cudaStream_t stream) {
  if (product->transposes_first != CUBLAS_OP_T || a_layout->rows != b_layout->rows ||
      d_layout->rows != a_layout->columns || d_layout->columns != b_layout->columns)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  simt::submit(
      stream, [=, k = a_layout->rows, m = d_layout->rows, n = d_layout->columns,
               a_pitch = static_cast<std::size_t>(a_layout->pitch), b_pitch = static_cast<std::size_t>(b_layout->pitch),
               d_pitch = static_cast<std::size_t>(d_layout->pitch)] {
        const auto* first = static_cast<const __nv_bfloat16*>(a);
        const auto* second = static_cast<const __nv_bfloat16*>(b);
        auto* out = static_cast<float*>(d);
        // Sums of a column of `out` side by side, so that the compiler can take several at once.
        std::vector<float> transposed(k * m), sum(m);
        for (std::size_t i = 0; i < m; ++i) {
          for (std::size_t j = 0; j < k; ++j) transposed[j * m + i] = first[i * a_pitch + j];
        }
        for (std::size_t row = 0; row < n; ++row) {
          sum.assign(m, 0.0f);
          for (std::size_t j = 0; j < k; ++j) {
            const float factor = second[row * b_pitch + j];
            const float* weights = &transposed[j * m];
            for (std::size_t i = 0; i < m; ++i) sum[i] += factor * weights[i];
          }
          for (std::size_t i = 0; i < m; ++i) out[row * d_pitch + i] = sum[i];
        }
      });
  return CUBLAS_STATUS_SUCCESS;
}
