#pragma once

#include <span>

namespace gemma {

/// out = x * rsqrt(mean(x^2) + eps) * (1 + weight). All of one size; `out` may be `x`.
void rms_norm(std::span<const float> x, std::span<const float> weight, float eps, float* out);

/// x += the RMSNorm of y. All of one size.
void add_rms_norm(std::span<const float> y, std::span<const float> weight, float eps, float* x);

/// Rotates the pairs (i, i + head_dim / 2) of one head by the angles of a position, and multiplies by `scale`.
/// @param x         [head_dim]
/// @param cos, sin  [head_dim / 2]
void rotate(float* x, int head_dim, const float* cos, const float* sin, float scale);

/// out = gelu(gate) * up with the tanh form of GELU, 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))): Gemma's
/// "gelu_pytorch_tanh". All of size `count`; `out` may be `gate` or `up`.
void geglu(const float* gate, const float* up, int count, float* out);

/// x = cap * tanh(x / cap).
void softcap(float* x, int count, float cap);

/// log(sum(exp(x))), NaN counting as minus infinity and infinity as the largest number; minus infinity if nothing is
/// left. The sum of exponentials is a double.
double log_sum_exp(std::span<const float> x);

}  // namespace gemma
