#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace gemma {

/// out = RMSNorm(x) * (1 + weight): the input of a matrix product.
/// Sums are float32, in an order that depends on `hidden` alone.
/// @param x       [.., hidden]; hidden is a multiple of 4, at most 16384
/// @param index   [rows]: which rows of x; nullptr: the first `rows` rows
/// @param weight  [hidden]
/// @param out     [rows, hidden]
/// @throws Error if `hidden` is too large, or the launch fails.
void launch_normalize(const float* x, const int* index, const float* weight, float eps, int rows, int hidden,
                      __nv_bfloat16* out, cudaStream_t stream);

/// x += RMSNorm(y) * (1 + post_weight); then out = RMSNorm(x) * (1 + next_weight), if next_weight is not nullptr.
/// @param y, x  [rows, hidden]; hidden is a multiple of 4, at most 16384
/// @param post_weight, next_weight  [hidden]
/// @param out   [rows, hidden]; may be nullptr where next_weight is
/// @throws Error if `hidden` is too large, or the launch fails.
void launch_add_normalized(const float* y, const float* post_weight, const float* next_weight, float eps, int rows,
                           int hidden, float* x, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace gemma
