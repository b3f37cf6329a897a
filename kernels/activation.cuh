#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

namespace gemma {

/// out = gelu(gate) * up, with the tanh form of GELU.
/// @param gate_up  [rows, 2 * intermediate]: a row's gate, then its up; intermediate is a multiple of 4
/// @param out      [rows, intermediate], rows `pitch` elements apart, a multiple of 4
/// @throws Error if the launch fails.
void launch_activation(const float* gate_up, int rows, int intermediate, __nv_bfloat16* out, int pitch,
                       cudaStream_t stream);

/// logits = cap * tanh(logits / cap), in place. Nothing happens if cap is 0.
/// @param logits  [rows, vocab], rows `pitch` elements apart
/// @throws Error if the launch fails.
void launch_soft_cap(float* logits, float cap, int rows, int vocab, std::size_t pitch, cudaStream_t stream);

}  // namespace gemma
