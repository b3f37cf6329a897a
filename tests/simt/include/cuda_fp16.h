#pragma once

// float16 as CUDA names it: what is needed of it.

#include <cmath>

#include "cuda_runtime.h"

struct __half {
  std::uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half half) {
  const unsigned sign = (half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  // The exponent's bias differs by 112; the product makes denormals right, too.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }

inline __half __float2half_rn(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const auto signed_half = [&](unsigned half) { return __half{static_cast<std::uint16_t>(sign | half)}; };
  if (magnitude > 0x7f800000u) return signed_half(0x7fff);
  const float size = std::fabs(value);
  if (size >= 65520.0f) return signed_half(0x7c00);
  if (size < 0x1p-14f) return signed_half(static_cast<unsigned>(std::nearbyint(size * 0x1p24f)));
  return signed_half((magnitude + 0xfff + (magnitude >> 13 & 1)) / 0x2000 - (112u << 10));
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) - __half2float(b.x), __half2float(a.y) - __half2float(b.y));
}
