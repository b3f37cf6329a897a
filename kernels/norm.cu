// RMSNorm, alone and fused with what stands around it.
//
// One block works on a row, which it reads once and keeps in registers. Arithmetic and order of summation are those of
// the decode kernel (decode.cu), so both give a row the same bits.
//
// Bytes: rows * hidden * (4 + 2) for normalize, rows * hidden * (4 + 4 + 4 + 2) for add_normalized.

#include <string>

#include "gemma/error.h"
#include "launch.cuh"
#include "norm.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxUnits = 16;  // of four elements, of a thread

__device__ float add_squares(float sum, const float4& v) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

/// Sums over the block: each warp its lanes, then the warps in order. Every thread gets the sum.
__device__ float block_sum(float value) {
  __shared__ float sums[kWarps];
  value = warp_sum(value);
  __syncthreads();  // the sums of the time before have been read
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  return total;
}

__device__ float inverse_rms(float squares, int hidden, float eps) {
  return rsqrtf(fmaf(squares, 1.0f / static_cast<float>(hidden), eps));
}

/// A thread's part of a row: units of four elements, kThreads units apart; zeros behind the end.
template <int kUnits>
struct Part {
  float4 unit[kUnits];

  static __device__ int index(int i) { return static_cast<int>(threadIdx.x) + i * kThreads; }

  __device__ void load(const float* row, int hidden) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      unit[i] = {0, 0, 0, 0};
      if (index(i) < hidden / 4) unit[i] = reinterpret_cast<const float4*>(row)[index(i)];
    }
  }

  /// What each element must be multiplied by, the weight aside.
  __device__ float norm_scale(float eps, int hidden) const {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) squares = add_squares(squares, unit[i]);
    return inverse_rms(block_sum(squares), hidden, eps);
  }

  __device__ void store_normalized(const float* weight, float eps, int hidden, __nv_bfloat16* out) const {
    const float scale = norm_scale(eps, hidden);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (index(i) >= hidden / 4) continue;
      const float4 x = unit[i];
      const float4 norm = __ldg(reinterpret_cast<const float4*>(weight) + index(i));
      reinterpret_cast<uint2*>(out)[index(i)] = {
          pack_bf16(__fmul_rn(x.x, scale) * (1.0f + norm.x), __fmul_rn(x.y, scale) * (1.0f + norm.y)),
          pack_bf16(__fmul_rn(x.z, scale) * (1.0f + norm.z), __fmul_rn(x.w, scale) * (1.0f + norm.w))};
    }
  }
};

template <int kUnits>
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const float* x, const int* index, const float* weight, float eps, int hidden, __nv_bfloat16* out) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const std::size_t source = index == nullptr ? row : static_cast<std::size_t>(index[row]);
  Part<kUnits> part;
  part.load(x + source * hidden, hidden);
  part.store_normalized(weight, eps, hidden, out + row * hidden);
}

template <int kUnits>
__global__ void __launch_bounds__(kThreads)
    add_normalized_kernel(const float* y, const float* post_weight, const float* next_weight, float eps, int hidden,
                          float* x, __nv_bfloat16* out) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  Part<kUnits> added, residual;
  added.load(y + row * hidden, hidden);
  residual.load(x + row * hidden, hidden);

  const float scale = added.norm_scale(eps, hidden);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int at = Part<kUnits>::index(i);
    if (at >= hidden / 4) continue;
    const float4 more = added.unit[i];
    const float4 norm = __ldg(reinterpret_cast<const float4*>(post_weight) + at);
    float4& sum = residual.unit[i];
    sum = {fmaf(__fmul_rn(more.x, scale), 1.0f + norm.x, sum.x), fmaf(__fmul_rn(more.y, scale), 1.0f + norm.y, sum.y),
           fmaf(__fmul_rn(more.z, scale), 1.0f + norm.z, sum.z), fmaf(__fmul_rn(more.w, scale), 1.0f + norm.w, sum.w)};
    reinterpret_cast<float4*>(x + row * hidden)[at] = sum;
  }
  if (next_weight != nullptr) residual.store_normalized(next_weight, eps, hidden, out + row * hidden);
}

/// Calls launch(constant) with the number of units that a thread needs for a row.
template <class Launch>
void with_units(int hidden, const Launch& launch) {
  const int units = (hidden / 4 + kThreads - 1) / kThreads;
  if (units <= 3) return launch(std::integral_constant<int, 3>());
  if (units <= 5) return launch(std::integral_constant<int, 5>());
  if (units <= kMaxUnits) return launch(std::integral_constant<int, kMaxUnits>());
  throw Error("the GPU's norms take rows of up to " + std::to_string(4 * kMaxUnits * kThreads) + " elements, not " +
              std::to_string(hidden));
}

}  // namespace

void launch_normalize(const float* x, const int* index, const float* weight, float eps, int rows, int hidden,
                      __nv_bfloat16* out, cudaStream_t stream) {
  if (rows == 0) return;
  with_units(hidden, [&](auto units) {
    launch_early(normalize_kernel<units()>, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, x, index, weight,
                 eps, hidden, out);
  });
}

void launch_add_normalized(const float* y, const float* post_weight, const float* next_weight, float eps, int rows,
                           int hidden, float* x, __nv_bfloat16* out, cudaStream_t stream) {
  if (rows == 0) return;
  with_units(hidden, [&](auto units) {
    launch_early(add_normalized_kernel<units()>, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, y, post_weight,
                 next_weight, eps, hidden, x, out);
  });
}

}  // namespace gemma
