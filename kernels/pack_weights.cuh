#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "model/model.h"

namespace gemma {

/// Brings a quantised matrix, as a model file has it, into the order of packed_weights.cuh. What its last tile and its
/// last unit have beyond the matrix becomes zeros.
/// @param matrix      in the GPU's memory, each of its tensors aligned to 2 bytes
/// @param is_gate_up  all of gate, then all of up, as in MatrixShape
/// @param units       [packed_bytes(type, rows, columns)], aligned to 16 bytes
/// @throws Error if the launch fails.
void launch_pack_weights(const Matrix& matrix, bool is_gate_up, std::byte* units, cudaStream_t stream);

}  // namespace gemma
