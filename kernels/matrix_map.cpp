#include "matrix_map.h"

#include <cuda_runtime.h>

#include <string>

#include "cuda_error.h"
#include "gemma/error.h"

namespace gemma {
namespace {

/// The driver's function, asked for by name: programs that link the kernels start without a driver.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status));
#else
    check_cuda(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &status));
#endif
    if (status != cudaDriverEntryPointSuccess || function == nullptr)
      throw Error("the GPU's driver cannot make tensor maps; it needs CUDA 12.0 or newer");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap matrix_map(const __nv_bfloat16* matrix, int rows, int columns, int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {2 * sizes[0]};  // bytes from row to row
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t every[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<__nv_bfloat16*>(matrix), sizes, strides, box,
                every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error("the GPU's driver refuses a tensor map of " + std::to_string(rows) + " x " + std::to_string(columns) +
                " (error " + std::to_string(static_cast<int>(result)) + ")");
  }
  return map;
}

}  // namespace gemma
