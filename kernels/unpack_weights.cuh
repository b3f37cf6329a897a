#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

#include "decode.cuh"
#include "model/model.h"

namespace gemma {

/// Rounds the weights of a packed matrix to bf16, for the products of prompt rows: what dequantise() of
/// model/dequantise.h gives, rounded once more.
/// @param type   kQ8 or kQ4
/// @param units  packed as in packed_weights.cuh, aligned to 16 bytes; written before the kernel that comes before this
///               one in the stream began
/// @param out    [outputs rounded up to whole tiles, columns], the rows behind the last output zeros; of gate_up
///               [outputs, columns]: all of gate, then all of up. Aligned to 16 bytes.
/// @throws Error if the launch fails.
void launch_unpack_weights(WeightType type, const std::byte* units, const MatrixShape& shape, __nv_bfloat16* out,
                           cudaStream_t stream);

}  // namespace gemma
