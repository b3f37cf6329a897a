#pragma once

#include <cuda.h>

#include "decode.cuh"

namespace gemma::cuda {

/// Tells the copy engine of Hopper and newer GPUs how to fetch pieces of a weight matrix: boxes of kPieceRows rows (of
/// gate_up half of them each from gate and up) by kPieceColumns columns, swizzled as kernels/stream.cuh expects it.
/// @param matrix  its `tensor_map` is not looked at. Up to 64 bytes behind the matrix may be read.
/// @throws Error if the driver refuses.
CUtensorMap make_tensor_map(const StreamedMatrix& matrix);

}  // namespace gemma::cuda
