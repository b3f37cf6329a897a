#pragma once

#include <cuda_runtime.h>

namespace gemma {

/// Cosines and sines of the rotary embedding: table[p, i] = (cos(p * frequency[i]), sin(p * frequency[i])), in double
/// from the integer position and then rounded.
/// @param frequency  [half_dim]: theta ^ (-i / half_dim)
/// @param table      [positions, half_dim]
/// @throws Error if the launch fails.
void launch_rope_table(const double* frequency, int positions, int half_dim, float2* table, cudaStream_t stream);

}  // namespace gemma
