// Rotary embedding: from the product's float32 rows to bf16 queries, keys and values.
//
// One block works on a row. A thread turns four pairs (i, i + head_dim / 2) at a time.
//
// Bytes: rows * (heads + 2 * kv_heads) * head_dim * (4 + 2), and the rows' cosines and sines.

#include "cuda_error.h"
#include "ptx.cuh"
#include "rope.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;

__device__ void store(__nv_bfloat16* out, const float4& four, float scale) {
  *reinterpret_cast<uint2*>(out) = {pack_bf16(four.x * scale, four.y * scale),
                                    pack_bf16(four.z * scale, four.w * scale)};
}

/// Of each product pair the one with the cosine goes unrounded into the sum, as in the decode kernel: a position's key
/// has the same bits from either.
__device__ void turn_pair(float& first, float& second, float2 turn) {
  const float x = first, y = second;
  first = fmaf(x, turn.x, -__fmul_rn(y, turn.y));
  second = fmaf(y, turn.x, __fmul_rn(x, turn.y));
}

__global__ void __launch_bounds__(kThreads)
    rope_kernel(const float* qkv, const int* position, const float2* rope, float query_scale, int heads, int kv_heads,
                int head_dim, __nv_bfloat16* q, __nv_bfloat16* k, __nv_bfloat16* v) {
  const std::size_t row = blockIdx.x;
  const int half = head_dim / 2;
  const int units = half / 4;  // of a head
  const float* in = qkv + row * (heads + 2 * kv_heads) * head_dim;
  const float2* turns = rope + static_cast<std::size_t>(position[row]) * half;

  for (int i = static_cast<int>(threadIdx.x); i < (heads + 2 * kv_heads) * units; i += kThreads) {
    const int head = i / units;
    const int dim = i % units * 4;
    float4 first = __ldg(reinterpret_cast<const float4*>(in + head * head_dim + dim));
    float4 second = __ldg(reinterpret_cast<const float4*>(in + head * head_dim + half + dim));
    if (head < heads + kv_heads) {
      const float4 two = __ldg(reinterpret_cast<const float4*>(turns + dim));
      const float4 more = __ldg(reinterpret_cast<const float4*>(turns + dim + 2));
      turn_pair(first.x, second.x, {two.x, two.y});
      turn_pair(first.y, second.y, {two.z, two.w});
      turn_pair(first.z, second.z, {more.x, more.y});
      turn_pair(first.w, second.w, {more.z, more.w});
    }
    __nv_bfloat16* out;
    float scale = 1.0f;
    if (head < heads) {
      out = q + (row * heads + head) * head_dim;
      scale = query_scale;
    } else if (head < heads + kv_heads) {
      out = k + (row * kv_heads + head - heads) * head_dim;
    } else {
      out = v + (row * kv_heads + head - heads - kv_heads) * head_dim;
    }
    store(out + dim, first, scale);
    store(out + half + dim, second, scale);
  }
}

}  // namespace

void launch_rope(const float* qkv, const int* position, const float2* rope, float query_scale, int rows, int heads,
                 int kv_heads, int head_dim, __nv_bfloat16* q, __nv_bfloat16* k, __nv_bfloat16* v,
                 cudaStream_t stream) {
  if (rows == 0) return;
  rope_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(qkv, position, rope, query_scale, heads, kv_heads,
                                                                    head_dim, q, k, v);
  check_cuda(cudaGetLastError());
}

}  // namespace gemma
