#pragma once

// Keys and values in 8 bits: x = scale * code, with one scale for a head's key, or value, at one position. Rounded as
// src/device/cpu/kv_store.cpp does it, to the last bit; what is rounded are the bf16 numbers that a bf16 cache would
// keep.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace gemma {

#ifdef __CUDACC__
#define GEMMA_HOST_DEVICE __host__ __device__
#else
#define GEMMA_HOST_DEVICE
#endif

/// Bytes of one head's key or value at one position, its share of the scales included.
GEMMA_HOST_DEVICE constexpr int quantised_head_bytes(int head_dim) { return head_dim + 4; }

#undef GEMMA_HOST_DEVICE

#ifdef __CUDACC__

struct KvScale {
  float scale;    ///< what codes are multiplied by; NaN if there is an element that is infinite or NaN
  float inverse;  ///< what elements are multiplied by to make codes; 0 if all of them are 0, or one is not finite
};

/// Of the elements of a key or value that the lanes of a warp have.
/// @param largest  of a lane: the largest of its elements' sizes, as bits; those of NaN are larger than all others
__device__ inline KvScale kv_scale(std::uint32_t largest) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  largest = __reduce_max_sync(~0u, largest);
  if (largest >= kInfinity) return {__uint_as_float(0x7fc00000u), 0};
  const float size = __uint_as_float(largest);
  // The inverse of a smaller one would be infinite.
  return size < 1e-36f ? KvScale{0, 0} : KvScale{size / 127, 127 / size};
}

__device__ inline std::uint32_t size_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

/// From -127 to 127; 0 for NaN.
__device__ inline int kv_code(float x, const KvScale& scale) { return __float2int_rn(__fmul_rn(x, scale.inverse)); }

/// Four codes in the bytes of a word, the first in the lowest.
__device__ inline std::uint32_t pack_codes(int a, int b, int c, int d) {
  const std::uint32_t low = __byte_perm(static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b), 0x0040);
  const std::uint32_t high = __byte_perm(static_cast<std::uint32_t>(c), static_cast<std::uint32_t>(d), 0x0040);
  return __byte_perm(low, high, 0x5410);
}

/// The `index`-th code of a word as a float: 2^23 + (code + 128), less 2^23 + 128.
__device__ inline float code_at(std::uint32_t codes, int index) {
  const std::uint32_t bits = __byte_perm(codes ^ 0x80808080u, 0x4b000000u, 0x7440u + static_cast<std::uint32_t>(index));
  return __uint_as_float(bits) - 8388736.0f;
}

#endif

}  // namespace gemma
