#pragma once

// bf16 as CUDA names it.

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  std::uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    const unsigned full = __float_as_uint(value);
    bits =
        value != value ? std::uint16_t{0x7fff} : static_cast<std::uint16_t>((full + 0x7fff + (full >> 16 & 1)) >> 16);
  }
  operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {static_cast<float>(a.x) - static_cast<float>(b.x), static_cast<float>(a.y) - static_cast<float>(b.y)};
}
