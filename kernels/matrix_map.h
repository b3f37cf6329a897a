#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

namespace gemma {

/// Tells the copy engine of Hopper and newer GPUs how to fetch boxes of 64 columns and `box_rows` rows of a row-major
/// matrix, swizzled as kernels/wgmma.cuh expects its panels. What lies outside the matrix becomes zeros.
/// @param matrix    [rows, columns], aligned to 16 bytes; columns is a multiple of 8
/// @param box_rows  at most 256
/// @throws Error if the driver refuses.
CUtensorMap matrix_map(const __nv_bfloat16* matrix, int rows, int columns, int box_rows);

}  // namespace gemma
