#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "layer_cache.cuh"

namespace gemma {

/// Grouped-query attention of a prompt chunk's rows over their sequences' caches and over the chunk itself.
struct PromptAttention {
  int heads;                        ///< a multiple of cache.kv_heads; cache.head_dim is a multiple of 16, at most 256
  int window;                       ///< keys that a query sees, its own included; kNoWindow for a global layer
  float softcap;                    ///< 0: none
  const __nv_bfloat16* q;           ///< [rows, heads, head_dim]: turned and scaled
  const __nv_bfloat16* k;           ///< [rows, kv_heads, head_dim]: those of the chunk, not yet in the cache
  const __nv_bfloat16* v;           ///< likewise
  LayerCache cache;                 ///< as it was before the chunk
  const PromptSequence* sequences;  ///< [count], on the GPU
  __nv_bfloat16* out;               ///< [rows, heads * head_dim]; the rows of all sequences are written
  bool uses_wgmma = false;          ///< Hopper's tensor cores, where the shape fits: has_wgmma() (wgmma_gemm.cuh)
};

/// A row's result depends on its position and its keys alone: not on how the prompt was cut into chunks, nor on other
/// rows.
/// @param count     sequences, at most 65535
/// @param max_rows  at least the rows of the longest sequence
/// @throws Error if the head size is not a multiple of 16 up to 256, or a launch fails.
/// Source: Gemma 2 technical report, section 2 (arXiv:2408.00118); FlashAttention-2 (arXiv:2307.08691).
void launch_prompt_attention(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream);

}  // namespace gemma
