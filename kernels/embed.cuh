#pragma once

#include <cuda_runtime.h>

#include "model/model.h"

namespace gemma {

/// x = embedding of each row's token, times `scale`, in float32.
/// @param token  [rows], each below the vocabulary's size
/// @param embed  of a matrix [vocab, hidden]: bf16, hidden being a multiple of 4; or packed as in packed_weights.cuh
/// @param x      [rows, hidden]
/// @throws Error if the launch fails.
void launch_embed(const int* token, const void* embed, WeightType type, float scale, int rows, int hidden, float* x,
                  cudaStream_t stream);

}  // namespace gemma
