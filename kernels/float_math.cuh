#pragma once

// Functions of float32 whose errors are a few units in the last place, where the library's take more time than what
// stands around them. Products and sums are spelled out, so that the compiler rounds them alike wherever they stand.

#include "ptx.cuh"

namespace gemma {

inline constexpr float kLog2E = 1.4426950408889634f;

/// GELU in its tanh form: x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^(-2 u)).
/// Its relative error is 2^-24 times about 4 + 4 |u|: nothing cancels.
__device__ inline float gelu(float x) {
  constexpr float kLinear = -2 * kLog2E * 0.7978845608028654f;
  constexpr float kCubic = 0.044715f * kLinear;
  const float exponent = __fmul_rn(x, fmaf(__fmul_rn(x, x), kCubic, kLinear));
  return __fmul_rn(x, reciprocal_approx(__fadd_rn(1.0f, exp2_approx(exponent))));
}

/// cap * tanh(score / cap) in units of log2(e), so that exp2 of it is a weight.
struct SoftCap {
  float cap;
  float inverse_square;  ///< 1 / cap^2
  float scaled_cap;      ///< log2(e) * cap
  float exponent;        ///< 2 * log2(e) / cap

  __host__ __device__ explicit SoftCap(float cap)
      : cap(cap), inverse_square(1.0f / (cap * cap)), scaled_cap(kLog2E * cap), exponent(2 * kLog2E / cap) {}

  /// For |score| <= cap: the score times an even polynomial in it, fitted to tanh(x) / x on [0, 1] for the least
  /// relative error, which is 4e-9, and 1.2e-7 with all rounding.
  __device__ float small(float score) const {
    constexpr double kCoefficients[] = {0.9999999957779059,    -0.33333278674170386,   0.13332159680108663,
                                        -0.05387091303072136,  0.021464820765862508,   -0.007917445006980384,
                                        0.0022822296869897535, -0.00035334551218724197};
    constexpr double kScale = 1.4426950408889634;
    const float square = __fmul_rn(__fmul_rn(score, inverse_square), score);
    float sum = static_cast<float>(kCoefficients[7] * kScale);
#pragma unroll
    for (int i = 6; i >= 0; --i) sum = fmaf(sum, square, static_cast<float>(kCoefficients[i] * kScale));
    return __fmul_rn(score, sum);
  }

  /// For |score| >= cap: tanh(x) = 1 - 2 / (1 + e^(2 x)), of which the second part is below 0.24: its error of 3 units
  /// is one of the whole.
  __device__ float large(float score) const {
    const float tanh =
        fmaf(-2.0f, reciprocal_approx(__fadd_rn(1.0f, exp2_approx(__fmul_rn(fabsf(score), exponent)))), 1.0f);
    return copysignf(__fmul_rn(scaled_cap, tanh), score);
  }

  __device__ float operator()(float score) const { return fabsf(score) <= cap ? small(score) : large(score); }
};

}  // namespace gemma
