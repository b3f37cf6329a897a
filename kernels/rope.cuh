#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace gemma {

/// Splits the rows' queries, keys and values, turns queries and keys by their positions and rounds everything to bf16.
/// Keys and values come out with the bits that the cache holds.
/// @param qkv       [rows, (heads + 2 * kv_heads) * head_dim]
/// @param position  [rows]
/// @param rope      [positions, head_dim / 2]: cosine and sine
/// @param head_dim  a multiple of 16
/// @param q         [rows, heads, head_dim], multiplied by query_scale
/// @param k, v      [rows, kv_heads, head_dim]
/// @throws Error if the launch fails.
void launch_rope(const float* qkv, const int* position, const float2* rope, float query_scale, int rows, int heads,
                 int kv_heads, int head_dim, __nv_bfloat16* q, __nv_bfloat16* k, __nv_bfloat16* v, cudaStream_t stream);

}  // namespace gemma
