#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

namespace gemma {

/// What becomes of the rows that the product with the weights of queries, keys and values gives.
struct RopeOutput {
  const int* position;  ///< [rows]
  const float2* rope;   ///< [positions, head_dim / 2]: cosine and sine
  float query_scale;
  int heads;
  int kv_heads;
  int head_dim;      ///< a multiple of 16
  __nv_bfloat16* q;  ///< [rows, heads, head_dim]: turned, and multiplied by query_scale
  __nv_bfloat16* k;  ///< [rows, kv_heads, head_dim]: turned
  __nv_bfloat16* v;  ///< [rows, kv_heads, head_dim]

  int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// Splits the rows' queries, keys and values, turns queries and keys by their positions and rounds everything to bf16.
/// Keys and values come out with the bits that the cache holds.
/// @param qkv  [rows, output.width()]
/// @throws Error if the launch fails.
void launch_rope(const float* qkv, const RopeOutput& output, int rows, cudaStream_t stream);

#ifdef __CUDACC__
/// Where the first element of a head of a row goes, counting heads of queries, then keys, then values.
__device__ inline __nv_bfloat16* head_of_row(const RopeOutput& output, std::size_t row, int head) {
  const int kv_head = head - output.heads;
  if (kv_head < 0) return output.q + (row * output.heads + head) * output.head_dim;
  if (kv_head < output.kv_heads) return output.k + (row * output.kv_heads + kv_head) * output.head_dim;
  return output.v + (row * output.kv_heads + kv_head - output.kv_heads) * output.head_dim;
}

/// Turns the pair of elements i and i + head_dim / 2 by (cosine, sine). Of each product pair the one with the cosine
/// goes unrounded into the sum, as in the decode kernel: a position's key has the same bits from either.
__device__ inline void turn_pair(float& first, float& second, float2 turn) {
  const float x = first, y = second;
  first = fmaf(x, turn.x, -__fmul_rn(y, turn.y));
  second = fmaf(y, turn.x, __fmul_rn(x, turn.y));
}
#endif

}  // namespace gemma
