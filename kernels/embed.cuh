#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace gemma {

/// x = embedding of each row's token, times `scale`, in float32.
/// @param token  [rows], each below the vocabulary's size
/// @param embed  [vocab, hidden]; hidden is a multiple of 4
/// @param x      [rows, hidden]
/// @throws Error if the launch fails.
void launch_embed(const int* token, const __nv_bfloat16* embed, float scale, int rows, int hidden, float* x,
                  cudaStream_t stream);

}  // namespace gemma
