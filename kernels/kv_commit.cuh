#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kv_quantise.cuh"
#include "layer_cache.cuh"

namespace gemma {

/// Puts a chunk's keys and values into the cache, after attention has read what they overwrite. Of a sequence that has
/// more rows than a ring has slots, a ring gets the newest ring_slots.
/// @param k, v       [rows, kv_heads, head_dim]
/// @param sequences  [count], on the GPU
/// @param max_rows   at least the rows of the longest sequence; at most 65535 sequences
/// @throws Error if the launch fails.
void launch_kv_commit(const __nv_bfloat16* k, const __nv_bfloat16* v, const LayerCache& cache,
                      const PromptSequence* sequences, int count, int max_rows, cudaStream_t stream);

/// The same of a cache that is kept in 8 bits.
void launch_kv_commit(const QuantisedRows& rows, const LayerCache& cache, const PromptSequence* sequences, int count,
                      int max_rows, cudaStream_t stream);

}  // namespace gemma
