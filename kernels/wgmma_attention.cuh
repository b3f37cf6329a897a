#pragma once

#include <cuda_runtime.h>

#include "prompt_attention.cuh"

namespace gemma {

/// Whether launch_wgmma_attention can do it: heads of 64, 128 or 256, an even number of query heads for each KV head,
/// and a soft cap of at most 64.
bool fits_wgmma_attention(const PromptAttention& attention);

/// launch_prompt_attention for Hopper: only where has_wgmma() (wgmma_gemm.cuh).
/// @throws Error if the launch fails.
void launch_wgmma_attention(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream);

}  // namespace gemma
