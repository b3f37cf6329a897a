// RMSNorm, alone and fused with what stands around it.
//
// One block works on a row. It reads the row again for each pass; after the first time it comes from the L1 cache.
// Arithmetic and order of summation are those of the decode kernel (decode.cu), so both give a row the same bits.
//
// Bytes: rows * hidden * (4 + 2) for normalize, rows * hidden * (4 + 4 + 4 + 2) for add_normalized.

#include "cuda_error.h"
#include "norm.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

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

__device__ void store_normalized(const float4& x, float scale, const float4& weight, uint2* out) {
  *out = {pack_bf16(__fmul_rn(x.x, scale) * (1.0f + weight.x), __fmul_rn(x.y, scale) * (1.0f + weight.y)),
          pack_bf16(__fmul_rn(x.z, scale) * (1.0f + weight.z), __fmul_rn(x.w, scale) * (1.0f + weight.w))};
}

__device__ void normalize_row(const float4* x, float squares, const float* weight, float eps, int hidden,
                              __nv_bfloat16* out) {
  const float scale = inverse_rms(block_sum(squares), hidden, eps);
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads) {
    store_normalized(x[unit], scale, __ldg(reinterpret_cast<const float4*>(weight) + unit),
                     reinterpret_cast<uint2*>(out) + unit);
  }
}

__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const float* x, const int* index, const float* weight, float eps, int hidden, __nv_bfloat16* out) {
  const std::size_t row = blockIdx.x;
  const std::size_t source = index == nullptr ? row : static_cast<std::size_t>(index[row]);
  const float4* in = reinterpret_cast<const float4*>(x + source * hidden);
  float squares = 0;
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads)
    squares = add_squares(squares, in[unit]);
  normalize_row(in, squares, weight, eps, hidden, out + row * hidden);
}

__global__ void __launch_bounds__(kThreads)
    add_normalized_kernel(const float* y, const float* post_weight, const float* next_weight, float eps, int hidden,
                          float* x, __nv_bfloat16* out) {
  const std::size_t row = blockIdx.x;
  const float4* added = reinterpret_cast<const float4*>(y + row * hidden);
  float4* residual = reinterpret_cast<float4*>(x + row * hidden);

  float squares = 0;
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads)
    squares = add_squares(squares, added[unit]);
  const float scale = inverse_rms(block_sum(squares), hidden, eps);

  squares = 0;
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads) {
    const float4 more = added[unit];
    const float4 norm = __ldg(reinterpret_cast<const float4*>(post_weight) + unit);
    float4 sum = residual[unit];
    sum = {fmaf(__fmul_rn(more.x, scale), 1.0f + norm.x, sum.x), fmaf(__fmul_rn(more.y, scale), 1.0f + norm.y, sum.y),
           fmaf(__fmul_rn(more.z, scale), 1.0f + norm.z, sum.z), fmaf(__fmul_rn(more.w, scale), 1.0f + norm.w, sum.w)};
    residual[unit] = sum;  // this thread alone reads it again
    squares = add_squares(squares, sum);
  }
  if (next_weight != nullptr) normalize_row(residual, squares, next_weight, eps, hidden, out + row * hidden);
}

}  // namespace

void launch_normalize(const float* x, const int* index, const float* weight, float eps, int rows, int hidden,
                      __nv_bfloat16* out, cudaStream_t stream) {
  if (rows == 0) return;
  normalize_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(x, index, weight, eps, hidden, out);
  check_cuda(cudaGetLastError());
}

void launch_add_normalized(const float* y, const float* post_weight, const float* next_weight, float eps, int rows,
                           int hidden, float* x, __nv_bfloat16* out, cudaStream_t stream) {
  if (rows == 0) return;
  add_normalized_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(y, post_weight, next_weight, eps, hidden,
                                                                              x, out);
  check_cuda(cudaGetLastError());
}

}  // namespace gemma
