#include "device/cuda/tensor_map.h"

#include <string>

#include "gemma/error.h"

namespace gemma::cuda {

CUtensorMap make_tensor_map(const StreamedMatrix& matrix) {
  constexpr cuuint64_t kRun = 64;  // columns that lie together in a stage: 128 bytes
  const auto columns = static_cast<cuuint64_t>(matrix.columns);
  const auto rows = static_cast<cuuint64_t>(matrix.is_gate_up ? matrix.outputs / 2 : matrix.outputs);
  const cuuint32_t parts = matrix.is_gate_up ? 2 : 1;

  // From the innermost dimension outwards: columns of a run, rows, gate and up, runs.
  const cuuint64_t sizes[] = {kRun, rows, parts, (columns + kRun - 1) / kRun};
  const cuuint64_t strides[] = {2 * columns, 2 * columns * rows, 2 * kRun};  // bytes, of all but the innermost
  const cuuint32_t box[] = {kRun, kPieceRows / parts, parts, kPieceColumns / kRun};
  const cuuint32_t every[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(matrix.weights), sizes,
                             strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error("the GPU's driver refuses a tensor map of " + std::to_string(matrix.outputs) + " x " +
                std::to_string(matrix.columns) + " (error " + std::to_string(static_cast<int>(result)) + ")");
  }
  return map;
}

}  // namespace gemma::cuda
