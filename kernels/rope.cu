// Rotary embedding: from the product's float32 rows to bf16 queries, keys and values. (On Hopper the product itself
// ends with it: wgmma_gemm.cu.)
//
// One block works on a row. A thread turns four pairs (i, i + head_dim / 2) at a time.
//
// Bytes: rows * (heads + 2 * kv_heads) * head_dim * (4 + 2), and the rows' cosines and sines.

#include "launch.cuh"
#include "ptx.cuh"
#include "rope.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;

__device__ void store(__nv_bfloat16* out, const float4& four, float scale) {
  *reinterpret_cast<uint2*>(out) = {pack_bf16(four.x * scale, four.y * scale),
                                    pack_bf16(four.z * scale, four.w * scale)};
}

__global__ void __launch_bounds__(kThreads) rope_kernel(const float* qkv, const __grid_constant__ RopeOutput output) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const int half = output.head_dim / 2;
  const int units = half / 4;  // of a head
  const int heads = output.heads + 2 * output.kv_heads;
  const float* in = qkv + row * heads * output.head_dim;
  const float2* turns = output.rope + static_cast<std::size_t>(output.position[row]) * half;

  for (int i = static_cast<int>(threadIdx.x); i < heads * units; i += kThreads) {
    const int head = i / units;
    const int dim = i % units * 4;
    float4 first = *reinterpret_cast<const float4*>(in + head * output.head_dim + dim);
    float4 second = *reinterpret_cast<const float4*>(in + head * output.head_dim + half + dim);
    if (head < output.heads + output.kv_heads) {
      const float4 two = __ldg(reinterpret_cast<const float4*>(turns + dim));
      const float4 more = __ldg(reinterpret_cast<const float4*>(turns + dim + 2));
      turn_pair(first.x, second.x, {two.x, two.y});
      turn_pair(first.y, second.y, {two.z, two.w});
      turn_pair(first.z, second.z, {more.x, more.y});
      turn_pair(first.w, second.w, {more.z, more.w});
    }
    const float scale = head < output.heads ? output.query_scale : 1.0f;
    __nv_bfloat16* out = head_of_row(output, row, head);
    store(out + dim, first, scale);
    store(out + half + dim, second, scale);
  }
}

}  // namespace

void launch_rope(const float* qkv, const RopeOutput& output, int rows, cudaStream_t stream) {
  if (rows == 0) return;
  launch_early(rope_kernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, qkv, output);
}

}  // namespace gemma
