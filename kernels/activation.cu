// The functions that a product's outputs go through: GeGLU, and the soft cap of the logits.
//
// Bytes: rows * intermediate * (8 + 2) for the activation; rows * vocab * 8 for the soft cap.

#include "activation.cuh"
#include "float_math.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;
constexpr int kLogitsOfThread = 4;

__global__ void __launch_bounds__(kThreads)
    activation_kernel(const float* gate_up, int intermediate, __nv_bfloat16* out, int pitch) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const int column = 4 * static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (column >= intermediate) return;
  const float* in = gate_up + row * 2 * intermediate + column;
  const float4 gate = *reinterpret_cast<const float4*>(in);
  const float4 up = *reinterpret_cast<const float4*>(in + intermediate);
  *reinterpret_cast<uint2*>(out + row * pitch + column) = {pack_bf16(gelu(gate.x) * up.x, gelu(gate.y) * up.y),
                                                           pack_bf16(gelu(gate.z) * up.z, gelu(gate.w) * up.w)};
}

__global__ void __launch_bounds__(kThreads) soft_cap_kernel(float* logits, float cap, int vocab, std::size_t pitch) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  float* row = logits + blockIdx.x * pitch;
  const int first = static_cast<int>(blockIdx.y * kThreads * kLogitsOfThread + threadIdx.x);
#pragma unroll
  for (int i = 0; i < kLogitsOfThread; ++i) {
    const int token = first + i * kThreads;
    if (token < vocab) row[token] = cap * tanhf(row[token] / cap);
  }
}

unsigned blocks_for(int count, int per_block) { return static_cast<unsigned>((count + per_block - 1) / per_block); }

}  // namespace

void launch_activation(const float* gate_up, int rows, int intermediate, __nv_bfloat16* out, int pitch,
                       cudaStream_t stream) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), blocks_for(intermediate, 4 * kThreads));
  launch_early(activation_kernel, grid, kThreads, 0, stream, gate_up, intermediate, out, pitch);
}

void launch_soft_cap(float* logits, float cap, int rows, int vocab, std::size_t pitch, cudaStream_t stream) {
  if (rows == 0 || cap == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), blocks_for(vocab, kLogitsOfThread * kThreads));
  launch_early(soft_cap_kernel, grid, kThreads, 0, stream, logits, cap, vocab, pitch);
}

}  // namespace gemma
