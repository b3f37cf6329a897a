#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "layer_cache.cuh"

namespace gemma {

/// A prompt chunk's keys and values in 8 bits, on their way to the cache.
struct QuantisedRows {
  std::int8_t* k;  ///< [rows, kv_heads, head_dim]
  std::int8_t* v;
  float* k_scale;  ///< [rows, kv_heads]
  float* v_scale;
};

/// Rounds a chunk's keys and values to 8 bits, and in place to what these stand for: scale * code, rounded to bf16.
/// @param k, v  [rows, kv_heads, head_dim]; head_dim is a multiple of 16, at most 256
/// @throws Error if the launch fails.
void launch_kv_quantise(__nv_bfloat16* k, __nv_bfloat16* v, int rows, int kv_heads, int head_dim,
                        const QuantisedRows& out, cudaStream_t stream);

/// Writes what a chunk's attention sees of a layer's cache, which is in 8 bits, as bf16: scale * code, rounded. Of each
/// sequence the blocks with the positions before the chunk that lie in the window of its first row.
/// @param cache       head_dim is a multiple of 16
/// @param expanded    as `cache`, but of one layer, [rings, 1, 2, kv_heads, ring_slots, head_dim] or [pages, 1, 2,
///                    kv_heads, 64, head_dim], bf16; other blocks are left as they are
/// @param window      kNoWindow for a global layer
/// @param sequences   [count], on the GPU; at most 65535
/// @param max_blocks  at least those of each of them: most_blocks_before_chunk()
/// @throws Error if the launch fails.
void launch_kv_expand(const LayerCache& cache, const LayerCache& expanded, int window, const PromptSequence* sequences,
                      int count, int max_blocks, cudaStream_t stream);

/// At most so many blocks are written by launch_kv_expand for a sequence whose chunk begins at `position` or before.
int most_blocks_before_chunk(int position, int window);

}  // namespace gemma
