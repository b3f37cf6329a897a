// x = E[token] * scale.
//
// Bytes: rows * hidden * (2 + 4).

#include "embed.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(const int* token, const __nv_bfloat16* embed, float scale, int hidden, float* x) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const uint2* in = reinterpret_cast<const uint2*>(embed + static_cast<std::size_t>(token[row]) * hidden);
  float4* out = reinterpret_cast<float4*>(x + row * hidden);
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads) {
    const uint2 four = __ldg(in + unit);
    out[unit] = {low_half(four.x) * scale, high_half(four.x) * scale, low_half(four.y) * scale,
                 high_half(four.y) * scale};
  }
}

}  // namespace

void launch_embed(const int* token, const __nv_bfloat16* embed, float scale, int rows, int hidden, float* x,
                  cudaStream_t stream) {
  if (rows == 0) return;
  launch_early(embed_kernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, token, embed, scale, hidden, x);
}

}  // namespace gemma
